"""Sites whose images do not fill their batches: their updates are as long as the others'."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from client.hospital import site_data
from client.hospital.exclusions import select_images
from fedmed.data import SiteData
from fedmed.storage.history import read_history
from tests.support.federation import Federation

IMAGES = {"site_01": 32, "site_02": 40, "site_03": 34, "site_04": 5}
"""Training images; with batches of 32 a rest of 2 at one site, and none but few images at another."""


@pytest.fixture
def federation(make_federation: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch) -> Federation:
    load = site_data.load_site

    def load_few(*arguments: Any) -> SiteData:
        data = load(*arguments)
        assert len(data.train) >= IMAGES[data.name]
        return replace(data, train=select_images(data.train, range(IMAGES[data.name])))

    monkeypatch.setattr(site_data, "load_site", load_few)
    return make_federation(
        rounds=2,
        sites=4,
        model={"name": "resnet18"},
        data={"source": "phantom", "images_per_site": 80, "num_classes": 3, "image_size": 32},
        training={"optimizer": {"lr": 0.05}, "batch_size": 32},
        round_deadline_s=120,
        calibrate=False,
    )


def read_statuses(federation: Federation) -> list[dict[str, str]]:
    history = read_history(federation.run.history_file)
    return [{line.site: line.status for line in record.participation} for record in history]


def test_no_site_is_left_out_for_its_number_of_images(federation: Federation) -> None:
    federation.go()
    assert read_statuses(federation) == [dict.fromkeys(IMAGES, "accepted")] * 2
    assert federation.listener.problems == {}


def test_a_rest_of_two_images_would_be_noticed(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: with a last batch of two the site's update is quarantined."""

    def cut(order: np.ndarray, batch_size: int) -> list[list[int]]:
        return [order[first : first + batch_size].tolist() for first in range(0, len(order), batch_size)]

    monkeypatch.setattr("fedmed.training.fit.make_batches", cut)
    federation.go()
    assert read_statuses(federation)[0]["site_03"] == "quarantined"
