"""The record of processing tells all that the plan uses, and nothing that it does not."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedmed.config.keep import ServerKeepConfig, SiteKeepConfig
from fedmed.config.server import ServerConfig
from fedmed.protocol.foreseen import EVERY_ROUND
from fedmed.protocol.kinds import KINDS, Kind, Phase
from fedmed.protocol.reports import MissingModel
from server.app import main
from server.provisioning.record_of_processing import _describe, list_leaving, make_record, render_record
from tests.support.fopro import make_fopro

ROOT = Path(__file__).resolve().parents[3]
VALUES: dict[str, Any] = {
    "address": "fedmed.example.org:8443",
    "sites": ["north", "south"],
    "classes": ["benign", "malignant"],
    "data": {"source": "sites"},
    "rounds": 7,
    "study": {"id": "skin", "approval": "EK 7/26"},
}


def make_config(**changes: Any) -> ServerConfig:
    return ServerConfig.model_validate(VALUES | {"keys": "nowhere"} | changes)


def name_phases(config: ServerConfig) -> list[str]:
    return [row.phase for row in list_leaving(config)]


ALWAYS = ["join", "train", "test"]


@pytest.mark.parametrize(
    ("changes", "further"),
    [
        ({"benefit": False, "calibrate": False}, {"figure", "release"}),
        ({"benefit": False, "calibrate": False, "choice": "tables"}, {"evaluate", "release"}),
        ({"calibrate": False}, {"local", "figure", "release"}),
        ({"benefit": False}, {"calibrate", "figure", "release"}),
        ({"benefit": False, "calibrate": False, "batch_norm": "recalibrate"}, {"recalibrate", "figure", "release"}),
        ({"benefit": False, "calibrate": False, "batch_norm": "local"}, {"figure"}),
    ],
)
def test_every_phase_that_the_plan_uses_is_named_and_no_other(changes: dict[str, Any], further: set[str]) -> None:
    found = name_phases(make_config(**changes))
    order = [phase.name for kind in KINDS.values() for phase in kind.phases]
    assert found == sorted({*ALWAYS, *further}, key=order.index)


@pytest.mark.parametrize("batch_norm", ["average", "local", "recalibrate"])
@pytest.mark.parametrize("choice", ["figure", "tables"])
def test_the_record_names_what_the_sites_ledgers_answer(choice: str, batch_norm: str) -> None:
    for extra in ({"benefit": False}, {"calibrate": False}, {}):
        config = make_config(choice=choice, batch_norm=batch_norm, **extra)
        plan, phases = config.make_plan(), [phase for kind in KINDS.values() for phase in kind.phases]
        answered = [phase.name for phase in phases if phase.ration.times(plan, "trained") != 0]
        assert name_phases(config) == answered


def test_small_network_adds_what_it_needs() -> None:
    small = {"kind": "co_distillation", "rounds": 3, "student": {"name": "mobilenet_v2"}}
    rows = {row.phase: row for row in list_leaving(make_config(fopro=make_fopro(compression=small), choice="tables"))}
    assert rows["distil"].how_often == "in each of 3 rounds"
    assert "recalibrate" in rows
    assert rows["evaluate"].how_often == "in each of 7 rounds; once of the small network and the trained one"


def test_rows_say_what_leaves_as_the_kinds_do() -> None:
    rows = list_leaving(make_config())
    for row in rows:
        (kind,) = [kind for kind in KINDS.values() if any(phase.name == row.phase for phase in kind.phases)]
        assert set(row.parts) == set(kind.leaving)
        assert set(row.fields) == set(kind.report)
        assert row.title in {phase.title for phase in kind.phases}
    assert {row.phase: row.how_often for row in rows}["train"] == "in each of 7 rounds"


def test_a_kind_that_comes_later_is_told_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = Kind(
        "train.probe", (Phase("probe", "a probe of the sums", "probe sums", EVERY_ROUND),), reports=(MissingModel,)
    )
    monkeypatch.setitem(KINDS, "probe", probe)
    assert name_phases(make_config())[-1] == "probe"


def test_every_period_has_its_words() -> None:
    for section in (ServerKeepConfig, SiteKeepConfig):
        for name in section.model_fields:
            assert _describe(section, name) != name or name == "logs"
    periods = make_record(make_config(keep={"validation_tables": 12, "logs": None})).periods
    assert "Coordinating site, tables of the validation images: 12 days after the end of the run." in periods
    assert "Coordinating site, logs of the programs: until somebody deletes it." in periods
    assert (
        "Hospital, stored answers of the test: as keep.test_answers in its client.yaml says, which is not known here; "
        "where it says nothing, 365 days after the last change."
    ) in periods
    assert len(periods) == len(ServerKeepConfig.model_fields) + len(SiteKeepConfig.model_fields) + 2


def name_recipients(**changes: Any) -> str:
    return "\n".join(make_record(make_config(**changes)).recipients)


def test_a_model_hub_is_a_third_party_where_the_plan_dials_one() -> None:
    """As client.guard.policy, which refuses such a plan unless policy.allow_download is set."""
    assert "no service of a third party" in name_recipients()
    for changes in (
        {"fopro": make_fopro(teacher={"name": "resnet18", "source": "torchvision"})},
        {"model": {"name": "frozen_teacher", "teacher": "resnet18", "source": "torchvision"}},
    ):
        told = name_recipients(**changes)
        assert "no service of a third party" not in told
        assert "the teacher 'resnet18' are downloaded from the model hub" in told
        assert "policy.allow_download" in told


def test_settings_are_told() -> None:
    text = render_record(make_record(make_config(release="manual", fairness={"attributes": ["sex"]})))
    for words in (
        "Study 'skin', ethics approval EK 7/26.",
        "Hospitals: north, south.",
        "after a person has released it",
        "patient groups are told apart: sex.",
        "benign, malignant",
        "## What this does not protect from",
        "| training (`train`) | update: report, heads, model | in each of 7 rounds |",
    ):
        assert words in text
    assert "(to be added by a person)" in render_record(make_record(make_config(study={"id": "skin"})))


def test_the_command_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "server.yaml"
    file.write_text((ROOT / "configs" / "server.yaml").read_text())
    assert main(["--config", str(file), "--record-of-processing"]) == 0
    assert capsys.readouterr().out.startswith("# Record of processing\n")
    assert main(["--config", str(file), "--record-of-processing", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["phase"] for row in told["leaving"]][:2] == ["join", "train"]
    assert list(tmp_path.iterdir()) == [file], "nothing is written"
