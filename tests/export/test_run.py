"""From a finished run to its artefact, with the command that a person types."""

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fedmed import predict
from fedmed.config import RunConfig
from fedmed.data import load_site
from fedmed.errors import ReparameterizationError, RunFolderError
from fedmed.export import load_model, write_model
from fedmed.export import run as module
from fedmed.export.__main__ import main
from fedmed.export.compare import compare_outputs, open_session, read_batches
from fedmed.export.onnx_file import ExportError
from fedmed.export.release_form import change_manifest
from fedmed.export.run import Reproduction, export_run, load_network, read_chosen_round, reproduce, sample_images
from fedmed.metrics.packing import pack_site_tables
from fedmed.protocol.messages import unpack_tables
from fedmed.storage.run_folder import RunFolder
from simulations.simulation import export_model
from tests.support.federation import Federation, Notes


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    federation = Federation(tmp_path_factory.mktemp("finished") / "run", {"rounds": 2})
    federation.go()
    return federation.run


@pytest.fixture(scope="module")
def exported(finished: RunFolder) -> Path:
    folder = finished.path.parent / "model"
    export_run(finished, folder)
    return folder


@pytest.fixture
def copied(finished: RunFolder, tmp_path: Path) -> RunFolder:
    """The run, free to be spoilt."""
    shutil.copytree(finished.path, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def settings_of(run: RunFolder) -> RunConfig:
    config = run.read_settings()
    assert isinstance(config, RunConfig)
    return config


def test_proof_is_on_test_images_of_the_run(finished: RunFolder, exported: Path) -> None:
    manifest = json.loads((exported / "manifest.json").read_text())
    report = json.loads((finished.report / "report.json").read_text())
    assert manifest["proof"]["images"] == f"{report['test_images']['total']} test images of 3 sites"
    assert manifest["proof"]["onnx"]["num_images"] == report["test_images"]["total"]
    assert manifest["classes"] == report["classes"]
    assert manifest["chosen_round"] == report["chosen_round"]
    assert manifest["expected"]["basis"].endswith("training images of 3 sites")
    assert manifest["expected"]["width"] == [8, 32]
    card = (exported / "model_card.md").read_text()
    assert all(site.replace("_", "\\_") in card for site in report["sites"])


def test_logged_test_is_reproduced(finished: RunFolder, exported: Path) -> None:
    result = reproduce(finished, exported)
    report = json.loads((finished.report / "report.json").read_text())
    assert result.succeeded
    assert (result.num_sites, result.num_images) == (3, report["test_images"]["total"])
    logged, found = result.figures["balanced_accuracy"]
    assert logged == found == pytest.approx(report["figures"]["balanced_accuracy"]["value"], abs=1e-12)
    assert "Every table of classes is the logged one" in result.describe()


def test_difference_is_found(copied: RunFolder, exported: Path) -> None:
    """One image is moved to another predicted class in the table that was logged."""
    file = sorted((copied.tables / "test").glob("*.safetensors"))[1]
    tables = unpack_tables(file.read_bytes())
    counts = tables.site.counts
    true, predicted = (int(places[0]) for places in counts[0].nonzero())
    counts[0, true, predicted] -= 1
    counts[0, true, (predicted + 1) % 3] += 1
    file.write_bytes(pack_site_tables(tables))
    result = reproduce(copied, exported)
    assert not result.succeeded
    assert result.moved == {file.stem: 1}
    assert not result.exact
    assert f"another class than logged: {file.stem}: 1." in result.describe()


def test_description_of_nothing() -> None:
    assert "balanced accuracy n/a, logged n/a" in Reproduction().describe()


def test_forms_agree_at_each_site(finished: RunFolder, exported: Path) -> None:
    config = settings_of(finished)
    network = load_network(finished, config, read_chosen_round(finished))
    data = load_site(config.data, config.sites, config.seed, finished.splits, "site_01", 0.0)
    deploy, session, batches = (
        load_model(exported)[0],
        open_session(exported, 1),
        read_batches(data.test, config.make_plan()),
    )
    found = compare_outputs(network.model, deploy, session, batches, data.test.labels, len(part_classes(config)))
    assert found.failures() == []
    assert found.onnx.num_images == len(data.test)
    assert sum(map(sum, found.paired)) == len(data.test)
    (exported / "model.onnx").rename(exported / "away")
    with pytest.raises(ExportError, match="is no exported model"):
        open_session(exported, 1)
    (exported / "away").rename(exported / "model.onnx")


def test_predict_on_files_of_the_run(finished: RunFolder, exported: Path, tmp_path: Path, capsys: Any) -> None:
    """As a clinician's engineer would: files in, table out, the network's own probabilities in it."""
    config = settings_of(finished)
    part = load_site(config.data, config.sites, config.seed, finished.splits, "site_02", 0.0).test
    for index in range(len(part)):
        Image.fromarray(part.images([index])[0].permute(1, 2, 0).numpy()).save(tmp_path / f"{index:03}.png")
    assert predict.main(["--model", str(exported), str(tmp_path)]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    network = load_network(finished, config, read_chosen_round(finished))
    images = torch.cat(list(read_batches(part, config.make_plan())))
    with torch.no_grad():
        expected = network.model.eval()(images).softmax(dim=1)
    found = torch.tensor([[float(row[name]) for name in part_classes(config)] for row in rows])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert {row["note"] for row in rows} == {""}


def part_classes(config: RunConfig) -> list[str]:
    assert config.classes is not None
    return config.classes


def test_command(finished: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "model"
    assert main([str(finished.path), "--out", str(target), "--check"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "MiB" in shown.out
    assert "equal to the trained network within" in shown.out
    assert "Every table of classes is the logged one" in shown.out
    load_model(target)
    assert main([str(finished.path), "--out", str(tmp_path), "--check"]) == 1  # it holds the folder `model`
    assert "is no exported model. Name another folder with --out" in capsys.readouterr().err


def test_command_explains(finished: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        ([str(tmp_path), "--out", str(tmp_path / "model")], "is no run folder"),
        ([str(finished.path), "--out", str(tmp_path / "model"), "--site", "site_01"], "share one model"),
    ):
        assert main(arguments) == 1
        assert words in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(finished.path)])
    assert not list(tmp_path.iterdir())


def test_unfinished_run(copied: RunFolder, tmp_path: Path) -> None:
    copied.finished_file.unlink()
    with pytest.raises(RunFolderError, match="has not finished"):
        export_run(copied, tmp_path / "model")


def test_release_is_what_the_run_says(copied: RunFolder) -> None:
    """The decision lies in the run's own model; before there is one, the settings say who will decide."""
    config = settings_of(copied)
    waiting = config.model_copy(update={"release": "manual"})
    shutil.rmtree(copied.model, ignore_errors=True)
    assert module._read_release(copied, waiting) == {"kind": "manual"}
    write_model(
        copied.model, copied.checkpoints / "round_00001" / "model.safetensors", config.make_plan(), chosen_round=1
    )
    assert module._read_release(copied, waiting) == {"kind": "manual"}  # a train form, which nobody has released yet
    change_manifest(copied.model, None, {"release": {"kind": "manual", "by": "Ada"}})
    assert module._read_release(copied, waiting) == {"kind": "manual", "by": "Ada"}
    assert module._read_release(RunFolder(copied.path / "none"), config) == {"kind": "automatic"}


def test_images_that_are_gone(finished: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise RunFolderError("There is no split")

    monkeypatch.setattr(module, "load_site", fail)
    sample = sample_images(finished, settings_of(finished))
    assert sample.images is None
    assert sample.expected == {}


def test_number_of_proof_images_is_bounded(finished: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_IMAGES", 7)
    monkeypatch.setattr(module, "MOST_SITES", 2)
    monkeypatch.setattr(module, "FEWEST_IMAGES", 1)
    sample = sample_images(finished, settings_of(finished))
    assert sample.images is not None
    assert sample.images.source == "8 test images of 2 sites"  # 4 of each
    assert sample.images.pixels.shape == (8, 3, 16, 16)


def test_local_batch_norm_is_exported_site_by_site(make_federation: Any, tmp_path: Path) -> None:
    federation = make_federation(rounds=1, batch_norm="local")
    federation.go()
    notes = Notes()
    export_model(federation.run, federation.config, notes)
    assert "--site NAME" in notes.notes[0]
    with pytest.raises(ExportError, match=r"a site has to be named with --site \(site_01, site_02, site_03\)"):
        export_run(federation.run, tmp_path / "model")
    with pytest.raises(ExportError, match="'x' is none of"):
        export_run(federation.run, tmp_path / "model", site="x")
    hashes = set()
    for site in ("site_01", "site_02"):
        manifest = export_run(federation.run, tmp_path / site, site=site)
        assert manifest["site"] == site
        assert manifest["proof"]["images"].endswith("of 1 sites")
        assert reproduce(federation.run, tmp_path / site, site=site).succeeded
        hashes.add(manifest["sha256"]["model.onnx"])
    assert len(hashes) == 2


def test_recalibrated_model_is_what_is_exported(make_federation: Any, tmp_path: Path) -> None:
    federation = make_federation(rounds=1, batch_norm="recalibrate")
    federation.go()
    assert (federation.run.recalibrated / "model.safetensors").is_file()
    export_run(federation.run, tmp_path / "model")
    assert reproduce(federation.run, tmp_path / "model").succeeded


def test_simulation_ends_with_an_artefact(copied: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    config, notes = settings_of(copied), Notes()
    with monkeypatch.context() as patch:

        def refuse(run: RunFolder, folder: Path) -> None:
            raise ReparameterizationError("The deploy form is not equal.")

        patch.setattr(module, "export_run", refuse)
        export_model(copied, config, notes)
    assert "not equal" in notes.notes[0]
    assert load_model(copied.model)[1]["form"] == "train"
    export_model(copied, config, notes)
    assert load_model(copied.model)[1]["form"] == "deploy"
    assert len(notes.notes) == 1
