"""The real command, as a user types it, in processes of its own."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from fedmed.storage.audit import verify_audit
from simulations.run import main

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("FEDMED_DATA", ROOT.parent / "shared" / "data"))
ROUNDS = 4
SMALL = [
    f"rounds={ROUNDS}",
    "model.name=mobilenet_v2",
    "data.images_per_site=60",
    "data.image_size=32",
    "data.num_classes=3",
    "sites=3",
]
KEEPING = ["batch_norm=local", "training.keep_momentum=true"]


def command(*arguments: str | Path, settings: Sequence[str] = ()) -> list[str]:
    changes = [part for setting in settings for part in ("--set", setting)]
    return [sys.executable, str(ROOT / "simulations" / "run.py"), *map(str, arguments), *changes]


def finish(*arguments: str | Path, settings: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(*arguments, settings=settings), capture_output=True, text=True, timeout=300, check=False, cwd=ROOT
    )
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    return done


def final_model(run: Path) -> bytes:
    return (run / "checkpoints" / f"round_{ROUNDS:05d}" / "model.safetensors").read_bytes()


def count_rounds(run: Path) -> int:
    history = run / "history.jsonl"
    return history.read_bytes().count(b"\n") if history.exists() else 0


def start_and_wait_for_round(
    run: Path, rounds: int, how: str = "--out", settings: Sequence[str] = ()
) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        command(how, run, settings=settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    end = time.monotonic() + 200
    while count_rounds(run) < rounds:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "no round was closed"
        time.sleep(0.05)
    return process


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., str]]:
    """Run the command in this process, for refusals: a process of its own would load libraries for seconds."""
    before = signal.getsignal(signal.SIGTERM)

    def call(*arguments: str | Path, settings: Sequence[str] = ()) -> str:
        assert main(command(*arguments, settings=settings)[2:]) == 1
        return capsys.readouterr().err

    yield call
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with one worker."""
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    done = finish("--out", run, settings=[*SMALL, *KEEPING, "workers=1"])
    assert done.returncode == 0, done.stderr
    return run


def test_finished_run_is_a_complete_folder(undisturbed: Path) -> None:
    made = {path.name for path in undisturbed.iterdir()}
    agreed = "config.yaml environment.json splits history.jsonl metrics.csv checkpoints report audit.jsonl model"
    assert set(agreed.split()) <= made
    report = json.loads((undisturbed / "report" / "report.json").read_text())
    assert report["synthetic"] is True
    assert len(report["sites"]) == 3
    assert 0.0 <= report["figures"]["balanced_accuracy"]["value"] <= 1.0
    assert verify_audit(undisturbed / "audit.jsonl").ok
    page = (undisturbed / "report" / "index.html").read_text()
    assert "ynthetic" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_run_that_is_stopped_then_killed_ends_with_the_same_bits_with_other_workers(
    undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    stop_by_ctrl_c(run, start_and_wait_for_round(run, 1, settings=[*SMALL, *KEEPING, "workers=2"]))
    process = start_and_wait_for_round(run, 2, "--resume")
    time.sleep(0.3)  # into the next round
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert count_rounds(run) < ROUNDS
    done = finish("--resume", run)
    assert done.returncode == 0, done.stderr
    assert final_model(run) == final_model(undisturbed)
    reports = [json.loads((folder / "report" / "report.json").read_text()) for folder in (run, undisturbed)]
    assert reports[0]["figures"] == reports[1]["figures"]


def stop_by_ctrl_c(run: Path, process: subprocess.Popen[str]) -> None:
    """It ends everything at once and says how to go on."""
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends Ctrl-C to the whole group
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"python simulations/run.py --resume {run}" in errors
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs(children, timeout=15)
    assert alive == []
    assert count_rounds(run) < ROUNDS


@pytest.mark.slow  # tests/simulations/backend/test_grid.py has the same without a whole run
def test_dead_worker_is_replaced(undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "worker-died"
    process = start_and_wait_for_round(run, 1, settings=[*SMALL, *KEEPING, "workers=2"])
    workers = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if any(part.startswith("ray::") and "Worker" in part for part in child.cmdline())
    ]
    assert workers
    workers[0].kill()
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert final_model(run) == final_model(undisturbed)


def test_existing_run_folder_is_refused_with_the_line_to_type(undisturbed: Path, say: Callable[..., str]) -> None:
    assert f"python simulations/run.py --resume {undisturbed}" in say("--out", undisturbed, settings=SMALL)


def test_finished_run_can_be_resumed_without_training_again(undisturbed: Path) -> None:
    before = final_model(undisturbed)
    assert finish("--resume", undisturbed).returncode == 0
    assert final_model(undisturbed) == before
    assert count_rounds(undisturbed) == ROUNDS


def test_resume_refuses_settings_that_change_results(undisturbed: Path) -> None:
    done = finish("--resume", undisturbed, settings=["seed=3"])
    assert done.returncode == 1
    assert "'seed' cannot change when a run is resumed. Allowed: workers" in done.stderr


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("model.name=adsr_resnet19", "There is no model 'adsr_resnet19'. Did you mean 'adsr_resnet18'?"),
        ("loss.cvs=1.0", "There is no loss 'cvs'. Did you mean 'cws'?"),
        ("runds=3", "there is no key 'runds' (value found: 3). Did you mean 'rounds'?"),
        ("rounds=many", "'rounds' is 'many'"),
    ],
)
def test_config_error_is_explained_before_anything_starts(
    tmp_path: Path, say: Callable[..., str], setting: str, expected: str
) -> None:
    assert expected in say("--out", tmp_path / "run", settings=[setting])
    assert not (tmp_path / "run").exists()


def test_config_error_ends_the_process(tmp_path: Path) -> None:
    done = finish("--out", tmp_path / "run", settings=["rounds=many"])
    assert done.returncode == 1
    assert "'rounds' is 'many'" in done.stderr
    assert not (tmp_path / "run").exists()


def test_help_teaches() -> None:
    done = finish("--help")
    assert done.returncode == 0
    for word in ("--config", "--out", "--set", "--resume", "examples:", "report/index.html", "exit code"):
        assert word in done.stdout


@pytest.fixture
def ham_slice(tmp_path: Path) -> Path:
    """Every twentieth image of each site of HAM10000, at least the first 40 rows of each."""
    source = DATA / "ham10000"
    if not (source / "labels.csv").is_file():
        pytest.skip(f"HAM10000 is not at {source}; FEDMED_DATA names the folder that holds it")
    with (source / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    by_site: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        by_site.setdefault(row["site"], []).append(row)
    chosen = [row for of_site in by_site.values() for row in of_site[:: max(1, len(of_site) // 60)]]
    for row in chosen:
        target = tmp_path / "data" / row["file"]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / row["file"], target)
    with (tmp_path / "data" / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(chosen)
    return tmp_path / "data"


def test_real_images_from_four_sites(ham_slice: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = [f"data.root={ham_slice}", "rounds=1", "model.name=mobilenet_v2", "data.image_size=32", "benefit=false"]
    done = finish("--config", ROOT / "configs" / "ham10000_sites.yaml", "--out", run, settings=settings)
    assert done.returncode == 0, done.stderr
    report = json.loads((run / "report" / "report.json").read_text())
    assert set(report["sites"]) == {"rosendahl", "vidir_modern", "vidir_molemax", "vienna_dias"}
    assert report["synthetic"] is False
    ids: dict[str, set[str]] = {}
    for split in (run / "splits").glob("*.csv"):
        with split.open(newline="") as file:
            for row in csv.DictReader(file):
                ids.setdefault(row["group"], set()).add(row["part"])
    assert all(len(parts) == 1 for parts in ids.values()), "a lesion is in two parts"


@pytest.mark.slow
def test_pooled_is_one_site_with_all_images(tmp_path: Path) -> None:
    done = finish("--out", tmp_path / "run", settings=[*SMALL, "rounds=1", "min_sites=2", "data.partition.kind=pooled"])
    assert done.returncode == 0, done.stderr
    assert "min_sites = 2 is lowered" in done.stderr
    report = json.loads((tmp_path / "run" / "report" / "report.json").read_text())
    assert len(report["sites"]) == 1
