"""The table of the kinds of message: nothing is missing beside a row, and nothing needs more than a row."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.check import run as check_run
from client.check.leaves import list_size_checks
from client.guard.guard import guard_messages
from client.site import app
from fedmed.config import Plan
from fedmed.errors import PolicyError, WireError
from fedmed.protocol.foreseen import EVERY_ROUND
from fedmed.protocol.kinds import (
    KINDS,
    MODEL,
    REPORT,
    SUMS,
    Kind,
    Phase,
    describe_phase,
    list_flower_types,
    name_kind,
)
from fedmed.protocol.messages import make_content
from fedmed.protocol.reports import Report
from server.supervision.console import PlainListener
from server.supervision.status import StatusFile, read_status, render_status
from tests.client.support.hospital import PLAN as ASKED
from tests.client.support.hospital import HospitalSite
from tests.client.support.kit import FakeFleet, connect_to, make_class_folders, make_hello, make_kit, serve

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / "fedmed" / "protocol" / "kinds.py"
HANDBOOK = ROOT / "client" / "README.md"
PHASES = [phase for kind in KINDS.values() for phase in kind.phases]


class ProbeReport(Report):
    """What a site tells of a probe."""

    probed: bool | None = None
    size: int


PROBE = Kind(
    flower="train.probe",
    phases=(Phase("probe", "a probe of the sums", "probe sums", EVERY_ROUND, state="testing"),),
    reports=(ProbeReport,),
    returns=(SUMS,),
    about="a number",
)


def walk(*rooms: str) -> Iterator[tuple[Path, ast.AST]]:
    for room in rooms:
        for path in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                yield path, node


def name_row(node: ast.AST) -> str | None:
    """Return the name of the row in an expression ``KINDS["name"]``."""
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "KINDS":
        return node.slice.value if isinstance(node.slice, ast.Constant) else None
    return None


# --- every row has what belongs to it ---------------------------------------------------------------------------------


def test_every_row_has_a_handler_and_every_handler_a_row() -> None:
    registered = vars(app)["_registered_funcs"]
    assert set(registered) == {flower if "." in flower else f"{flower}.default" for flower in list_flower_types()}


def test_every_row_has_a_caller_in_the_server() -> None:
    """A caller hands the row on, or takes Flower's message type from it; the name of a phase alone asks nobody."""
    asked = set()
    for _, node in walk("server/rounds", "server/finish"):
        if isinstance(node, ast.Call):
            asked |= {*map(name_row, node.args)}
        elif isinstance(node, ast.Assign) or (isinstance(node, ast.Attribute) and node.attr == "flower"):
            asked.add(name_row(node.value))
    assert asked - {None} == set(KINDS)


def test_a_message_type_and_a_title_are_written_once() -> None:
    """Of titles, those of several words: a single one may mean something else."""
    texts = {flower for flower in list_flower_types() if "." in flower}
    texts |= {text for phase in PHASES for text in (phase.title, phase.leaves) if " " in text}
    found = {
        (path.relative_to(ROOT).as_posix(), node.value)
        for path, node in walk("fedmed", "server", "client", "simulations")
        if path != HOME and isinstance(node, ast.Constant) and node.value in texts
    }
    assert found == set()
    written = [node.value for node in ast.walk(ast.parse(HOME.read_text())) if isinstance(node, ast.Constant)]
    assert {text: written.count(text) for text in texts} == dict.fromkeys(texts, 1)


def test_names_and_titles_tell_kinds_and_phases_apart() -> None:
    for values in (
        list_flower_types(),
        [phase.name for phase in PHASES],
        [phase.title for phase in PHASES],
        [phase.leaves for phase in PHASES],
    ):
        assert len(values) == len(set(values))


def test_check_lists_every_row_with_its_size(tmp_path: Path) -> None:
    kit = make_kit(tmp_path, make_class_folders(tmp_path / "images", {"benign": 40, "malignant": 20, "other": 8}))
    limits = kit.policy.suppression.model_copy(update={"k": 4, "k_row": 3})
    policy = kit.policy.model_copy(update={"suppression": limits, "validation_tables": True, "min_images": 2})
    small = {"kind": "co_distillation", "model": {"name": "tiny", "width": 40}}
    everything = {"benefit": True, "batch_norm": "recalibrate", "calibrate": True, "release": True, "student": small}
    everything["operating"] = {"alert_classes": ["malignant"], "sensitivity": 0.95}
    hello = make_hello(everything | {"choice": "tables"})
    with serve(lambda connection: None) as port:
        config = kit.model_copy(update={"server": f"127.0.0.1:{port}", "policy": policy, "insecure": True})
        results = check_run.run_preflight(config, connect=connect_to(FakeFleet(hello)))
    sizes = {result.name: result for result in results if result.name.startswith("leaves: ")}
    instead = sizes.pop("leaves: validation figures")
    assert (instead.status, instead.found) == ("ok", "nothing: the plan asks for none (choice: tables)")
    phases = [phase for phase in PHASES if phase.name != "figure"]
    for phase in phases:
        rows = [found for name, found in sizes.items() if re.fullmatch(rf"leaves: {phase.leaves}(, \w+)?", name)]
        assert rows, phase
        for row in rows:
            assert row.status == "ok", row
            assert re.match(r"report [\d,]+ bytes", row.found), row
    for name, kind in KINDS.items():
        for phase in set(kind.phases) & set(phases):
            told = next(row.found for title, row in sizes.items() if title.startswith(f"leaves: {phase.leaves}"))
            assert [part for part in kind.returns if f"; {part} " not in told] == [], name
    heads = sizes.pop("leaves: heads of the audit logs")
    assert re.match(
        r"heads [\d,]+ bytes \(.*own, run, seen, signature, site\), with every answer but the first", heads.found
    )
    assert len(sizes) == len(phases) + 2, "training has a row for each of the three forms of an update"


def test_check_lists_figures_in_place_of_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the default policy and the default of a real federation."""
    names = {"leaves: validation figures", "leaves: validation tables"}
    before = [check for check in check_run.CHECKS if not check.name.startswith("leaves: ")]
    monkeypatch.setattr(check_run, "CHECKS", (*before, *(one for one in list_size_checks() if one.name in names)))
    config = make_kit(tmp_path, make_class_folders(tmp_path / "images", {"benign": 80, "malignant": 40, "other": 8}))
    with serve(lambda connection: None) as port:
        config = config.model_copy(update={"server": f"127.0.0.1:{port}", "insecure": True})
        *_, tables, figures = check_run.run_preflight(config, connect=connect_to(FakeFleet(make_hello())))
    assert (tables.status, tables.found) == ("ok", "nothing: the plan asks for none (choice: figure)")
    assert figures.status == "ok"
    assert re.match(r"report \d+ bytes \(accuracy, balanced_accuracy, model_sha256, n\); accuracy and", figures.found)


def test_the_handbook_tells_what_leaves_with_every_kind() -> None:
    """Its table has one line for each of Flower's message types, in the first column."""
    table = HANDBOOK.read_text().partition("## What leaves")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([a-z.]+)` \|", table, re.MULTILINE)) == set(list_flower_types())


# --- a new kind is a row ----------------------------------------------------------------------------------------------


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> ClientApp:
    """A table with one row more, and a site's app that answers it."""
    monkeypatch.setitem(KINDS, "probe", PROBE)
    site_app = ClientApp(mods=[guard_messages])

    @site_app.train("probe")
    def answer(message: Message, context: Context) -> Message:
        content = make_content(REPORT, {"probed": True, "size": 3}, sums={"a": torch.zeros(2, dtype=torch.float64)})
        return Message(content, reply_to=message)

    return site_app


def send(site: HospitalSite, content: RecordDict | None = None) -> Message:
    """Have the guard let a reply with some content out."""
    message = site.message(PROBE.flower, site.model, {"plan": ASKED, "round": 1})
    content = content or make_content(REPORT, {"probed": True, "size": 3}, sums={})
    return site.let_out(message, lambda message, context: Message(content, reply_to=message))


@pytest.mark.usefixtures("probed")
def test_guard_lets_out_what_a_new_row_lists_and_nothing_else(tmp_path: Path) -> None:
    site = HospitalSite(tmp_path)
    send(site)
    send(site, make_content(REPORT, {"size": 3}))
    strange: dict[str, Any] = {"probed": True, "size": 3}
    for content in (
        make_content(REPORT, strange | {"loss": 1.0}),
        make_content(REPORT, strange | {"missing_model": True}),
        make_content(REPORT, strange, model=site.model),
    ):
        with pytest.raises(PolicyError, match="not on the list of what may leave"):
            send(site, content)
    sent = [entry for entry in site.events("sent") if "text" not in entry]
    assert [entry["kind"] for entry in sent] == ["probe", "probe"]
    assert sent[0]["parts"][0]["keys"] == ["probed", "size"]
    assert [part["name"] for part in sent[0]["parts"]] == [REPORT, SUMS]
    assert site.answered("probe") == [4], "one of the two has brought more than words; what was withheld was computed"


def test_guard_refuses_what_no_row_names(tmp_path: Path) -> None:
    site = HospitalSite(tmp_path)
    with pytest.raises(WireError, match=r"Requests 'train\.probe' are not answered here\. Allowed: query, train"):
        send(site)
    assert name_kind("train.probe") == "train.probe"
    assert [entry["kind"] for entry in site.events("received")] == ["train.probe"]


@pytest.mark.usefixtures("probed")
def test_console_and_status_name_a_new_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    PlainListener(8).on_phase("probe", 1, 3)
    assert capsys.readouterr().err == "a probe of the sums: 3 sites\n"
    file = StatusFile(tmp_path, rounds=8, sites=["aachen"])
    file.take_event({"event": "phase", "phase": "probe", "round": 1, "num_sites": 1})
    status = read_status(tmp_path)
    assert status["state"] == "testing"
    assert "a probe of the sums: 0 of 1 sites" in render_status(status)
    assert describe_phase("of a newer version") == "of a newer version"


def test_check_lists_a_new_row(tmp_path: Path, probed: ClientApp, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [check for check in check_run.CHECKS if not check.name.startswith("leaves: ")]
    checks = [check for check in list_size_checks() if check.name == "leaves: probe sums"]
    monkeypatch.setattr(check_run, "CHECKS", (*before, *checks))
    monkeypatch.setattr("client.check.leaves.app", probed)
    config = make_kit(tmp_path, make_class_folders(tmp_path / "images", {"benign": 40, "malignant": 20, "other": 8}))
    with serve(lambda connection: None) as port:
        config = config.model_copy(update={"server": f"127.0.0.1:{port}", "insecure": True})
        *_, found = check_run.run_preflight(config, connect=connect_to(FakeFleet(make_hello())))
    assert (found.name, found.status) == ("leaves: probe sums", "ok")
    assert re.fullmatch(r"report 27 bytes \(probed, size\); sums \d+ bytes; a number", found.found), found.found


def test_rows_agree_with_themselves() -> None:
    """What is returned or told makes an answer; a kind that trains is for a round."""
    for name, kind in KINDS.items():
        assert (kind.tells is None) == (bool(kind.returns) or not kind.is_counted), name
        assert kind.tells is None or kind.tells in kind.report
        assert not kind.trains or kind.needs_round
        assert not kind.compressed or MODEL in kind.returns
        assert Plan.model_fields.keys() >= ({kind.setting} if kind.setting else set())
        assert kind.find_phase("another part") is None
