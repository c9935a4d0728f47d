"""What a hospital tells of its alert scores, and of alerts in a test; through its guard, as a server asks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.hospital.site_data import open_site
from fedmed.clinical.scores import NUMBER, SUM, alert_scores, find_score_problem
from fedmed.errors import PolicyError, WireError
from fedmed.metrics.rounding import is_rounded
from fedmed.metrics.site_tables import FEDERATED
from fedmed.protocol.messages import REPORT, make_content, read_sums, read_tables, read_values
from fedmed.training.evaluate import compute_logits
from fedmed.training.network import Network
from tests.client.support.hospital import HospitalSite, make_rows

PLAN: dict[str, Any] = {
    "operating": {"alert_classes": ["b", "c"], "sensitivity": 0.9, "cost_ratio": None, "prevalence": None},
    "student": None,
}
ROWS = make_rows((120, 80, 40))


@pytest.fixture
def site(tmp_path: Path) -> HospitalSite:
    found = HospitalSite(tmp_path, ROWS)
    found.ask("train", found.model, PLAN, round=1)
    return found


def score(site: HospitalSite, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Return alert scores and labels of a part, computed here."""
    network, images = Network(site.plan), getattr(open_site(site.config).data, part)
    network.fill(site.model, {})
    logits = compute_logits(network.model, images, site.plan, device=torch.device("cpu"))
    return alert_scores(logits, [1, 2], 2.0), images.labels.numpy()


def test_counts_are_of_all_validation_images_in_bins_of_enough_patients(site: HospitalSite) -> None:
    reply = site.ask("evaluate.alert", site.model, PLAN, round=1, part="validation", temperature=2.0)
    counts = read_sums(reply)["alerts"].numpy()
    scores, labels = score(site, "validation")
    assert counts[..., NUMBER].sum(axis=1).tolist() == [(labels > 0).sum(), (labels == 0).sum()]
    np.testing.assert_allclose(counts[0, :, SUM].sum(), scores[labels > 0].sum(), rtol=0.01)
    assert min(n for n in counts[..., NUMBER].ravel() if n) >= 5, "k_bin"
    assert is_rounded(counts[..., SUM])
    assert find_score_problem(counts, len(labels)) is None
    told = read_values(reply, REPORT)
    assert told["n"] == len(labels) // 6 * 6, "k"


def test_it_is_asked_once(site: HospitalSite) -> None:
    site.ask("evaluate.alert", site.model, PLAN, round=1, part="validation", temperature=2.0)
    site.ask("evaluate.alert", site.model, PLAN, round=1, part="validation", temperature=2.0)
    with pytest.raises(PolicyError, match="one more request for operating point"):
        site.ask("evaluate.alert", site.model, PLAN, round=1, part="validation", temperature=3.0)


def test_it_is_not_asked_where_the_plan_has_no_alert_classes(tmp_path: Path) -> None:
    site = HospitalSite(tmp_path)
    site.ask("train", site.model, round=1)
    with pytest.raises(WireError, match="the plan has no alert classes"):
        site.ask("evaluate.alert", site.model, round=1, part="validation")
    with pytest.raises(WireError, match="a threshold of alerts"):
        site.ask("evaluate", site.model, round=1, part="test", alert_threshold=0.0)


@pytest.mark.parametrize("harm", ["a small bin", "an exact sum", "another name", "a sum of nobody"])
def test_the_guard_lets_nothing_finer_out(site: HospitalSite, harm: str) -> None:
    values = {"plan": {**site.plan.model_dump(mode="json"), **PLAN}, "round": 1, "part": "validation"}
    message = site.message("evaluate.alert", site.model, values)
    counts = read_sums(site.send(message))["alerts"]
    place = int(counts[1, :, NUMBER].argmax())
    if harm == "a small bin":
        counts[1, place, NUMBER] = 2
    if harm == "an exact sum":
        counts[1, place, SUM] = 1.23456
    if harm == "a sum of nobody":
        counts[0, -1] = torch.tensor([0.0, 1.0])
    name = "others" if harm == "another name" else "alerts"
    report = read_values(site.send(message), REPORT)

    def answer(asked: Any, context: Any) -> Any:
        from flwr.app import Message

        return Message(make_content(REPORT, report, sums={name: counts}), reply_to=asked)

    with pytest.raises(PolicyError, match="The reply was not sent"):
        site.let_out(site.message("evaluate.alert", site.model, values), answer)


def test_a_test_tells_alerts_of_every_row_that_it_tells(site: HospitalSite) -> None:
    asked = {"round": 1, "part": "test", "temperature": 2.0, "alert_threshold": 0.1}
    own = read_tables(site.ask("evaluate", site.model, PLAN, **asked)).models[FEDERATED]["site"]
    scores, labels = score(site, "test")
    for label in range(3):
        inside = labels == label
        assert own.alerts[0, label].tolist() == [inside.sum(), (scores[inside] >= 0.1).sum()]
    assert own.decision[0].sum(axis=1).tolist() == [(labels > 0).sum(), (labels == 0).sum()]
    assert min(n for n in own.decision.ravel() if n) >= 5


def test_of_fewer_than_k_patients_nothing_is_told(tmp_path: Path) -> None:
    """Each patient has seven images, so that there are enough images of them."""
    rows = [{**row, "patient": f"p{place // 7}"} for place, row in enumerate(make_rows((84, 56, 28)))]
    limits = {"suppression": {"k": 10, "k_row": 2, "k_bin": 2}}
    few = HospitalSite(tmp_path, rows, policy=limits)
    part = open_site(few.config).data.validation
    assert len(part) >= 10 > len(set(part.patients))
    reply = few.ask("evaluate.alert", few.model, PLAN, round=1, part="validation", temperature=2.0)
    assert read_values(reply, REPORT)["n"] == 0
    assert not read_sums(reply)["alerts"].any()
