"""A server that reads images out of tables, with models that put one image where no other is.

A model's weights can be a question: a logit ``a (u - t)``, where u differs from image to image, gives an image with u
near t a confidence, and so a bin, of its own. Told exactly, its sum of confidence is that image's u, and with one more
channel a pixel of it. The hospital has the thresholds of a real one: k = 10, k_row = 5, k_bin = 5.
"""

import numpy as np
import pytest
import torch

from client.hospital.site_data import Site, open_site
from fedmed.fairness.disclosure.tables import disclose_tables
from fedmed.metrics.rounding import is_rounded
from fedmed.metrics.site_tables import FEDERATED, SiteTables
from fedmed.metrics.tables import EvaluationTables, tables_from_logits
from fedmed.protocol.messages import read_tables
from fedmed.protocol.tensors import pack_tensors, unpack_tensors
from fedmed.training.evaluate import compute_logits
from tests.client.support.hospital import CLASSES, HospitalSite, make_rows

K_ROW = K_BIN = 5
SLOPES = (8.0, 40.0, 200.0)


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> HospitalSite:
    folder = tmp_path_factory.mktemp("hospital")
    rows = [row | {"sex": "f" if number % 4 < 2 else "m"} for number, row in enumerate(make_rows((160, 120, 40)))]
    data = {
        "source": "image_table",
        "root": "images",
        "group_column": "patient",
        "attribute_columns": ["sex"],
        "classes": CLASSES,
        "image_size": 16,
        "cache_mib": 0,
    }
    return HospitalSite(folder, rows, data=data, policy={"suppression": {"k": 10, "k_row": K_ROW, "k_bin": K_BIN}})


def make_question(hospital: HospitalSite, slope: float, place: float) -> bytes:
    """Return weights with which the first logit of an image is ``slope (u - place)``, and the others are 0."""
    tensors = {name: torch.zeros_like(tensor) for name, tensor in unpack_tensors(hospital.model).items()}
    weights = torch.rand(tensors["0.weight"][0].shape, generator=torch.Generator().manual_seed(7)) + 0.1
    tensors["0.weight"][0] = weights / weights.sum()
    tensors["1.running_var"] += 1
    tensors["1.weight"] += 1
    tensors["1.bias"] += 3.0  # ReLU lets everything through
    tensors["5.weight"][0, 0] = slope
    tensors["5.bias"][0] = -slope * (place + 3.0)
    return pack_tensors(tensors)


def answer(hospital: HospitalSite, site: Site, packed: bytes) -> torch.Tensor:
    from fedmed.training.network import Network

    network = Network(hospital.plan)
    network.fill(packed, {})
    return compute_logits(network.model, site.data.test, hospital.plan, device=torch.device("cpu"))


def list_values(hospital: HospitalSite, site: Site) -> np.ndarray:
    return np.sort(answer(hospital, site, make_question(hospital, 1.0, 0.0))[:, 0].numpy())


def find_alone(tables: EvaluationTables) -> int:
    """Return how many bins, of any class and group, hold a single image."""
    bins = np.concatenate([tables.calibration[..., 0].ravel(), tables.mixed[..., 0].ravel()])
    return int((bins == 1).sum())


def check_nothing_small(tables: SiteTables) -> None:
    for attribute, own in tables.models[FEDERATED].items():
        for numbers, least in (
            (own.row_images, K_ROW),
            (own.counts * (1 - np.eye(len(CLASSES), dtype=np.int64)), K_ROW),
            (own.rare[:, 0], K_ROW),
            (own.calibration[..., 0], K_BIN),
            (own.mixed[..., 0], K_BIN),
            (own.scores, K_BIN),
            (own.brier[:, 0], K_ROW),
        ):
            assert not ((numbers > 0) & (numbers < least)).any(), attribute
        for sums in (own.calibration[..., 1], own.mixed[..., 1], own.brier[:, 1:], own.patients[..., 1:]):
            assert is_rounded(sums), attribute
        assert is_rounded(own.areas[..., 1:5]), attribute


def test_no_question_shows_a_single_image(hospital: HospitalSite) -> None:
    """Complete tables show many images alone; what may leave shows none, whatever is asked."""
    site = open_site(hospital.config)
    part, counted = site.data.test, site.count_part("test", hospital.plan.fairness)
    alone = 0
    for slope in SLOPES:
        for place in np.quantile(list_values(hospital, site), np.linspace(0, 1, 12)):
            logits = answer(hospital, site, make_question(hospital, slope, float(place)))
            told = disclose_tables(
                {FEDERATED: logits},
                part.labels,
                counted.groups,
                counted.plan,
                site.disclosure_of("test"),
                part.patients,
            )
            check_nothing_small(told)
            alone += find_alone(tables_from_logits(logits, part.labels, counted.groups["sex"]))
            assert not sum(find_alone(own) for own in told.models[FEDERATED].values())
    assert alone > 100, "the questions isolate images, so that there was something to hide"


def test_no_single_image_passes_the_door(hospital: HospitalSite) -> None:
    middle = float(np.median(list_values(hospital, open_site(hospital.config))))
    reply = hospital.ask("evaluate", make_question(hospital, 40.0, middle), round=1, part="test")
    tables = read_tables(reply)
    assert tables.site.row_images.sum() >= 10
    assert tables.site.mixed.any()
    check_nothing_small(tables)
