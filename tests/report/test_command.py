"""``python -m fedmed.report``: a page from an old report, or one line that says why not."""

import json
import shutil
from pathlib import Path

import pytest

from fedmed.report import write_report
from fedmed.report.__main__ import main
from fedmed.report.document import build_document
from tests.report.support.example import make_content
from tests.report.support.page_parser import Page
from tests.report.test_page import check_numbers

OLD_RUN = Path(__file__).parents[1] / "fixtures" / "v1" / "finished_run"


def test_a_page_of_a_report_of_version_1_is_drawn_elsewhere(tmp_path, capsys):
    assert main([str(OLD_RUN), "--out", str(tmp_path / "page")]) == 0
    assert "index.html" in capsys.readouterr().out
    assert sorted(file.name for file in (tmp_path / "page").iterdir()) == ["index.html", "report.json", "tripod_ai.md"]
    old = json.loads((OLD_RUN / "report" / "report.json").read_bytes())
    assert json.loads((tmp_path / "page" / "report.json").read_bytes()) == old
    check_numbers(old, Page((tmp_path / "page" / "index.html").read_text()))


def test_the_page_in_a_run_is_drawn_again_and_its_numbers_stay(tmp_path):
    page = write_report(tmp_path, make_content())
    drawn, numbers = page.read_bytes(), page.with_name("report.json").stat().st_mtime_ns
    page.unlink()
    assert main([str(tmp_path)]) == 0
    assert page.read_bytes() == drawn
    assert page.with_name("report.json").stat().st_mtime_ns == numbers


def test_figures_are_computed_again_from_the_tables(tmp_path):
    assert main([str(OLD_RUN), "--tables", "--out", str(tmp_path / "page")]) == 0
    document = json.loads((tmp_path / "page" / "report.json").read_bytes())
    assert document["format"] == 1, "version 0.1.0 wrote none"
    assert document["flow"]["sites"]
    old = json.loads((OLD_RUN / "report" / "report.json").read_bytes())
    assert document["figures"]["accuracy"]["value"] == pytest.approx(old["figures"]["accuracy"]["value"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        (b"{}", "another form"),
        (b"not json", "is damaged, or another file"),
        (b'{"format": 99}', "format"),
    ],
)
def test_what_is_no_report_is_refused_in_one_line(tmp_path, capsys, content, words):
    if content is not None:
        (tmp_path / "report.json").write_bytes(content)
    assert main([str(tmp_path), "--out", str(tmp_path / "page")]) == 1
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1
    assert not (tmp_path / "page").exists()


def test_tables_of_a_run_that_goes_on_are_refused(tmp_path, capsys):
    shutil.copytree(OLD_RUN, tmp_path / "run")
    (tmp_path / "run" / "finished.json").unlink()
    assert main([str(tmp_path / "run"), "--tables"]) == 1
    assert "no finished run" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, capsys, name):
    write_report(tmp_path / "run", make_content())
    (tmp_path / "file").write_text("something else")
    assert main([str(tmp_path / "run"), "--out", str(tmp_path / name)]) == 1
    error = capsys.readouterr().err
    assert "cannot be written into" in error
    assert error.count("\n") == 1


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    told = capsys.readouterr().out
    assert "examples:" in told
    assert "--tables" in told


@pytest.mark.parametrize("change", ["flow", "classes", "renamed"])
def test_numbers_that_do_not_belong_together_are_refused_in_one_line(tmp_path, capsys, change):
    document = json.loads(json.dumps(build_document(make_content())))
    if change == "flow":
        del document["flow"]["total"]["test"]
    elif change == "classes":
        document["classes"] = []
    else:
        document["classes"][0] = "another"
    (tmp_path / "report.json").write_text(json.dumps(document))
    assert main([str(tmp_path), "--out", str(tmp_path / "page")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Nothing was drawn.")
    assert error.count("\n") == 1
