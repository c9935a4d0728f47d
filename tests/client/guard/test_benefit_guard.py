"""The requests for a model of the site's own, for a temperature and for a comparison, at a hospital's door."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from client import site as app
from client.answers import answering
from fedmed.errors import PolicyError, WireError
from fedmed.metrics.rounding import is_rounded
from fedmed.metrics.temperature import GRID
from fedmed.protocol.kinds import HEADS, KINDS
from fedmed.protocol.messages import REPORT, read_sums, read_values
from tests.client.support.hospital import POLICY, HospitalSite

LOCAL, CALIBRATE = "train.local", "evaluate.calibrate"
ALONE = {"benefit": True}


@pytest.fixture
def site(tmp_path: Path) -> HospitalSite:
    return HospitalSite(tmp_path)


def test_own_model_is_trained_and_written_down(site: HospitalSite) -> None:
    assert read_values(site.ask(LOCAL, None, ALONE, round=1, model_sha256="0" * 64), REPORT) == {"missing_model": True}
    told = read_values(site.ask(LOCAL, site.model, ALONE, round=2), REPORT)
    assert set(told) == {"rounds_done", "train_s"}
    assert told["rounds_done"] == 2
    again = read_values(site.ask(LOCAL, None, ALONE, round=1, model_sha256="0" * 64), REPORT)
    assert again == told  # trained once
    sent = site.events("sent")
    assert [entry["kind"] for entry in sent] == ["local"] * 3
    assert [part["name"] for entry in sent for part in entry["parts"]] == [REPORT] * 3
    states = list((site.state / "runs" / "run1" / "local").glob("*.safetensors"))
    assert states
    assert site.state.stat().st_mode & 0o077 == 0


def test_plan_without_benefit_gets_no_own_model(site: HospitalSite) -> None:
    with pytest.raises(WireError, match="which the plan does not foresee"):
        site.ask(LOCAL, site.model, round=1)
    with pytest.raises(WireError, match="round 0"):
        site.ask(LOCAL, site.model, ALONE, round=0)
    with pytest.raises(WireError, match="round 5"):
        site.ask(LOCAL, site.model, ALONE, round=5)


def test_hours_are_those_of_any_training(tmp_path: Path) -> None:
    now = datetime.now()
    never = [f"{(now.hour + 2) % 24:02d}:00-{(now.hour + 3) % 24:02d}:00"]
    site = HospitalSite(tmp_path, policy=POLICY | {"hours": never})
    with pytest.raises(PolicyError, match=r"policy\.hours"):
        site.ask(LOCAL, site.model, ALONE, round=1)
    declining = site.restart(policy=POLICY | {"hours": never, "benefit": False})
    assert read_values(declining.ask(LOCAL, site.model, ALONE, round=1), REPORT) == {"declined": True}


def test_rounds_and_epochs_are_those_of_the_policy(tmp_path: Path) -> None:
    site = HospitalSite(tmp_path, policy=POLICY | {"max_rounds": 3})
    with pytest.raises(PolicyError, match=r"policy\.max_rounds"):
        site.ask(LOCAL, site.model, ALONE, round=1)


def test_run_that_only_trains_alone_is_counted(site: HospitalSite) -> None:
    """Else each of any number of run names could have the hospital train."""
    site.ask(LOCAL, site.model, ALONE, round=1)
    assert site.answered("local") == [1]


def test_sums_for_the_temperature(site: HospitalSite) -> None:
    """Of 12 validation images 6 are of the one class of at least three patients; the others are rare classes."""
    assert read_values(site.ask(CALIBRATE, site.model, round=1), REPORT)["n"] == 0, "6 images of 3 patients, and k = 6"
    site = site.restart(policy=POLICY | {"suppression": {"k": 3, "k_row": 3}})
    reply = site.ask(CALIBRATE, site.model, round=1)
    told = read_values(reply, REPORT)
    described = read_values(site.ask("query"), REPORT)
    assert (told["n"], described["num_images"]["validation"]) == (6, 12)
    sums = read_sums(reply)["temperature"]
    assert sums.shape == (len(GRID), 2)
    assert is_rounded(sums.numpy())
    assert site.answered("calibrate") == [1]


def test_sums_are_withheld_below_k(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = HospitalSite(tmp_path, policy={"suppression": {"k": 1000, "k_row": 3}})
    reply = site.ask(CALIBRATE, site.model, round=1)
    assert read_values(reply, REPORT)["n"] == 0
    assert set(reply.content) == {REPORT}
    wrong = (7, torch.zeros(len(GRID), 2, dtype=torch.float64))
    monkeypatch.setattr(app, "collect_temperature_sums", lambda *_: wrong)
    with pytest.raises(PolicyError, match="no multiple of k = 1000"):
        site.ask(CALIBRATE, site.model, round=1)
    assert "no multiple of k = 1000" in site.events("withheld")[0]["reason"]


def test_exact_sums_are_withheld(site: HospitalSite, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = (48, torch.full((len(GRID), 2), 12.345, dtype=torch.float64))
    monkeypatch.setattr(app, "collect_temperature_sums", lambda *_: exact)
    with pytest.raises(PolicyError, match="a sum over images has more than 3 digits"):
        site.ask(CALIBRATE, site.model, round=1)


def test_own_model_never_leaves(site: HospitalSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the app may do wrong: a model is not on the list of what may leave with this answer."""
    assert set(KINDS["local"].leaving) == {REPORT, HEADS}
    make = answering.make_content
    monkeypatch.setattr(answering, "make_content", lambda kind, values, **named: make(kind, values, model=site.model))
    with pytest.raises(PolicyError, match="not on the list of what may leave"):
        site.ask(LOCAL, site.model, ALONE, round=1)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"temperature": 0.01}, "Allowed: 0.05 to 20"),
        ({"temperature": 21}, "Allowed: 0.05 to 20"),
        ({"temperature": float("nan")}, "Allowed: 0.05 to 20"),
        ({"temperature": True}, "Allowed: 0.05 to 20"),
        ({"temperature": "1"}, "Allowed: 0.05 to 20"),
        ({"compare": "local"}, "a list of batch_norm, fine_tuned, local"),
        ({"compare": ["local", "uncalibrated"]}, "a list of batch_norm, fine_tuned, local"),
        ({"compare": [["local"]]}, "a list of batch_norm, fine_tuned, local"),
        ({"part": "validation", "compare": ["local"]}, "in a test only"),
        ({"part": "validation", "temperature": 1.5}, "in a test only"),
    ],
)
def test_what_is_asked_of_a_test_is_checked(site: HospitalSite, values: dict[str, Any], words: str) -> None:
    """A NaN cannot even be written by our own server; it is put into the text of the request here."""
    asked = {"round": 1, "part": "test", "plan": site.plan.model_dump(mode="json")} | values
    message = site.message("evaluate", site.model, {})
    message.content["request"]["json"] = json.dumps(asked)
    with pytest.raises(WireError, match=words):
        site.send(message)
