"""``predict.py`` with an operating point: the column, the page for a person, and a watched folder."""

import csv
import html
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binom, binomtest

from fedmed import predict, predict_watch
from tests.test_predict import CLASSES, build_network, change_manifest, files, make_pixels, model, run

__all__ = ["build_network", "files", "model"]  # the first two of these are fixtures of this file as well

POINT = {"alert_classes": ["=malignant", "other"], "threshold": 0.3}


@pytest.fixture
def alerting(model: Path, tmp_path: Path) -> Path:
    return change_manifest(model, tmp_path / "alerting", operating_point=POINT)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_columns_tell_class_probability_and_alert(
    alerting: Path, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    code, rows, _ = run(capsys, "--model", alerting, *files)
    assert code == 0
    heads = ["'=malignant" if name.startswith("=") else name for name in CLASSES]
    assert list(rows[0]) == ["file", *heads, "predicted", "probability", "alert", "model", "note"]
    limit = 1 / (1 + np.exp(-0.3))
    for row in rows:
        shares = [float(row[name]) for name in heads]
        assert row["predicted"] == heads[int(np.argmax(shares))]
        assert float(row["probability"]) == max(shares)
        assert row["alert"] == ("yes" if shares[1] + shares[2] >= limit else "no")
    assert {row["alert"] for row in rows} == {"yes", "no"}, "a test of both"


def test_a_model_of_before_has_no_alerts(model: Path, files: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    rows = run(capsys, "--model", model, files[0])[1]
    assert "alert" not in rows[0]
    assert rows[0]["predicted"] in {"benign", "'=malignant", "other"}


@pytest.mark.parametrize(
    "point", [{"alert_classes": ["none"], "threshold": 0.0}, {"threshold": 1.0}, POINT | {"threshold": "x"}]
)
def test_an_operating_point_that_cannot_be_is_refused(
    model: Path, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], point: dict[str, Any]
) -> None:
    code, _, error = run(capsys, "--model", change_manifest(model, tmp_path / "bad", operating_point=point), files[0])
    assert code == 1
    assert "is no exported model" in error


def test_the_page_shows_alerts_first_and_escapes_names(
    alerting: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(6):
        Image.fromarray(make_pixels(30 + 5 * number, 50)).save(folder / f"<img src=x> {number}.png")
    (folder / "broken.png").write_bytes(b"no image")
    code = run(capsys, "--model", alerting, folder, "--csv", tmp_path / "o.csv", "--report", tmp_path / "page.html")[0]
    assert code == 0
    page = (tmp_path / "page.html").read_text()
    assert "<img src=x>" not in page
    assert "&lt;img src=x&gt; 3.png" in page
    assert len(re.findall('<img src="data:image/jpeg;base64,', page)) == 6
    assert "default-src 'none'; img-src data:" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    least = 1 / (1 + np.exp(-0.3))
    assert f"An alert: the alert classes ('=malignant, other) have together a probability of at least {least:.3f}" in (
        html.unescape(page)
    )
    for row in read(tmp_path / "o.csv"):
        if row["alert"]:
            together = float(row["'=malignant"]) + float(row["other"])
            assert f"<p>alert classes {together:.2f}</p>" in page
    alerts = [row for row in read(tmp_path / "o.csv") if row["alert"] == "yes"]
    assert f"7 files: {len(alerts)} with an alert, 1 not read." in page
    assert page.index("<h2>Alerts") < page.index("<h2>The least certain") < page.index("<h2>Not read")


def watch(capsys: pytest.CaptureFixture[str], model: Path, folder: Path, table: Path) -> str:
    code, _, error = run(capsys, "--model", model, "--watch", folder, "--csv", table, "--once")
    assert code == 0, error
    return error


def test_a_watched_folder_is_answered_once_and_goes_on_after_a_stop(
    alerting: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, table = tmp_path / "in", tmp_path / "out.csv"
    folder.mkdir()
    Image.fromarray(make_pixels(40, 40)).save(folder / "a.png")
    watch(capsys, alerting, folder, table)
    first = table.read_text()
    watch(capsys, alerting, folder, table)
    assert table.read_text() == first
    Image.fromarray(make_pixels(45, 40)).save(folder / "b.png")
    table.write_text(first + f"{folder}/b.png,0.1")  # cut off in the middle of a line
    watch(capsys, alerting, folder, table)
    assert [Path(row["file"]).name for row in read(table)] == ["a.png", "b.png"]
    assert table.read_text().startswith(first)


def test_a_table_of_another_model_is_not_continued(
    alerting: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    table = tmp_path / "out.csv"
    table.write_text("file,benign,model,note\n")
    code, _, error = run(capsys, "--model", alerting, "--watch", tmp_path / "in", "--csv", table, "--once")
    assert code == 1
    assert "has other columns than this model's table" in error


def test_what_leaves_the_range_of_training_is_said_once_and_logged(
    alerting: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, table = tmp_path / "in", tmp_path / "out.csv"
    folder.mkdir()
    for number in range(150):
        bright = 250 if number >= 50 else 120
        Image.fromarray(np.full((20, 20, 3), bright, np.uint8) + np.uint8(number % 3)).convert("RGB").save(
            folder / f"{number:03d}.png"
        )
    error = watch(capsys, alerting, folder, table)
    assert error.count("have left the range") == 1
    log = read(tmp_path / "out.drift.csv")
    assert [row["images"] for row in log] == ["50", "50", "50"]
    assert [round(float(row["mean"]), 1) for row in log] == [0.5, 1.0, 1.0]
    assert {"probability", "alerts", "outside", "std"} <= set(log[0])


@pytest.mark.parametrize(
    "arguments", [["--watch", "."], [], ["--watch", "nowhere", "--csv", "x.csv"], ["a.png", "--watch", "."]]
)
def test_arguments_that_do_not_go_together(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        predict.main(arguments)
    assert end.value.code == 2


def test_files_whose_names_cannot_stand_in_the_table_are_told_apart(
    alerting: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, table = tmp_path / "in", tmp_path / "out.csv"
    folder.mkdir()
    for name in ("a?.png", "a\x07.png"):
        Image.fromarray(make_pixels(40, 40)).save(folder / name)
        watch(capsys, alerting, folder, table)
    first = table.read_text()
    Image.fromarray(make_pixels(40, 40)).save(folder / "a\t.png")
    watch(capsys, alerting, folder, table)
    watch(capsys, alerting, folder, table)
    names = [Path(row["file"]).name for row in read(table)]
    assert len(set(names)) == len(names) == 3
    assert names[0] == "a?.png"
    assert table.read_text().startswith(first)


def test_a_pipe_in_a_watched_folder_is_no_image(
    alerting: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, table = tmp_path / "in", tmp_path / "out.csv"
    folder.mkdir()
    os.mkfifo(folder / "a.png")
    Image.fromarray(make_pixels(40, 40)).save(folder / "b.png")
    watch(capsys, alerting, folder, table)
    assert [Path(row["file"]).name for row in read(table)] == ["b.png"]


@pytest.mark.parametrize("seconds", ["inf", "nan", "-1", "0"])
def test_a_pause_that_cannot_be_is_refused(
    seconds: str, alerting: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ("--watch", tmp_path, "--csv", tmp_path / "x.csv", "--every", seconds)
    with pytest.raises(SystemExit):
        run(capsys, "--model", alerting, *told)
    assert "allowed is --every from 0.1 to 86400" in capsys.readouterr().err


def test_a_damaged_table_is_refused_in_one_line(
    alerting: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    table = tmp_path / "out.csv"
    table.write_text('"' + "x" * 140_000 + "\n")
    code, _, error = run(capsys, "--model", alerting, "--watch", tmp_path / "in", "--csv", table, "--once")
    assert code == 1
    assert "is no table of answers" in error


def test_expected_share_of_alerts_is_that_of_the_stated_prevalence() -> None:
    """0.1 x 0.9 + 0.9 x 0.2 = 0.27; on validation 1/4 x 0.9 + 3/4 x 0.2 = 0.375. The ends against scipy's."""
    reached = {"n_with": 100, "n_without": 300, "sensitivity": 0.9, "specificity": 0.8}
    found = predict_watch.expect_alerts({"prevalence": 0.1, "validation": reached})
    assert found is not None
    assert found.share == pytest.approx(0.27)
    own, other = (binomtest(k, n).proportion_ci(method="wilson") for k, n in ((90, 100), (60, 300)))
    low, high = (0.1 * own[end] + 0.9 * other[end] for end in (0, 1))
    assert found.low == binom.ppf(0.001, predict_watch.WINDOW, low)
    assert found.high == binom.ppf(0.999, predict_watch.WINDOW, high)
    plain = predict_watch.expect_alerts({"prevalence": None, "validation": reached})
    assert plain is not None
    assert plain.share == pytest.approx(0.375)
    assert plain.where == "on validation images"


@pytest.mark.parametrize(
    "reached", [None, [], {"n_with": "x"}, {"n_with": 0, "n_without": 9, "sensitivity": 1, "specificity": 1}, {}]
)
def test_an_operating_point_that_tells_nothing_gives_no_range(reached: object) -> None:
    assert predict_watch.expect_alerts({"validation": reached}) is None
    assert predict_watch.expect_alerts({}) is None


def test_alerts_that_leave_their_range_are_said_once_and_stand_beside_what_was_expected(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything raises an alert, of which one in a hundred should."""
    reached = {"n_with": 100, "n_without": 10_000, "sensitivity": 0.9, "specificity": 0.999}
    point = POINT | {"threshold": -90.0, "prevalence": None, "validation": reached}
    folder, table = tmp_path / "in", tmp_path / "out.csv"
    folder.mkdir()
    for number in range(100):
        Image.fromarray(make_pixels(40, 40)).save(folder / f"{number:03d}.png")
    alerting = change_manifest(model, tmp_path / "alerting", operating_point=point)
    error = watch(capsys, alerting, folder, table)
    assert error.count("Of the last 50 images 50 raised an alert; 0 to ") == 1
    log = read(tmp_path / "out.drift.csv")
    assert [(row["alerts"], row["expected_alerts"]) for row in log] == [("1", "0.009901")] * 2
    # A log that was begun without these columns goes on as it is.
    table.unlink()
    (tmp_path / "out.drift.csv").write_text(",".join(predict_watch.COLUMNS) + "\n")
    watch(capsys, alerting, folder, table)
    lines = (tmp_path / "out.drift.csv").read_text().splitlines()
    assert [len(line.split(",")) for line in lines] == [len(predict_watch.COLUMNS)] * 3


def test_a_table_tells_files_of_one_shown_name_apart(
    alerting: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the table of a watched folder does, with the same names."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a?.png", "a\x07.png", "a\t.png"):
        Image.fromarray(make_pixels(40, 40)).save(folder / name)
    rows = run(capsys, "--model", alerting, folder)[1]
    assert len({row["file"] for row in rows}) == 3
    watch(capsys, alerting, folder, tmp_path / "out.csv")
    assert {row["file"] for row in read(tmp_path / "out.csv")} == {row["file"] for row in rows}
    assert Path(rows[-1]["file"]).name == "a?.png"
