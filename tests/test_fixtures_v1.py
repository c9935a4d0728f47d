"""Files that fedmed wrote before its formats had numbers, ``tests/fixtures/v1``, opened with the code of today.

``tests/fixtures/v1/README.md`` says what they are and how they were made. They are never changed to make a test pass.
"""

import csv
import hashlib
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import safetensors.numpy
import torch
import yaml

import client.app
import fedmed.export.__main__
import fedmed.predict
import fedmed.training.fit
import server.app
import simulations.run
import simulations.simulation
from client.hospital.told_rows import read_told
from client.site import app as client_app
from fedmed.config.client import load_client_config
from fedmed.processes import find_free_port
from fedmed.storage.audit import verify_audit
from fedmed.storage.checkpoints import RunCheckpoints
from fedmed.storage.history import read_history
from fedmed.storage.run_folder import RunFolder
from fedmed.storage.site_state import SiteState
from server.finish.report import write_final_report
from simulations.backend.grid import SimulatedNode
from tests.fixtures.digests import digest
from tests.support import federation
from tests.support.local_grid import LocalGrid

assert federation  # importing it registers the networks "tiny" and "tiny_bag"
ROOT = Path(__file__).resolve().parents[1]
V1 = ROOT / "tests" / "fixtures" / "v1"
EXPECTED: dict[str, Any] = json.loads((V1 / "expected.json").read_text())
FROZEN = "25b16dd32a58b2be681bc9a2eb46ce588419afb6d16da6d6e66b98566dcc5270"
"""Over all files that fedmed wrote."""
RULE = "files of version 1 are opened, or refused in one line that says what to do (tests/fixtures/v1/README.md)"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads, handlers = torch.get_num_threads(), {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    hangup = signal.getsignal(signal.SIGHUP)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    for number, handler in {**handlers, signal.SIGHUP: hangup}.items():
        signal.signal(number, handler)


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Call a command as a person types it, but in this process, and return what it prints."""

    def call(main: Callable[[list[str]], int], *arguments: str | Path, code: int = 0) -> str:
        found = main([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        assert found == code, f"{RULE}; it said: {shown.out}{shown.err}"
        return shown.out if code == 0 else shown.out + shown.err

    return call


def copy_federation(folder: Path) -> Path:
    """Copy the federation's folder, with the modes that Git does not keep."""
    copied = copy("federation", folder)
    for key in copied.rglob("*.key"):
        key.chmod(0o600)
    return copied


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_federation(tmp_path_factory.mktemp("v1"))


def copy(name: str, folder: Path) -> Path:
    return Path(shutil.copytree(V1 / name, folder / name))


NO_INTERVAL = {"class_auc_std"}
"""Figures of which no valid interval is known."""


def check_figures(run: Path, expected: dict[str, Any], tolerance: float, loss_tolerance: float = 0.0) -> None:
    """Compare a run's history and report with what was recorded."""
    history = read_history(run / "history.jsonl")
    assert [line.round for line in history] == [line["round"] for line in expected["history"]], RULE
    for line, wanted in zip(history, expected["history"], strict=True):
        assert line.loss == pytest.approx(wanted["loss"], abs=loss_tolerance), RULE
        assert line.weights == pytest.approx(wanted["weights"]), RULE
        found = line.validation.pooled["balanced_accuracy"]
        assert found == pytest.approx(wanted["balanced_accuracy"], abs=tolerance), RULE
    report = json.loads((run / "report" / "report.json").read_text())
    assert report["chosen_round"] == expected["chosen_round"], RULE
    for name, wanted in expected["figures"].items():
        found = report["figures"][name]
        assert found["n"] == wanted["n"], f"{name}: {RULE}"
        if name == "auc" and (found.get("within_sites") or "too coarse" in found.get("reason", "")):
            continue  # this weak model's scores are in a few bins, of which version 1 did not know how wrong they are
        assert found["value"] == pytest.approx(wanted["value"], abs=tolerance), f"{name}: {RULE}"
        # Intervals are made in another way since; what they are about is the same.
        assert (found["interval"] is None) <= (wanted["interval"] is None or name in NO_INTERVAL), f"{name}: {RULE}"
        if found["interval"] is not None:
            assert found["interval"][0] <= found["value"] <= found["interval"][1], name
    by_sex = {name: figures["accuracy"] for name, figures in report["groups"]["sex"].items()}
    for name, wanted in expected["accuracy_by_sex"].items():
        assert by_sex[name]["n"] == wanted["n"], f"{name}: {RULE}"
        assert by_sex[name]["value"] == pytest.approx(wanted["value"], abs=tolerance), f"{name}: {RULE}"
    assert report["benefit_summary"] == expected["benefit"], RULE
    temperature = report["calibration"]["temperature"]["temperature"]
    assert temperature == pytest.approx(expected["temperature"], abs=tolerance), RULE


def check_checkpoints(run: Path, expected: dict[str, str], rounds: list[int]) -> None:
    """Check that the newest checkpoint opens, and the tensors of all."""
    checkpoints = RunCheckpoints(run / "checkpoints")
    assert [number for number in checkpoints.rounds if number] == rounds, RULE
    newest = checkpoints.load_latest()
    assert newest is not None, RULE
    assert (newest.round, newest.problems) == (rounds[-1], []), RULE
    wanted = safetensors.numpy.load_file(newest.model_path)
    assert sorted(newest.load_model()) == sorted(wanted), RULE
    for name in ("initial", *(f"round_{number:05d}" for number in rounds)):
        file = run / "checkpoints" / ("initial.safetensors" if name == "initial" else f"{name}/model.safetensors")
        assert digest(file) == expected[name], f"{name}: {RULE}"


def test_nobody_has_changed_them() -> None:
    found = hashlib.sha256()
    folders = ("artefact", "federation", "finished_run", "unfinished_run")
    for file in sorted(path for folder in folders for path in (V1 / folder).rglob("*") if path.is_file()):
        if "__pycache__" not in file.parts:
            found.update(f"{file.relative_to(V1).as_posix()}\n".encode() + hashlib.sha256(file.read_bytes()).digest())
    assert found.hexdigest() == FROZEN, "a fixture of version 1 was changed; take it back from the repository"


def test_finished_run_shows_its_figures() -> None:
    run = V1 / "finished_run"
    check_figures(run, EXPECTED["finished_run"], 0.0)
    check_checkpoints(run, EXPECTED["finished_run"]["tensors"], [1, 2])


@pytest.mark.parametrize("name", ["finished_run", "federation/run"])
def test_report_is_drawn_again_from_the_tables(name: str, tmp_path: Path) -> None:
    run = Path(shutil.copytree(V1 / name, tmp_path / "run"))
    shutil.rmtree(run / "report")
    expected = EXPECTED[name.split("/", maxsplit=1)[0]]
    write_final_report(RunFolder.open(run), expected["chosen_round"])
    check_figures(run, expected, 1e-9)
    old, new = (json.loads((one / "report" / "report.json").read_text()) for one in (V1 / name, run))
    for part in ("classes", "sites", "groups", "gaps", "test_images", "composition", "confusion"):
        found, wanted = drop_coarse_areas(new[part], old[part])
        assert found == wanted, f"{part}: {RULE}"


CHANGED = {"interval", "mean_interval", "p_value", "family_p", "chance", "chance_mean", "flagged", "classwise_ece"}


def drop_coarse_areas(new: Any, old: Any) -> tuple[Any, Any]:
    """Return both without the AUC and its gaps where histograms are too coarse, and without keys that version 1 lacked.

    Nor are what chance does and its intervals compared, and the class-wise calibration error, which are computed in
    another way since.
    """
    if not isinstance(new, dict) or not isinstance(old, dict):
        return new, old
    later = {"bound", "within_sites", "other_pooled", "other_sites", "over_classes", "pooled", "patients"}
    later |= {"overall", "lacking", "limit", "class_sensitivity_gap"}
    coarse = {
        key
        for key in ("auc", "class_auc_std", "worst_group_auc", "gap_auc", "std_auc", "es_auc")
        if isinstance(new.get(key), dict) and "too coarse" in (new[key].get("reason") or "")
    }
    assert set(new) - (later - set(old)) == set(old), RULE
    pairs = {key: drop_coarse_areas(new[key], old[key]) for key in set(old) - coarse - CHANGED}
    return {key: pair[0] for key, pair in pairs.items()}, {key: pair[1] for key, pair in pairs.items()}


def test_finished_run_is_exported(say: Callable[..., str], tmp_path: Path) -> None:
    run = copy("finished_run", tmp_path)
    shown = say(fedmed.export.__main__.main, run, "--out", tmp_path / "model", "--check")
    assert "36 test images of 2 sites" in shown, RULE
    folders = (V1 / "artefact" / "model", tmp_path / "model")
    old, new = (json.loads((folder / "manifest.json").read_text()) for folder in folders)
    for key in ("classes", "preprocessing", "expected"):
        assert new[key] == old[key], f"{key}: {RULE}"
    assert new["temperature"] == pytest.approx(old["temperature"]), RULE
    weights = [safetensors.numpy.load_file(folder / "model.safetensors") for folder in folders]
    assert sorted(weights[0]) == sorted(weights[1]), RULE
    for name, tensor in weights[0].items():
        assert weights[1][name] == pytest.approx(tensor, abs=1e-6), f"{name}: {RULE}"


class GridInPlaceOfRay(LocalGrid):
    """Answers for the sites in this process, so that a test needs no Ray."""

    def __init__(self, client_app_name: str, nodes: list[SimulatedNode], **settings: object) -> None:
        super().__init__(client_app, {node.node_id: dict(node.config) for node in nodes})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: object) -> None:
        pass


def cut_as_version_1(order: np.ndarray, batch_size: int) -> list[list[int]]:
    """Return the batches of version 1: full ones and a rest, which here has more than one image."""
    return [order[first : first + batch_size].tolist() for first in range(0, len(order), batch_size)]


def check_end_of_the_unfinished_run(run: Path) -> None:
    # With the batches of version 1 the same bits where these files were made. Another processor rounds otherwise, and
    # an image may change sides. A run without the sites' momentum is 0.016 off in a loss, one without the residual
    # 0.0004.
    check_figures(run, EXPECTED["unfinished_run_at_its_end"], 0.05, loss_tolerance=0.0002)
    assert verify_audit(run / "audit.jsonl").ok, RULE
    digests = EXPECTED["unfinished_run_at_its_end"]["tensors"]
    assert digest(run / "checkpoints" / "initial.safetensors") == digests["initial"]


def test_unfinished_run_goes_on_to_the_end_that_it_would_have_had(
    say: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy("unfinished_run", tmp_path)
    check_checkpoints(run, EXPECTED["unfinished_run"]["tensors"], [1])
    before = (run / "checkpoints" / "round_00001" / "model.safetensors").read_bytes()
    history = (run / "history.jsonl").read_bytes()
    monkeypatch.setattr(simulations.simulation, "RayGrid", GridInPlaceOfRay)
    monkeypatch.setattr(fedmed.training.fit, "make_batches", cut_as_version_1)
    say(simulations.run.main, "--resume", run)
    assert (run / "checkpoints" / "round_00001" / "model.safetensors").read_bytes() == before, RULE
    assert (run / "history.jsonl").read_bytes().startswith(history), f"round 1 was done again; {RULE}"
    check_end_of_the_unfinished_run(run)


def test_states_of_sites_are_read() -> None:
    for name, expected in EXPECTED["site_states"].items():
        file = V1 / name
        number = int(file.stem.removeprefix("round_"))
        state = SiteState(file.parent)
        loaded = state.load_before(number + 1)
        assert loaded is not None, f"{name}: {RULE}"
        assert state.problems == [], f"{name}: {RULE}"
        found: dict[str, list[float]] = {}
        for key, tensor in loaded[0].items():
            total = found.setdefault(key.split("/", maxsplit=1)[0], [0, 0.0])
            total[0] += 1
            total[1] += float(tensor.double().abs().sum())
        assert sorted(found) == sorted(expected["kinds"]), f"{name}: {RULE}"
        for kind, (count, size) in expected["kinds"].items():
            assert found[kind] == [count, pytest.approx(size, rel=1e-12)], f"{kind} of {name}: {RULE}"


def test_kit_is_checked(kit: Path, say: Callable[..., str]) -> None:
    config = load_client_config(kit / "kits" / "site_01" / "client.yaml")
    assert (config.name, config.server, config.data.source) == ("site_01", "127.0.0.1:18443", "phantom"), RULE
    assert config.policy.suppression.k == 10, RULE
    shown = say(client.app.main, "--config", kit / "kits" / "site_01" / "client.yaml", "--check", "--offline", "--json")
    rows = {row["name"]: row for row in json.loads(shown)["checks"]}
    for name in ("site key", "release key", "state folder", "data", "split", "class counts"):
        assert rows[name]["status"] == "ok", f"{name}: {rows[name]['found']}; {RULE}"
    # Version 1 counted images; of patients, not every group of this site is large enough.
    assert rows["groups"]["status"] in {"ok", "warning"}, f"{rows['groups']['found']}; {RULE}"
    assert rows["groups"]["found"].count("site 2 of 2 rows; sex 2 groups") == 2, RULE
    assert rows["groups"]["found"].endswith("Groups from k = 10 and rows from k_row = 5 patients are told"), RULE
    assert "SHA256:" in rows["release key"]["found"]
    assert rows["data"]["found"] == "240 images: 156 for training, 36 for validation, 48 for the test", RULE
    assert rows["split"]["found"] == "the same images are for training, validation and test as before", RULE


def test_site_knows_what_it_has_told(kit: Path) -> None:
    state = kit / "kits" / "site_01" / "state"
    assert len(read_told(state / "told_rows" / "test.json").classes) == 48, RULE
    assert len(read_told(state / "told_rows" / "validation.json").classes) == 36, RULE


def test_status_of_a_finished_federation(kit: Path, say: Callable[..., str]) -> None:
    status = json.loads(say(server.app.main, "--config", kit / "server.yaml", "--status", "--json"))
    assert (status["state"], status["rounds"], status["running"]) == ("finished", 2, False), RULE
    assert {name: site["collected"] for name, site in status["sites"].items()} == {"site_01": True, "site_02": True}
    check_checkpoints(kit / "run", EXPECTED["federation"]["tensors"], [1, 2])


def commands_of(kit: Path) -> list[tuple[Callable[[list[str]], int], Path, Path]]:
    """Return the two commands that verify a log, with their settings and their log."""
    site = kit / "kits" / "site_01"
    return [
        (server.app.main, kit / "server.yaml", kit / "run" / "audit.jsonl"),
        (client.app.main, site / "client.yaml", site / "state" / "audit.jsonl"),
    ]


@pytest.mark.parametrize("whose", [0, 1], ids=["server", "site"])
def test_audit_log_holds_and_one_changed_byte_is_refused_in_one_line(
    whose: int, kit: Path, say: Callable[..., str]
) -> None:
    command, config, log = commands_of(kit)[whose]
    found = json.loads(say(command, "--config", config, "--verify-audit", "--json"))
    expected = EXPECTED["audit_logs"][str(Path("federation", log.relative_to(kit)))]
    assert (found["ok"], found["num_entries"], found["head"]) == (True, *expected.values()), RULE
    whole = log.read_bytes()
    place = whole.index(b"\n") + 40
    log.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    try:
        shown = say(command, "--config", config, "--verify-audit", code=1)
    finally:
        log.write_bytes(whole)
    assert shown.startswith("The chain is broken: "), RULE
    assert "(1 entries are sound.)" in shown, RULE
    assert shown.count("\n") == 1, RULE


@pytest.mark.parametrize("name", ["finished_run", "unfinished_run"])
def test_audit_log_of_a_simulation_holds(name: str) -> None:
    report = verify_audit(V1 / name / "audit.jsonl")
    expected = EXPECTED["audit_logs"][f"{name}/audit.jsonl"]
    assert (report.ok, report.num_entries, report.head) == (True, *expected.values()), RULE


def read_table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def check_table(file: Path) -> None:
    """Compare with the table that was written then; further columns may stand between its own."""
    found, expected = read_table(file), read_table(V1 / "artefact" / "predictions.csv")
    assert len(found) == len(expected), RULE
    assert [name for name in found[0] if name in expected[0]] == list(expected[0]), RULE
    classes = ("pattern_plain", "pattern_mesh", "pattern_globules")
    for row, wanted in zip(found, expected, strict=True):
        for name in wanted:
            if name in classes:
                assert float(row[name]) == pytest.approx(float(wanted[name]), abs=1e-5), f"{name}: {RULE}"
            else:
                assert row[name] == wanted[name], f"{name}: {RULE}"


def test_artefact_predicts_what_it_did(
    say: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copy("artefact", tmp_path))
    say(fedmed.predict.main, "--model", "model", "image.png", "--csv", "today.csv")
    check_table(Path("today.csv"))
    command = [sys.executable, "model/predict.py", "image.png", "--csv", "own.csv"]  # the program of then
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    check_table(Path("own.csv"))


def test_program_in_the_artefact_finds_our_networks() -> None:
    """``load_model.py`` in a model that was given away imports fedmed: the names that it imports stay."""
    folder = V1 / "artefact" / "model"
    with torch.no_grad():
        logits = runpy.run_path(str(folder / "load_model.py"))["load_model"](folder)(torch.zeros(1, 3, 16, 16))
    assert logits.shape == (1, 3), RULE


def test_model_that_came_home_predicts(say: Callable[..., str], kit: Path, tmp_path: Path) -> None:
    model = kit / "kits" / "site_01" / "state" / "model"
    command = ["--model", model, V1 / "artefact" / "image.png", "--csv", tmp_path / "out.csv"]
    shown = say(fedmed.predict.main, *command, code=1)
    assert "release.pub is missing" in shown, RULE
    assert "--key" in shown, RULE
    say(fedmed.predict.main, *command, "--key", kit / "release.pub")
    (row,) = read_table(tmp_path / "out.csv")
    assert float(row["pattern_plain"]) + float(row["pattern_mesh"]) == pytest.approx(1.0, abs=1e-5), RULE
    assert row["model"] == hashlib.sha256((model / "model.onnx").read_bytes()).hexdigest()


@pytest.mark.slow
def test_unfinished_run_goes_on_with_ray(tmp_path: Path) -> None:
    run = copy("unfinished_run", tmp_path)
    command = [sys.executable, "-m", "tests.fixtures.launch", "simulate", "--resume", str(run)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{RULE}; it said: {done.stderr}"
    # Today's batches are others, so that the two rounds that are left end near, but not where they would have ended.
    expected = EXPECTED["unfinished_run_at_its_end"]
    history = read_history(run / "history.jsonl")
    assert [line.loss for line in history] == pytest.approx([line["loss"] for line in expected["history"]], abs=0.1)
    assert history[0].loss == expected["history"][0]["loss"], RULE
    assert digest(run / "checkpoints" / "initial.safetensors") == expected["tensors"]["initial"]
    assert verify_audit(run / "audit.jsonl").ok, RULE


@pytest.mark.slow
def test_finished_federation_is_served_again(tmp_path: Path) -> None:
    """Flower's database of then is opened, and as all sites have the model, the server ends by itself."""
    kit, address = copy_federation(tmp_path), f"127.0.0.1:{find_free_port()}"
    settings = yaml.safe_load((kit / "server.yaml").read_text()) | {"address": address, "listen": address}
    (kit / "server.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "tests.integration.support.launch", "server", "--config", str(kit / "server.yaml")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{RULE}; it said: {done.stdout}{done.stderr}"
    assert verify_audit(kit / "run" / "audit.jsonl").ok, RULE
