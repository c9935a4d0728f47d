"""What can become of a site in a round: one row each, from which the server and the report count."""

import ast
from pathlib import Path
from typing import Any, cast

import pytest

from fedmed.report.document import build_document
from fedmed.storage.history import RoundRecord
from fedmed.storage.statuses import STATUSES, Status, find_status
from server.rounds.attendance import Attendance
from server.supervision.console import describe_round
from tests.report.support.example import make_content, make_record

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("word", "missed_in_a_row"),
    [
        ("accepted", 0), ("declined", 0), ("quarantined", 0), ("revoked", 0), ("dormant", 2),
        ("late", 3), ("error", 3), ("absent", 3),
    ],
)  # fmt: skip
def test_rounds_missed_in_a_row(word: str, missed_in_a_row: int) -> None:
    attendance = Attendance(cast(Any, None), "", missed={"north": 2})
    attendance.count_round({"north": word})
    assert attendance.missed == {"north": missed_in_a_row}


def test_only_who_did_its_part_has_not_missed_a_round() -> None:
    """A site that only scores has none of the training to do."""
    assert [word for word, row in STATUSES.items() if not row.missed] == ["accepted", "declined"]
    assert find_status("of a newer version") == Status(
        "?", "of a newer version", "a status that this page does not know", "kept"
    )


def test_every_word_that_the_server_writes_has_a_row() -> None:
    words = {
        node.args[1].value
        for path in (ROOT / "server" / "rounds").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"Update", "collector.mark"}
        if isinstance(node.args[1], ast.Constant)
    }
    assert words == set(STATUSES)


def test_a_new_row_is_counted_by_server_report_and_console(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of a round that a site was not meant to be part of: nobody counts it as missed."""
    monkeypatch.setitem(STATUSES, "spared", Status("-", "spared", "it rested", "kept", missed=False))
    attendance = Attendance(cast(Any, None), "", missed={"north": 2})
    attendance.count_round({"north": "spared"}, unscored=["north"])
    assert attendance.missed == {"north": 2}
    spared = make_record(1, {"north": "accepted", "south": "spared"})
    assert "1 sites  " in describe_round(RoundRecord.model_validate(spared), 3)
    late = make_record(2, {"north": "accepted", "south": "late"})
    assert "1 sites, 1 left out" in describe_round(RoundRecord.model_validate(late), 3)
    south = build_document(make_content(history=[spared, late]))["participation"]["sites"]["south"]
    assert (south["accepted_rounds"], south["missed_rounds"], south["statuses"]) == (0, 1, ["spared", "late"])
