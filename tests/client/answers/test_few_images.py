"""A hospital with fewer than 8 training images: wherever it trains, BatchNorm's statistics rest."""

from pathlib import Path

import pytest
import torch

from client.hospital.site_data import open_site
from fedmed.protocol.messages import read_model
from fedmed.protocol.tensors import unpack_tensors
from fedmed.storage.site_state import SiteState
from tests.client.support.hospital import HospitalSite, make_rows
from tests.client.support.second_model import SMALL_MODEL, distil

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def site(tmp_path: Path) -> HospitalSite:
    small = HospitalSite(tmp_path, make_rows((6, 4, 2)), policy={"suppression": {"k": 1, "k_row": 1}})
    assert 2 <= len(open_site(small.config).data.train) < 8
    return small


def find_changed(before: bytes, after: Tensors) -> set[str]:
    return {name for name, tensor in unpack_tensors(before).items() if not tensor.equal(after[name])}


WEIGHTS = {"0.weight", "1.weight", "1.bias", "5.weight", "5.bias"}
"""Of the network ``tiny``: all but ``1.running_mean``, ``1.running_var`` and ``1.num_batches_tracked``."""


def test_in_a_round(site: HospitalSite) -> None:
    reply = site.ask("train", site.model, round=1)
    assert find_changed(site.model, unpack_tensors(read_model(reply))) == WEIGHTS


def test_in_the_sites_own_model(site: HospitalSite) -> None:
    site.ask("train.local", site.model, {"benefit": True}, round=2)
    found = SiteState(site.state / "runs" / "run1" / "local").load_before(3)
    assert found is not None
    kept = {name.removeprefix("model/"): tensor for name, tensor in found[0].items()}
    assert find_changed(site.model, kept) == WEIGHTS


def test_in_the_small_network(site: HospitalSite) -> None:
    assert find_changed(SMALL_MODEL, unpack_tensors(read_model(distil(site)))) == WEIGHTS
