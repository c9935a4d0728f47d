"""A server and two sites as real processes on loopback: the whole way, and faults that every change must survive."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from safetensors.numpy import load

from fedmed.config import RunConfig
from fedmed.export.check import check_hashes
from fedmed.storage.audit import verify_audit
from fedmed.storage.run_folder import RunFolder
from server.rounds.progress import LogListener
from simulations.simulation import run_simulation
from tests.data.conftest import write_image
from tests.integration.support import apps
from tests.integration.support.deployment import Deployment, deploy, wait_for

assert apps  # importing it registers the model "tiny"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """An undisturbed federation that has ended."""
    with deploy(tmp_path_factory.mktemp("undisturbed"), artefact=True, by_command=True) as deployment:
        server, clients = deployment.start()
        assert server.wait(120) == 0, server.text() + clients[0].text()
        for client in clients:
            assert client.wait(30) == 0, client.text()
        yield deployment


def test_run_folder_and_report_are_complete(finished: Deployment) -> None:
    run = finished.run_folder
    assert [record["round"] for record in finished.history()] == [1, 2, 3]
    assert all(finished.statuses(number) == {"site_01": "accepted", "site_02": "accepted"} for number in (1, 2, 3))
    report = json.loads((run.report / "report.json").read_text())
    assert report["synthetic"] is True
    assert report["thresholds"] == {"k": 10, "k_row": 5, "k_bin": 5, "unit": "patients"}
    assert (run.report / "index.html").is_file()
    assert verify_audit(run.audit_file).ok


def test_server_tells_where_it_is_and_who_is_there(finished: Deployment) -> None:
    text = (finished.folder / "server.txt").read_text()
    assert f"127.0.0.1:{finished.port}" in text
    assert "site_01 is connected" in text
    assert "site_02 is connected" in text
    assert "MiB to a site" in text


def test_model_comes_home(finished: Deployment) -> None:
    released = (finished.run_folder.path / "release" / "model.safetensors").read_bytes()
    for name in finished.names:
        state = finished.kit / "kits" / name / "state"
        assert (state / "model" / "model.safetensors").read_bytes() == released
        assert json.loads((state / "model" / "manifest.json").read_text())["classes"][0] == "pattern_plain"
        assert (state / "report" / "index.html").is_file()
        assert verify_audit(state / "audit.jsonl").ok


def test_both_sites_have_compared_the_forms_before_the_release(finished: Deployment) -> None:
    told = json.loads((finished.run_folder.tables / "release.json").read_text())
    assert sorted(told["sites"]) == finished.names
    for compared in told["sites"].values():
        assert compared["onnx"]["max_abs_error"] <= 1e-4
        assert compared["deploy"]["num_agreeing"] + compared["deploy"]["num_ties"] == compared["deploy"]["num_images"]
    events = [json.loads(line)["event"] for line in finished.run_folder.audit_file.read_text().splitlines()]
    assert events.count("compared") == 2
    manifest = json.loads((finished.kit / "kits" / "site_01" / "state" / "model" / "manifest.json").read_text())
    assert manifest["proof"]["sites"]["num_sites"] == 2


def test_released_model_classifies_a_file_at_a_site(finished: Deployment, tmp_path: Path) -> None:
    for number in range(2):
        write_image(tmp_path / "images" / f"{number}.png", number, (20, 16))
    model = finished.kit / "kits" / "site_02" / "state" / "model"
    check_hashes(model)
    command = [sys.executable, str(model / "predict.py"), str(tmp_path / "images"), "--csv", str(tmp_path / "out.csv")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["file"]).name for row in rows] == ["0.png", "1.png"]
    classes = ["pattern_plain", "pattern_mesh", "pattern_globules"]
    assert all(sum(float(row[name]) for name in classes) == pytest.approx(1, abs=1e-5) for row in rows)


def test_audit_of_a_site_lists_what_left(finished: Deployment) -> None:
    lines = (finished.kit / "kits" / "site_01" / "state" / "audit.jsonl").read_text().splitlines()
    sent = [entry["fields"] for entry in map(json.loads, lines) if entry["event"] == "sent"]
    # one description, three updates, three pairs of figures, one test, one comparison
    assert [entry["kind"] for entry in sent].count("train") == 3
    assert [entry["kind"] for entry in sent].count("figure") == 3
    assert [entry["kind"] for entry in sent].count("evaluate") == 1
    assert [entry["kind"] for entry in sent].count("query") == 1
    (compared,) = (entry for entry in sent if entry["kind"] == "release")
    assert compared["parts"][0]["keys"] == ["artefact_sha256", "comparison", "model_sha256"]


def test_model_travels_once_in_each_direction(finished: Deployment) -> None:
    records = finished.history()
    size = len(finished.final_model())
    assert records[0]["bytes_to_sites"] == 4 * size  # round 1: to train, and to evaluate
    assert [record["bytes_to_sites"] for record in records[1:]] == [2 * size, 2 * size]
    assert [record["bytes_from_sites"] for record in records] == [2 * size] * 3


def test_same_bits_as_a_simulation(finished: Deployment, tmp_path: Path) -> None:
    config = RunConfig.model_validate(
        {
            "rounds": 3,
            "sites": 2,
            "workers": 1,
            "threads": 1,
            "model": {"name": "tiny"},
            "data": {"source": "phantom", "images_per_site": 160, "num_classes": 3, "image_size": 16},
            "training": {"optimizer": {"lr": 0.05}, "batch_size": 8},
            "aggregation": {"max_share": "auto", "clip_norm_ratio": 5.0},  # as a real federation has them by default
        }
    )
    run = RunFolder.create(tmp_path / "run", "resume")
    run.write_config(config)
    run.record_start()
    run_simulation(run, config, LogListener(), client_app="tests.integration.support.apps:client_app")
    simulated = load((run.checkpoints / "round_00003" / "model.safetensors").read_bytes())
    real = load(finished.final_model())
    # The server counts batches from told numbers of images: 104, and of a hospital 100, in batches of 8.
    assert [int(model.pop("1.num_batches_tracked")[()]) for model in (simulated, real)] == [3 * 13, 3 * 12]
    assert {name: array.tobytes() for name, array in simulated.items()} == {
        name: array.tobytes() for name, array in real.items()
    }


def test_no_secret_in_logs_arguments_or_shared_files(finished: Deployment) -> None:
    private = (finished.kit / "kits" / "site_01" / "site.key").read_text().splitlines()[1]
    token = (finished.run_folder.path / "link" / "control.token").read_text()
    for path in finished.folder.rglob("*"):
        if path.is_file() and path.suffix in {".txt", ".log", ".out", ".jsonl", ".json", ".html", ".yaml"}:
            text = path.read_text(errors="replace")
            assert private not in text, path
            assert token not in text, path


def test_started_again_after_the_end_it_only_serves_the_model(finished: Deployment) -> None:
    shutil.rmtree(finished.kit / "kits" / "site_02" / "state" / "model")
    history = finished.run_folder.history_file.read_bytes()
    for path in (finished.run_folder.path / "collected").glob("*.json"):
        path.unlink()
    server = finished.start_server()
    wait_for("the release", lambda: "its model was released before" in server.text())
    fetch_a = finished.run("client", "--config", str(finished.kit / "kits/site_01/client.yaml"), "--fetch-model")
    fetch_b = finished.run("client", "--config", str(finished.kit / "kits/site_02/client.yaml"), "--fetch-model")
    assert fetch_a.returncode == 0, fetch_a.stdout
    assert fetch_b.returncode == 0, fetch_b.stdout
    assert (finished.kit / "kits" / "site_02" / "state" / "model" / "model.safetensors").is_file()
    assert server.wait(30) == 0, server.text()
    assert finished.run_folder.history_file.read_bytes() == history


def test_status_of_a_finished_run(finished: Deployment) -> None:
    status = finished.read_status()
    assert status["state"] == "finished"
    assert status["round"] == 3
    assert status["sites"]["site_01"]["last_status"] == "accepted"
    assert "site_02" in finished.run("server", "--config", str(finished.config), "--status").stdout


def test_forget_removes_the_state_of_the_run(finished: Deployment) -> None:
    done = finished.run("client", "--config", str(finished.kit / "kits/site_01/client.yaml"), "--forget")
    assert done.returncode == 0, done.stdout
    assert "removed" in done.stdout
    assert not list((finished.kit / "kits" / "site_01" / "state" / "runs").glob("*"))


@pytest.mark.faults
def test_manual_release_waits_for_a_person(tmp_path: Path) -> None:
    with deploy(tmp_path, artefact=True, release="manual", model={"name": "tiny_bag"}, rounds=1) as deployment:
        command = ["server", "--config", str(deployment.config)]
        early = deployment.run(*command, "--release", "--by", "Ada Lovelace")
        assert early.returncode == 1
        assert "nothing to release" in early.stdout
        server, clients = deployment.start()
        wait_for("the candidate", lambda: "waits for its release" in server.text())
        assert f'flower-server --config {deployment.config} --release --by "NAME OF A PERSON"' in " ".join(
            server.text().split()
        )
        status = deployment.read_status()
        assert (status["state"], status["running"]) == ("waiting for release", True)
        assert not (deployment.run_folder.path / "release").exists()
        assert [client.poll() for client in clients] == [None, None]
        done = deployment.run(*command, "--release", "--by", "Ada Lovelace")
        assert done.returncode == 0, done.stdout
        assert "hands it out now" in done.stdout
        assert server.wait(60) == 0, server.text()
        assert [client.wait(30) for client in clients] == [0, 0]
        model = deployment.kit / "kits" / "site_01" / "state" / "model"
        proof = json.loads((model / "manifest.json").read_text())["proof"]
        assert proof["merged_places"] == 2  # the bag, and a BatchNorm
        assert proof["sites"]["num_sites"] == 2
        assert json.loads((model / "manifest.json").read_text())["release"]["by"] == "Ada Lovelace"
        assert "by Ada Lovelace" in (model / "model_card.md").read_text()
        again = deployment.run(*command, "--release", "--by", "Ada Lovelace")
        assert again.returncode == 1
        assert "was released already, by Ada Lovelace" in again.stdout


def test_client_killed_in_the_middle_of_a_round_and_update_with_nan(tmp_path: Path) -> None:
    """Two faults in one run, because starting its processes takes most of the time."""
    with deploy(tmp_path, min_sites=1, rounds=4) as deployment:
        deployment.set_fault("site_02", "slow", seconds=30)
        deployment.set_fault("site_01", "nan", round_number=3)
        server, (_, site_02) = deployment.start()
        wait_for("training of round 2 at site_02", lambda: deployment.fault_seen("site_02"))
        children = psutil.Process(site_02.pid).children(recursive=True)
        site_02.kill()
        wait_for("end of its child processes", lambda: not any(child.is_running() for child in children), 20)
        again = deployment.start_client("site_02")
        assert server.wait(120) == 0, server.text()
        assert again.wait(30) == 0, again.text()
        assert deployment.statuses(2) == {"site_01": "accepted", "site_02": "accepted"}
        assert deployment.statuses(3) == {"site_01": "quarantined", "site_02": "accepted"}
        assert "NaN" in deployment.reason(3, "site_01")
        assert deployment.statuses(4) == {"site_01": "accepted", "site_02": "accepted"}


@pytest.mark.parametrize("moment", ["mid-round", pytest.param("between rounds", marks=pytest.mark.faults)])
def test_server_killed_and_started_again_gives_the_same_bits(finished: Deployment, tmp_path: Path, moment: str) -> None:
    with deploy(tmp_path) as deployment:
        if moment == "mid-round":
            deployment.set_fault("site_02", "slow", seconds=5)
        server, clients = deployment.start()
        if moment == "mid-round":
            wait_for("training of round 2", lambda: deployment.fault_seen("site_02"))
        else:
            wait_for("the end of round 1", lambda: len(deployment.history()) >= 1)
        server.kill()
        again = deployment.start_server()
        assert again.wait(120) == 0, again.text()
        assert [client.wait(60) for client in clients] == [0, 0]
        assert [record["round"] for record in deployment.history()] == [1, 2, 3]
        assert deployment.final_model() == finished.final_model()


def test_site_with_another_authority_refuses_the_server(tmp_path: Path) -> None:
    with (
        deploy(tmp_path / "one", min_sites=1, rounds=1, collect_wait_s=25) as deployment,
        deploy(tmp_path / "other") as other,
    ):
        shutil.copy(other.kit / "ca.pem", deployment.kit / "kits" / "site_02" / "ca.pem")
        server = deployment.start_server()
        site_02 = deployment.start_client("site_02")
        assert site_02.wait(60) == 1
        assert "certificate" in site_02.text()
        assert "Traceback" not in site_02.text()
        site_01 = deployment.start_client("site_01")
        assert server.wait(120) == 0, server.text()
        assert site_01.wait(30) == 0


def test_unknown_site_is_refused_and_logged(tmp_path: Path) -> None:
    with deploy(tmp_path / "one", min_sites=1) as deployment, deploy(tmp_path / "other") as other:
        server = deployment.start_server()
        wait_for("the server", lambda: "Sites reach this server" in server.text())
        stranger_kit = other.kit / "kits" / "site_01"
        shutil.copy(deployment.kit / "ca.pem", stranger_kit / "ca.pem")
        other.change_client("site_01", server=f"127.0.0.1:{deployment.port}")
        stranger = other.start_client("site_01")
        assert stranger.wait(60) == 1
        assert "SHA256:" in stranger.text()
        assert "Traceback" not in stranger.text()
        wait_for("the line at the server", lambda: "Refused" in server.text(), 20)
        entries = [json.loads(line)["event"] for line in deployment.run_folder.audit_file.read_text().splitlines()]
        assert "refused" in entries


def test_ctrl_c_ends_everything_and_says_how_to_go_on(tmp_path: Path) -> None:
    with deploy(tmp_path) as deployment:
        server, (site_01, site_02) = deployment.start()
        wait_for("round 1", lambda: len(deployment.history()) >= 1)
        secrets = [path.read_text().strip() for path in (deployment.run_folder.path / "link").glob("*.token")]
        secrets += [path.read_text().strip() for path in (deployment.run_folder.path / "link").glob("*.secret")]
        assert len(secrets) == 2
        for command in (server, site_01, site_02):
            for process in psutil.Process(command.pid).children(recursive=True):
                arguments = " ".join(process.cmdline())
                assert not any(secret in arguments for secret in secrets)
                assert "PRIVATE KEY" not in arguments
        for process in (server, site_01, site_02):
            os.kill(process.pid, signal.SIGINT)
        assert [process.wait(30) for process in (server, site_01, site_02)] == [130, 130, 130]
        assert "To go on, type:" in server.text()
