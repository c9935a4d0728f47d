"""The example of code from outside fedmed: in a simulation with real workers, and in a federation of hospitals."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedmed.config import RunConfig
from fedmed.errors import ExtensionError, RunFolderError
from fedmed.export.torch_loader import load_model
from fedmed.extensions import find_extension
from fedmed.storage.history import read_history
from fedmed.storage.run_folder import RunFolder
from fedmed.storage.tensor_files import TensorFile
from server import federation as server_federation
from server.rounds.progress import LogListener
from simulations.simulation import check_settings, run_simulation
from tests.integration.support.deployment import deploy, wait_for
from tests.support.deployment_grid import Hospitals
from tests.support.extension_package import IMAGES, LOSS, MODEL, PACKAGE, RULE, STEP, importable, install
from tests.support.federation import Federation

SETTINGS: dict[str, Any] = {
    "model": {"name": MODEL, "width": 6},
    "loss": {"ce": 0.5, LOSS: {"weight": 0.5, "smoothing": 0.1}},
    "training": {"optimizer": {"lr": 0.05}, "batch_size": 8},
}
AT_SERVER: dict[str, Any] = {
    "aggregation": {"fair": {"kind": RULE, "options": {"most": 0.5}}},
    "server_step": {"kind": STEP, "options": {"share": 0.5}},
}
DATA = {"source": IMAGES, "image_size": 24, "options": {"sites": 2, "images_per_site": 40}}
SUPPRESSION = {"k": 1, "k_row": 1}


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[Path]:
    with importable(install(tmp_path / "site-packages")) as folder:
        yield folder


def test_simulation_in_this_process(installed: Path, tmp_path: Path) -> None:
    """A network, a loss, images, a rule and a server step from outside, in the round loop."""
    federation = Federation(tmp_path / "run", SETTINGS | AT_SERVER | {"data": DATA, "rounds": 1, "sites": None})
    federation.go()
    run = federation.run
    model, loss, *at_server = [find_extension(path).model_dump() for path in (MODEL, LOSS, RULE, STEP)]
    assert (model["distribution"], model["version"]) == ("example-extension", "1.0")
    assert [one.model_dump() for one in federation.config.make_plan().extensions] == [model, loss]
    start = json.loads(run.audit_file.read_text().splitlines()[0])
    assert start["fields"]["extensions"] == run.read_environment()["extensions"] == [model, loss, *at_server]
    kept = run.checkpoints / "round_00001" / "moments.safetensors"
    assert TensorFile(kept).metadata["server_step"] == STEP
    told = json.loads((run.report / "report.json").read_text())
    assert told["classes"] == ["horizontal", "vertical"]
    assert told["figures"]["balanced_accuracy"]["n"] == 16  # a fifth of each site's 40 images


@pytest.mark.slow
def test_simulation_with_workers_of_ray(installed: Path, tmp_path: Path) -> None:
    """Two processes load the code themselves; the model that comes out needs a person's word to run it."""
    config = RunConfig.model_validate(SETTINGS | AT_SERVER | {"data": DATA, "rounds": 2, "workers": 2})
    check_settings(config, "file.yaml")
    run = RunFolder.create(tmp_path / "run", "resume")
    run.write_config(config)
    run.record_start()
    run_simulation(run, config, LogListener())
    records = read_history(run.history_file)
    assert [line.status for record in records for line in record.participation] == ["accepted"] * 4
    told = json.loads((run.model / "manifest.json").read_text())["plan"]["extensions"]
    assert told == [find_extension(path).model_dump() for path in (MODEL, LOSS)]
    with pytest.raises(ValueError, match=rf"extensions=\['{MODEL}'\]"):
        load_model(run.model)
    assert sum(parameter.numel() for parameter in load_model(run.model, [MODEL]).parameters()) == 3 * 9 * 6 + 6 + 14


def test_hospital_that_does_not_allow_it_is_left_out(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_federation, "make_candidate", lambda *given: None)  # seconds that are not the matter
    hospitals = Hospitals(
        tmp_path, policy={"suppression": SUPPRESSION, "extensions": [MODEL, LOSS]}, **SETTINGS, benefit=False
    )
    hospitals.change_client("site_02", policy={"suppression": SUPPRESSION, "extensions": [LOSS]})
    hospitals.go()
    assert list(hospitals.listener.problems) == ["site_02"]
    (problem,) = hospitals.listener.problems.values()
    assert "policy.extensions: found 'example_extension.networks:build' of example-extension 1.0" in problem
    assert "allowed 'example_extension.losses:build'" in problem
    assert len(problem.splitlines()) == 1
    history = json.loads(hospitals.run.history_file.read_text().splitlines()[0])
    assert {line["site"]: line["status"] for line in history["participation"]}["site_01"] == "accepted"
    assert hospitals.run.finished_file.is_file()


def test_run_goes_on_with_the_code_that_it_has_begun_with_only(installed: Path, tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path, **SETTINGS)
    code = find_extension(MODEL)
    hospitals.run.record_extensions([code])
    hospitals.run.record_start()
    hospitals.run.record_extensions([code])
    with pytest.raises(RunFolderError, match=r"has begun with .* 1\.0, .*Found here: .* 1\.1, .*Install again"):
        hospitals.run.record_extensions([code.model_copy(update={"version": "1.1"})])


def test_server_that_lacks_it_says_so(tmp_path: Path) -> None:
    assert PACKAGE not in sys.modules
    hospitals = Hospitals(tmp_path, approves=False, **SETTINGS)
    with pytest.raises(ExtensionError, match=rf"'{MODEL}' is not installed here"):
        hospitals.go()


@pytest.mark.slow
def test_five_hospitals_with_what_each_has_installed(tmp_path: Path) -> None:
    """Real processes: one has the same code, one another version, one another file, one none, one does not allow it."""
    same = install(tmp_path / "same")
    other = install(tmp_path / "other", version="1.1")
    edited = install(tmp_path / "edited")
    with (edited / PACKAGE / "networks.py").open("a") as file:
        file.write("\n# edited\n")
    folders = {"site_01": same, "site_02": other, "site_03": edited, "site_04": None, "site_05": same}
    with deploy(
        tmp_path / "run", sites=5, min_sites=1, rounds=1, collect_wait_s=5, **SETTINGS, **AT_SERVER
    ) as deployment:
        for name in deployment.names[:4]:
            deployment.change_client(name, policy={"extensions": [MODEL, LOSS], "suppression": SUPPRESSION})
        server = deployment.start_server(extra_path=same)
        clients = {name: deployment.start_client(name, extra_path=folders[name]) for name in deployment.names}
        wait_for("the end of the run", deployment.run_folder.finished_file.is_file)
        assert server.wait(60) == 0, server.text()
        statuses = deployment.statuses(1)
        assert statuses["site_01"] == "accepted"
        assert [name for name, status in statuses.items() if status == "accepted"] == ["site_01"]
        told = server.text().splitlines()
        said = {name: "\n".join(line for line in told if name in line) for name in deployment.names}
        for name, client in clients.items():
            said[name] += client.text()
        assert "Wanted: 'example_extension.networks:build' of example-extension 1.0" in said["site_02"]
        assert "Found here: 'example_extension.networks:build' of example-extension 1.1" in said["site_02"]
        assert "Name and version are the same, the file differs" in said["site_03"]
        assert "is not installed here" in said["site_04"]
        assert "policy.extensions: found" in said["site_05"]
