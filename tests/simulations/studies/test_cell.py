"""One cell of a study: collected without a run where there is one already; and a real study of two cells, stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from fedmed.storage.run_folder import RunFolder
from simulations.run import main
from simulations.studies.cell import CellFailedError, CellRunner
from simulations.studies.study import load_study, read_progress

ROOT = Path(__file__).resolve().parents[3]
REPORT = {
    "environment": {},
    "synthetic": True,
    "classes": ["a", "b"],
    "rounds": 2,
    "chosen_round": 2,
    "figures": {"balanced_accuracy": {"value": 0.5, "n": 4, "better": "up", "interval": None}},
    "sites": {"north": {"test": {"balanced_accuracy": {"value": 0.5, "n": 4, "better": "up"}}}},
}
STUDY = {
    "name": "pair",
    "base": "base.yaml",
    "arms": {
        "plain": {"description": "as it is"},
        "agnostic": {"description": "minimax", "set": {"aggregation.fair": {"kind": "agnostic"}}},
    },
    "baseline": "plain",
    "seeds": [0],
    "figures": ["balanced_accuracy", "gaps.sex.gap_accuracy", "benefit.worse"],
    "front": {"x": "balanced_accuracy", "y": ["gaps.sex.gap_accuracy"]},
}
BASE = {
    "sites": 2,
    "rounds": 3,
    "model": {"name": "mobilenet_v2"},
    "data": {"source": "phantom", "images_per_site": 60, "image_size": 32, "num_classes": 3},
    "workers": 1,
}


@pytest.fixture
def study_file(tmp_path):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))
    path = tmp_path / "pair.yaml"
    path.write_text(yaml.safe_dump(STUDY, sort_keys=False))
    return path


def finish_run(folder, cell, seconds):
    """Leave what a simulation leaves that was finished before its result was collected."""
    run = RunFolder(folder / f"{cell.name}-{cell.digest[:8]}")
    run.report.mkdir(parents=True)
    (run.report / "report.json").write_text(json.dumps(REPORT))
    run.finished_file.write_text('{"chosen_round": 2}')
    (folder / f"{run.path.name}.wall_s").write_text(str(seconds))
    return run


@pytest.mark.parametrize("keep", [False, True])
def test_a_run_that_is_finished_is_collected(study_file, tmp_path, keep):
    cell = load_study(study_file).cells[0]
    run = finish_run(tmp_path / "runs", cell, 12.5)
    result = CellRunner(tmp_path / "runs", keep=keep)(cell, lambda rounds: None)
    assert result["figures"]["balanced_accuracy"]["value"] == 0.5
    assert result["wall_s"] == 12.5
    assert run.path.exists() == keep


def test_a_report_that_cannot_be_read_fails_the_cell(study_file, tmp_path):
    cell = load_study(study_file).cells[0]
    run = finish_run(tmp_path / "runs", cell, 1.0)
    (run.report / "report.json").write_text('{"figures": {}}')
    with pytest.raises(CellFailedError, match="report"):
        CellRunner(tmp_path / "runs")(cell, lambda rounds: None)


@pytest.mark.parametrize(
    "arguments",
    [["--study", "x", "--config", "y"], ["--study", "x", "--resume", "y"], ["--table"], ["--keep"]],
)
def test_arguments_that_do_not_belong_together(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "--study" in capsys.readouterr().err


def test_the_table_alone_says_that_it_is_incomplete(study_file, tmp_path, capsys):
    assert main(["--study", str(study_file), "--table", "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "Incomplete: 0 of 2 cells done" in told
    assert f"table: {tmp_path / 'out' / 'table.html'}" in told


def test_a_missing_study_is_explained(capsys, tmp_path):
    assert main(["--study", str(tmp_path / "nothing.yaml")]) == 1
    assert "nothing.yaml' does not exist" in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_study_is_stopped_and_goes_on(study_file, tmp_path):
    """Stopped by Ctrl-C in its second cell, the study keeps the first and ends with both."""
    command = [
        *(sys.executable, str(ROOT / "simulations" / "run.py"), "--study", str(study_file)),
        *("--out", str(tmp_path / "out")),
    ]
    first = tmp_path / "out" / "plain-0.json"
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, start_new_session=True)
    end = time.monotonic() + 300
    while not first.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "no cell was finished"
        time.sleep(0.1)
    time.sleep(5)  # the second cell is under way
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    assert "Finished cells are saved" in process.communicate()[1]
    written = first.stat().st_mtime_ns
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 cells done" in done.stdout
    assert first.stat().st_mtime_ns == written
    study = load_study(study_file, results=tmp_path / "out")
    progress = read_progress(study)
    assert progress.is_complete
    result = progress.results["agnostic", 0]
    assert set(result["figures"]["sensitivity"]["by_class"]) == set(result["classes"])
    assert result["gaps"]["sex"]["gap_accuracy"]["better"] == "down"
    assert sum(map(len, result["benefit_summary"].values())) == 2
    assert not list((tmp_path / "runs" / "studies" / "pair").glob("*/report"))
