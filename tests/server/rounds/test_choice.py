"""The best round chosen by two figures of each site, or by tables where every site allows them."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from pydantic import ValidationError

from fedmed.config import RunConfig
from fedmed.config.server import ServerConfig
from fedmed.errors import FederationError
from fedmed.protocol.messages import REPORT, REQUEST, make_content, read_values
from fedmed.protocol.reports import FigureReport
from fedmed.storage.history import Participation, RoundRecord, Validation, append_record, read_history
from server.finish.report import write_interim_report
from server.rounds.scoring import load_before
from server.rounds.validation import average_figures, choice_value, is_better
from tests.support.deployment_grid import Hospitals
from tests.support.federation import Federation, Killed

Make = Callable[..., Federation]
SHA = "0" * 64
FIRST, *OTHERS = "site_01", "site_02", "site_03"
SERVER = {"address": "127.0.0.1:1", "sites": ["a"], "classes": ["x", "y"]}
OPEN = {"suppression": {"k": 1, "k_row": 1}, "validation_tables": True}


def tell(n: int, accuracy: float, balanced: float) -> FigureReport:
    return FigureReport(model_sha256=SHA, n=n, accuracy=accuracy, balanced_accuracy=balanced)


def make_config(**settings: Any) -> RunConfig:
    return RunConfig.model_validate({"sites": 2, "choice": "figure"} | settings)


def test_figures_are_averaged_by_images() -> None:
    """(30 x .8 + 10 x .4) / 40 = .7 and (30 x .6 + 10 x .2) / 40 = .5."""
    told = average_figures({"a": tell(30, 0.8, 0.6), "b": tell(10, 0.4, 0.2)})
    assert told.pooled == pytest.approx({"accuracy": 0.7, "balanced_accuracy": 0.5})
    assert told.sites["b"] == {"n": 10, "accuracy": 0.4, "balanced_accuracy": 0.2}
    assert choice_value(make_config(), told) == pytest.approx(0.5)
    assert choice_value(make_config(choose_by="accuracy"), told) == pytest.approx(0.7)


def test_a_site_that_claims_most_images_does_not_choose_the_round() -> None:
    """Of four sites one has a third at most: .5 / 3 + 2 / 3 of the others' mean, (10 x .8 + 20 x .6 + 10 x .8) / 40.

    Two sites count the same, (.9 + .5) / 2; where nobody has too much, nothing changes.
    """
    others = {"b": tell(10, 0.8, 0.8), "c": tell(20, 0.6, 0.6), "d": tell(10, 0.8, 0.8)}
    told = average_figures({"a": tell(10**8, 0.5, 0.5), **others}, "auto")
    assert told.pooled["accuracy"] == pytest.approx(0.5 / 3 + 2 / 3 * 0.7)
    assert told.sites["a"]["n"] == 10**8, "as it told"
    two = {"a": tell(90, 0.9, 0.9), "b": tell(10, 0.5, 0.5)}
    assert average_figures(two, "auto").pooled["balanced_accuracy"] == pytest.approx(0.7)
    assert average_figures(two).pooled["balanced_accuracy"] == pytest.approx(0.86)
    assert average_figures(others, "auto").pooled == average_figures(others).pooled


def test_without_figures_a_round_has_no_value() -> None:
    assert choice_value(make_config(), average_figures({})) is None


@pytest.mark.parametrize(
    ("choice", "value", "best", "expected"),
    [
        ("figure", 0.5, None, True),
        ("figure", None, None, False),
        ("figure", None, 0.5, False),
        ("figure", 0.501, 0.5, False),
        ("figure", 0.5011, 0.5, True),
        ("figure", 0.499, 0.5, False),
        ("tables", 0.5001, 0.5, True),
        ("tables", 0.5, 0.5, False),
    ],
)
def test_equal_rounds_leave_the_earlier_one(choice: str, value: float, best: float, expected: bool) -> None:
    """Rounded to 3 digits, .001 more is no more."""
    assert is_better(make_config(choice=choice), value, best) is expected


@pytest.mark.parametrize(
    "settings",
    [
        {"choose_by": "auc"},
        {"choose_by": "macro_f1"},
        {"choose_by": "worst_group_accuracy"},
        {"aggregation": {"fair": {"kind": "fairfed", "attribute": "sex"}}},
        {"fopro": {"teacher": "none", "compression": {"kind": "co_distillation"}}},
    ],
)
def test_what_needs_tables_is_refused_at_the_start(settings: dict[str, Any]) -> None:
    make_config(choice="tables", **settings)
    ServerConfig.model_validate(SERVER | {"choice": "tables"} | settings)
    for refuse in (lambda: make_config(**settings), lambda: ServerConfig.model_validate(SERVER | settings)):
        with pytest.raises(ValidationError, match="Set choice: tables, which every site has to allow"):
            refuse()


def test_defaults() -> None:
    assert RunConfig(sites=2).choice == "tables"
    assert ServerConfig.model_validate(SERVER).make_plan().choice == "figure"


def test_a_rule_from_outside_that_asks_for_tables_is_told(make_federation: Make) -> None:
    federation = make_federation(choice="figure")
    with pytest.raises(FederationError, match="Set choice: tables"):
        load_before(federation.config, federation.run, 2)


def test_a_round_rests_on_what_the_sites_told(make_federation: Make) -> None:
    federation = make_federation(choice="figure", rounds=3)
    told: dict[str, dict[str, Any]] = {}

    def note(site: str, request: Message, reply: Message) -> Message:
        if request.metadata.message_type == "evaluate.figure":
            values = read_values(reply, REPORT)
            told.setdefault(str(values["model_sha256"]), {})[site] = values
        return reply

    grid = federation.grid(note)
    federation.go(grid)
    asked = [kind for _, kind in grid.sent]
    assert (asked.count("evaluate.figure"), asked.count("evaluate")) == (9, 3), "tables of the test alone"
    history = read_history(federation.run.history_file)
    for record in history:
        of_round = told[record.model_sha256]
        images = sum(values["n"] for values in of_round.values())
        for key in ("accuracy", "balanced_accuracy"):
            mean = sum(values["n"] * values[key] for values in of_round.values()) / images
            assert record.validation.pooled[key] == pytest.approx(mean)
        assert {site: figures["n"] for site, figures in record.validation.sites.items()} == {
            site: values["n"] for site, values in of_round.items()
        }
        assert record.alarms == []
    best: tuple[float, int] | None = None
    for record in history:
        value = record.validation.pooled["balanced_accuracy"]
        assert value is not None
        if best is None or value > best[0] + 0.001:
            best = value, record.round
    assert best is not None
    assert json.loads(federation.run.finished_file.read_text())["chosen_round"] == best[1]
    assert not list(federation.run.tables.glob("round_*"))
    with federation.run.metrics_file.open() as file:
        rows = [row for row in csv.DictReader(file) if row["part"] == "validation" and row["figure"] == "accuracy"]
    assert {row["site"] for row in rows} == {"all", *federation.sites}
    page = (federation.run.path / "report" / "index.html").read_text()
    assert "tables of validation images, but balanced accuracy and accuracy" in page


def test_a_site_without_figures_is_left_out_and_named_once(make_federation: Make) -> None:
    federation = make_federation(choice="figure", rounds=2)

    def hold_back(site: str, request: Message, reply: Message) -> Message:
        if request.metadata.message_type == "evaluate.figure" and site == FIRST:
            sha = read_values(reply, REPORT)["model_sha256"]
            reply.content[REPORT] = make_content(REPORT, {"model_sha256": sha, "n": 0})[REPORT]
        return reply

    federation.go(federation.grid(hold_back))
    for record in read_history(federation.run.history_file):
        assert sorted(record.validation.sites) == OTHERS
    notes = [note for note in federation.listener.notes if "no part in the choice" in note]
    assert len(notes) == 1
    assert notes[0].startswith(FIRST)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"model_sha256": SHA}, "another model"),
        ({"n": 100_000}, "more images than the site declared"),
        ({"accuracy": 1.5}, "0 to 1"),
        ({"n": 0}, "figures without images"),
    ],
)
def test_figures_that_cannot_be_true_are_refused(make_federation: Make, change: dict[str, Any], problem: str) -> None:
    federation = make_federation(choice="figure", rounds=1)

    def falsify(site: str, request: Message, reply: Message) -> Message:
        if request.metadata.message_type == "evaluate.figure" and site == FIRST:
            reply.content[REPORT] = make_content(REPORT, read_values(reply, REPORT) | change)[REPORT]
        return reply

    federation.go(federation.grid(falsify))
    assert sorted(read_history(federation.run.history_file)[0].validation.sites) == OTHERS
    assert any(problem in note for note in federation.listener.notes)


def test_a_run_that_goes_on_has_a_report(make_federation: Make) -> None:
    run = make_federation(choice="figure").run
    for number in (1, 2):
        record = RoundRecord(
            round=number,
            loss=1.0,
            participation=[Participation(site="site_01", status="accepted", images=20, share=1.0)],
            validation=average_figures({"site_01": tell(30, 0.8, 0.6)}),
        )
        append_record(run.history_file, record)
    write_interim_report(run)
    report = json.loads((run.path / "report" / "report.json").read_text())
    assert report["history"][1]["validation"]["pooled"]["balanced_accuracy"] == 0.6
    assert any("n/a" in note for note in report["notes"])


def test_a_deployment_with_tables_needs_every_site(tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path, OPEN, choice="tables")
    hospitals.change_client("site_02", policy={"suppression": {"k": 1, "k_row": 1}})
    with pytest.raises(
        FederationError, match=r"site_02 does not let them leave\. Set choice: figure, or have the site"
    ):
        hospitals.go()
    assert any("site_02 cannot join: choice: tables" in note for note in hospitals.listener.notes)


def go_to_the_test(hospitals: Hospitals) -> set[str]:
    """Run until the test is answered, and return what was asked until then."""
    asked = set()

    def stop(site: str, request: Message, reply: Message) -> Message:
        values = read_values(request, REQUEST)
        asked.add(f"{request.metadata.message_type} {values.get('part', '')}".strip())
        if values.get("part") == "test":
            raise Killed
        return reply

    with pytest.raises(Killed):
        hospitals.go(stop)
    return asked


QUICK = {"benefit": False, "calibrate": False}


def test_a_deployment_with_tables_at_every_site(tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path, OPEN, choice="tables", **QUICK)
    assert go_to_the_test(hospitals) == {"query", "train", "evaluate validation", "evaluate test"}


def test_a_deployment_asks_for_figures_by_itself(tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path, **QUICK)
    assert go_to_the_test(hospitals) == {"query", "train", "evaluate.figure validation", "evaluate test"}
    record = read_history(hospitals.run.history_file)[0]
    assert set(record.validation.sites) == {"site_01", "site_02"}
    assert Validation.model_validate(record.validation.to_json()).groups == {}


def test_a_run_folder_of_before_had_tables(tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path, choice="tables", choose_by="macro_f1")
    text = hospitals.run.config_file.read_text()
    assert "choice: tables\n" in text
    hospitals.run.config_file.write_text(text.replace("choice: tables\n", ""))
    assert hospitals.run.read_settings().choice == "tables"
