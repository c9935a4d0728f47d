"""history.jsonl and metrics.csv: round trips, torn lines, truncation."""

import csv
import json

import numpy as np
import pytest

from fedmed.errors import RunFolderError
from fedmed.storage.history import RoundRecord, append_record, read_history, truncate_history, write_metrics_csv


def _record(number: int, **more) -> RoundRecord:
    return RoundRecord.model_validate({"round": number, "attempt": 1, "loss": 1.5 / number, **more})


def test_round_trip_keeps_order_and_values(tmp_path):
    path = tmp_path / "history.jsonl"
    records = [_record(1, validation={"pooled": {"accuracy": 0.5}, "sites": {"Zürich": {"accuracy": 0.1}}}), _record(2)]
    for record in records:
        append_record(path, record)
    assert read_history(path) == records
    assert path.read_text().count("\n") == 2


def test_absent_file_is_an_empty_history(tmp_path):
    assert read_history(tmp_path / "none.jsonl") == []
    truncate_history(tmp_path / "none.jsonl", 3)
    assert not (tmp_path / "none.jsonl").exists()


@pytest.mark.parametrize("tail", [b'{"round": 3, "lo', b'{"round": 3}', b"\x00\x00\x00", b"\xff"])
def test_torn_last_line_is_ignored_and_replaced(tmp_path, tail):
    path = tmp_path / "history.jsonl"
    append_record(path, _record(1))
    append_record(path, _record(2))
    with path.open("ab") as file:
        file.write(tail)
    assert [record.round for record in read_history(path)] == [1, 2]
    append_record(path, _record(3))
    assert read_history(path) == [_record(1), _record(2), _record(3)]


def test_torn_first_line_leaves_an_empty_history(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_bytes(b'{"rou')
    assert read_history(path) == []
    append_record(path, _record(1))
    assert read_history(path) == [_record(1)]


@pytest.mark.parametrize("line", ["not json", "[1]", '{"loss": 1}', '{"round": "1"}'])
def test_damage_before_the_end_names_the_line(tmp_path, line):
    path = tmp_path / "history.jsonl"
    path.write_text(f'{{"round": 1}}\n{line}\n{{"round": 3}}\n')
    with pytest.raises(RunFolderError, match="line 2"):
        read_history(path)


def test_numbers_that_are_not_finite_become_null(tmp_path):
    path = tmp_path / "history.jsonl"
    numbers = [np.float32("inf"), np.int64(4), np.float64(0.25)]
    append_record(path, _record(1, a=float("nan"), b=numbers, c=np.array([1, 2])))
    (record,) = read_history(path)
    written = record.to_json()
    assert (written["a"], written["b"], written["c"]) == (None, [None, 4, 0.25], [1, 2])


@pytest.mark.parametrize("record", [{}, {"round": "1"}, {"round": None}])
def test_a_record_without_a_round_is_refused(record):
    with pytest.raises(ValueError, match=r"(?s)round.*(Field required|valid integer)"):
        RoundRecord.model_validate(record)


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ({"participation": [{"site": "a"}]}, "participation.0.status"),
        ({"validation": {"pooled": {"accuracy": "much"}}}, "validation.pooled.accuracy"),
        ({"weights": [1]}, "weights"),
    ],
)
def test_a_line_of_another_form_names_the_place_and_what_to_do(tmp_path, line, place):
    path = tmp_path / "history.jsonl"
    path.write_text(json.dumps({"round": 1} | line) + "\n")
    with pytest.raises(RunFolderError, match=rf"line 1 has another form .*'{place}.*Install the version"):
        read_history(path)


OLD_LINE = (
    '{"round": 2, "attempt": 1, "finished": "2025-05-01T10:00:00+00:00", "wall_s": 1.5, "loss": null, "learning_rate": '
    '0.02, "model_sha256": "ab", "bytes_to_sites": 100, "bytes_from_sites": 50, "coverage_images": 1.0, "weights": '
    '{"a": 0.75, "b": 0.25}, "participation": [{"site": "a", "status": "late", "reason": "no answer", "images": null, '
    '"share": null, "train_s": null, "update_mib": null, "update_bytes": null, "update_norm": null}], "validation": '
    '{"pooled": {"accuracy": 0.5, "auc": null}, "sites": {"a": {"accuracy": 0.5}}, "groups": {"sex": {"f": {"n": 28, '
    '"accuracy": 1.0}}}, "hidden": {"sex": []}, "gaps": {"site": {"dpm": 1.0}}, "counts": {"sex": {"f": {"n": [14, '
    '14], "right": [14, 7]}}}}, "fopro": {"teacher": "self", "ekd": 0.5, "bands": [{"low": 0.0, "high": 0.5, "gain": '
    '1.0}], "sites": {"a": {"ekd": 0.5, "bands": null}}}, "alarms": [{"kind": "coverage", "attribute": "sex", "group": '
    '"f", "figure": "images", "value": 0, "reference": 9, "reference_round": 1, "p_value": null, "text": "lost"}]}'
)


def test_a_line_of_version_1_keeps_every_key_and_every_number(tmp_path):
    """Whole numbers stay whole, null stays null, and the order of the keys is the old one."""
    path = tmp_path / "history.jsonl"
    path.write_text(OLD_LINE + "\n")
    (record,) = read_history(path)
    assert (record.round, record.loss, record.participation[0].status) == (2, None, "late")
    assert record.validation.groups["sex"]["f"]["n"] == 28
    assert record.fopro.sites["a"].ekd == 0.5
    assert record.alarms[0].text == "lost"
    append_record(tmp_path / "again.jsonl", record)
    assert (tmp_path / "again.jsonl").read_text() == OLD_LINE + "\n"


def test_what_another_version_writes_more_or_less_is_read_and_kept(tmp_path):
    """A key that is not known here stays when the round is written again; the lines before a cut stay as they are."""
    path = tmp_path / "history.jsonl"
    line = (
        '{"round": 1, "validation": null, "privacy": {"epsilon": 3}, "participation": '
        '[{"site": "a", "status": "x", "z": 1}]}'
    )
    path.write_text(line + "\n" + '{"round": 2}\n')
    record, bare = read_history(path)
    assert record.to_json()["privacy"] == {"epsilon": 3}
    assert record.participation[0].to_json()["z"] == 1
    assert record.validation.pooled == {}
    assert bare == RoundRecord(round=2)
    assert bare.to_json() == {"round": 2}
    truncate_history(path, 1)
    assert path.read_text() == line + "\n"


def test_truncate_keeps_up_to_the_last_round(tmp_path):
    path = tmp_path / "history.jsonl"
    for number in range(1, 6):
        append_record(path, _record(number))
    truncate_history(path, 3)
    assert read_history(path) == [_record(1), _record(2), _record(3)]
    truncate_history(path, 0)
    assert read_history(path) == []
    assert [file.name for file in tmp_path.iterdir()] == ["history.jsonl"]


def test_metrics_csv_is_long_form(tmp_path):
    record = _record(
        1,
        learning_rate=0.02,
        participation=[{"site": "a, b", "status": "accepted", "images": 240, "share": 0.25, "train_s": None}],
        validation={"pooled": {"accuracy": 0.5}, "sites": {"a, b": {"accuracy": None}}},
    )
    path = tmp_path / "metrics.csv"
    write_metrics_csv([record], path)
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["round", "part", "site", "figure", "value"],
        ["1", "train", "all", "loss", "1.5"],
        ["1", "train", "all", "learning_rate", "0.02"],
        ["1", "train", "a, b", "images", "240"],
        ["1", "train", "a, b", "share", "0.25"],
        ["1", "train", "a, b", "train_s", ""],
        ["1", "validation", "all", "accuracy", "0.5"],
        ["1", "validation", "a, b", "accuracy", ""],
    ]


def test_history_lines_are_strict_json(tmp_path):
    path = tmp_path / "history.jsonl"
    append_record(path, _record(1, loss_site=float("-inf")))

    def refuse(name: str) -> None:
        raise AssertionError(name)

    json.loads(path.read_text(), parse_constant=refuse)
