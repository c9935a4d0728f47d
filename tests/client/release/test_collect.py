"""The released model comes home: checked, put in place in one step, reported, and with a report of the site's own."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from client.hospital.own_rows import OwnReportError, check_rows, encode_rows
from client.release import collect as release
from client.release.collect import ReleaseError, collect, fetch_model
from client.supernode.collected import Collected, read_collected
from fedmed.config.client import ClientConfig
from fedmed.errors import CheckpointError, ConnectionRefusedByServerError, KeyFileError, RunFolderError
from fedmed.export import load_model
from fedmed.fairness.disclosure.tables import tell_everything
from fedmed.keys import make_release_key
from fedmed.metrics.packing import pack_site_tables, unpack_site_tables
from fedmed.metrics.site_tables import FEDERATED
from fedmed.processes import write_secret
from fedmed.storage.audit import verify_audit
from tests.client.support.kit import CLASSES, FakeFleet, make_kit
from tests.client.support.release import RUN, Release, draw_once


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.release.written_here.render_page", draw_once)


@pytest.fixture
def config(tmp_path: Path) -> ClientConfig:
    config = make_kit(tmp_path)
    for run_id in (RUN, "next"):  # this site took part in both
        (Path(config.state_dir) / "runs" / run_id).mkdir(parents=True)
    return config


@pytest.fixture
def released(config: ClientConfig, tmp_path: Path) -> Release:
    return Release(tmp_path / "release", tmp_path / "coordinator" / "release.key")


@pytest.fixture
def fleet(released: Release) -> FakeFleet:
    return FakeFleet({}, released.folder)


@pytest.fixture
def state(config: ClientConfig) -> Path:
    return Path(config.state_dir)


def store_own_tables(state: Path, released: Release) -> None:
    """Six test images, four of them right: benign 2 of 3, malignant 2 of 2, other 0 of 1."""
    pairs = [(0, 0), (0, 0), (0, 1), (1, 1), (1, 1), (2, 0)]
    logits = torch.zeros(6, 3)
    for row, (_, predicted) in enumerate(pairs):
        logits[row, predicted] = 2.0
    labels, groups = torch.tensor([true for true, _ in pairs]), {"site": ["north"] * 6, "sex": ["f", "m"] * 3}
    tables = tell_everything({FEDERATED: logits}, labels, groups)
    folder = state / "runs" / RUN / "own_tables"
    folder.mkdir(parents=True, exist_ok=True)
    name = released.manifest["model_sha256"]
    (folder / f"{name}.safetensors").write_bytes(pack_site_tables(tables))
    write_secret(folder / f"{name}.rows.json", encode_rows({FEDERATED: logits}, labels, groups))


def test_model_report_and_own_report_are_in_place(
    config: ClientConfig, fleet: FakeFleet, released: Release, state: Path
) -> None:
    store_own_tables(state, released)
    assert collect(config, fleet, released.sha256) == state / "model"
    model, manifest = load_model(state / "model")
    assert manifest["classes"] == CLASSES
    assert model(torch.zeros(1, 3, 16, 16)).shape == (1, 3)
    assert (state / "model" / "manifest.sig").read_text() == (released.folder / "manifest.sig").read_text()
    assert "<h1>all sites</h1>" in (state / "federation_report" / "index.html").read_text()
    assert (state / "federation_report" / "report.json").read_bytes() == (released.folder / "report.json").read_bytes()
    assert fleet.collected == [released.sha256]
    assert read_collected(state) == Collected(
        released.sha256, (RUN,), released.manifest["released"], "nobody, as it is in train form; tested by south"
    )
    assert json.loads((state / "collected.json").read_text())["run_ids"] == [RUN]
    assert not list(state.glob(".*"))


def test_own_report_is_of_this_site_alone(
    config: ClientConfig, fleet: FakeFleet, released: Release, state: Path, tmp_path: Path
) -> None:
    store_own_tables(state, released)
    collect(config, fleet)
    report = json.loads((state / "report" / "report.json").read_text())
    assert report["test_images"] == {"total": 6, "by_class": {"benign": 3, "malignant": 2, "other": 1}}
    assert report["figures"]["accuracy"]["value"] == pytest.approx(4 / 6)
    assert report["figures"]["balanced_accuracy"]["value"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert list(report["sites"]) == ["north"]
    assert report["thresholds"] == {"k": 1, "k_row": 1}
    assert report["chosen_round"] == 3
    assert [record["round"] for record in report["history"]] == [1, 2, 3, 4]
    assert "must not leave it" in report["notes"][0]
    assert report["command"] == "flower-client --fetch-model"
    assert report["synthetic"] is True
    assert str(tmp_path) not in json.dumps(report)
    page = (state / "report" / "index.html").read_text()
    assert "is for north alone and must not leave it" in page


def test_site_that_missed_the_test_is_told_so(
    config: ClientConfig, fleet: FakeFleet, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    collect(config, fleet)
    assert "did not take part in the test" in caplog.text
    report = json.loads((state / "report" / "report.json").read_text())
    assert report["figures"]["accuracy"]["value"] is None
    assert any("no tables of its test images" in note for note in report["notes"])


def test_own_report_is_not_written_when_fairlearn_finds_something_else(
    config: ClientConfig, fleet: FakeFleet, released: Release, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store_own_tables(state, released)
    (rows,) = (state / "runs" / RUN / "own_tables").glob("*.rows.json")
    values = json.loads(rows.read_text())
    values["predictions"][FEDERATED][2] = 2  # wrong as before, but as another class
    write_secret(rows, json.dumps(values).encode())
    collect(config, fleet, released.sha256)
    assert not (state / "report").exists()
    assert "the selection rate of class 2 is 0.5 in its tables and 0.333" in caplog.text
    tables = unpack_site_tables(rows.with_name(rows.name.replace("rows.json", "safetensors")).read_bytes())
    values["groups"]["sex"] = ["f"] * 6
    write_secret(rows, json.dumps(values).encode())
    with pytest.raises(OwnReportError):
        check_rows(rows, tables)
    values["labels"].pop()
    write_secret(rows, json.dumps(values).encode())
    with pytest.raises(RunFolderError, match="does not fit the tables"):
        check_rows(rows, tables)


def test_own_report_outlives_its_tables(
    config: ClientConfig, fleet: FakeFleet, released: Release, state: Path, tmp_path: Path
) -> None:
    store_own_tables(state, released)
    collect(config, fleet)
    before = (state / "report" / "report.json").read_bytes()
    shutil.rmtree(state / "runs")  # --forget
    collect(config, fleet)
    assert (state / "report" / "report.json").read_bytes() == before
    # Another release has another report, even without figures; and that one is no reason to keep anything.
    second = Release(tmp_path / "second", tmp_path / "coordinator" / "release.key", seed=5)
    second.sign(released=released.manifest["released"])
    collect(config, FakeFleet({}, second.folder))
    assert json.loads((state / "report" / "report.json").read_text())["figures"]["accuracy"]["value"] is None
    store_own_tables(state, released)
    collect(config, fleet)
    assert json.loads((state / "report" / "report.json").read_text())["test_images"]["total"] == 6


def test_own_report_shows_the_split(config: ClientConfig, fleet: FakeFleet, state: Path) -> None:
    (state / "splits").mkdir(parents=True)
    composition = {"train": [5, 4, 3], "validation": [1, 1, 1], "test": [3, 2, 1]}
    index = {"classes": CLASSES, "composition": {"pooled": composition}}
    (state / "splits" / "splits.json").write_text(json.dumps(index))
    collect(config, fleet)
    report = json.loads((state / "report" / "report.json").read_text())
    assert report["composition"] == {
        "north": {part: dict(zip(CLASSES, numbers, strict=True)) for part, numbers in composition.items()}
    }
    collect(config.model_copy(update={"exclude": "list.txt"}), fleet)
    assert json.loads((state / "report" / "report.json").read_text())["composition"] is None


def test_damaged_tables_do_not_keep_the_model_away(
    config: ClientConfig, fleet: FakeFleet, released: Release, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store_own_tables(state, released)
    for path in (state / "runs").rglob("*.safetensors"):
        path.write_bytes(b"damaged")
    collect(config, fleet)
    assert "own report could not be made" in caplog.text
    assert load_model(state / "model")[1]["run_id"] == RUN
    assert fleet.collected


def test_arrival_is_in_the_audit_log(config: ClientConfig, fleet: FakeFleet, released: Release, state: Path) -> None:
    collect(config, fleet)
    assert verify_audit(state / "audit.jsonl").ok
    entries = [json.loads(line) for line in (state / "audit.jsonl").read_text().splitlines()]
    assert [entry["event"] for entry in entries] == ["release_received", "release_confirmed"]
    parts = {part["name"]: part["sha256"] for part in entries[0]["fields"]["parts"]}
    assert parts["model.safetensors"] == released.manifest["model_sha256"]
    assert entries[1]["fields"] == {"manifest_sha256": released.sha256}


def test_wrong_signature_changes_nothing(
    config: ClientConfig, fleet: FakeFleet, released: Release, state: Path, tmp_path: Path
) -> None:
    collect(config, fleet)
    before = (state / "model" / "manifest.json").read_bytes()
    make_release_key(tmp_path / "stranger")
    Release(tmp_path / "forged", tmp_path / "stranger" / "release.key", seed=4)
    with pytest.raises(KeyFileError, match="signature does not fit"):
        collect(config, FakeFleet({}, tmp_path / "forged"))
    assert (state / "model" / "manifest.json").read_bytes() == before
    assert not list(state.glob(".*"))


def test_changed_manifest_is_refused(config: ClientConfig, fleet: FakeFleet, released: Release, state: Path) -> None:
    file = released.folder / "manifest.json"
    file.write_bytes(file.read_bytes().replace(b'"benign"', b'"malignant"', 1))
    with pytest.raises(KeyFileError, match="signature does not fit"):
        collect(config, fleet)
    assert fleet.downloaded == ["manifest.json", "manifest.sig"]  # nothing else is asked for before
    assert not (state / "model").exists()


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"x" + data[1:]])
def test_damaged_model_is_refused(
    config: ClientConfig, fleet: FakeFleet, released: Release, state: Path, damage: Any
) -> None:
    file = released.folder / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ReleaseError, match=r"model\.safetensors of the release arrived damaged"):
        collect(config, fleet)
    assert not (state / "model").exists()
    assert fleet.collected == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"files": {}}, "lacks model.safetensors, report.json"),
        ({"run_id": "../../etc"}, "cannot be read .'run_id'"),
        ({"model_sha256": "../x"}, "cannot be read .'model_sha256'"),
        ({"model_sha256": "0" * 64}, "two hashes of the trained model"),
        ({"files": 3}, "cannot be read .'files'"),
        ({"format": 99}, "cannot be read .'format'"),
        ({"format": 2}, "is of format 2"),
        ({"released": "9999-01-01T00:00:00+00:00"}, "a time that has not come"),
        ({"released": "soon"}, "cannot be read"),
    ],
)
def test_manifest_that_makes_no_sense(
    config: ClientConfig, fleet: FakeFleet, released: Release, changes: dict[str, Any], message: str
) -> None:
    released.sign(**changes)
    with pytest.raises(ReleaseError, match=message):
        collect(config, fleet)


def test_another_release_than_announced(config: ClientConfig, fleet: FakeFleet, released: Release) -> None:
    with pytest.raises(ReleaseError, match="announced the release 0000000000000000"):
        collect(config, fleet, "0" * 64)
    assert read_collected(Path(config.state_dir)) == Collected()


def test_command_collects_what_was_announced_only(
    config: ClientConfig,
    fleet: FakeFleet,
    released: Release,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("client.supernode.fleet.Fleet", lambda config: fleet)
    command = ["--config", str(Path(config.key).with_name("client.yaml")), "--manifest"]
    assert release.main([*command, "0" * 64]) == 1
    assert "announced the release 0000000000000000" in capsys.readouterr().err
    assert release.main([*command, released.sha256]) == 0
    assert capsys.readouterr().out.strip() == fetch_model(config)
    assert fleet.collected == [released.sha256] * 2


def test_a_command_that_does_not_try_again_does_not_say_so(config: ClientConfig) -> None:
    """Nothing listens at the port of the kit."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        config = config.model_copy(update={"server": f"127.0.0.1:{free.getsockname()[1]}", "insecure": True})
    with pytest.raises(ConnectionRefusedByServerError, match="flower-server is not running") as told:
        fetch_model(config)
    assert "Trying again" not in str(told.value)
    assert str(told.value).endswith("ask them to start it, then type: flower-client --fetch-model")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"manifest_sha256": "ab", "run_ids": 3}'])
def test_damaged_note_of_what_was_collected(config: ClientConfig, fleet: FakeFleet, state: Path, text: str) -> None:
    state.mkdir(exist_ok=True)
    (state / "collected.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"collected\.json cannot be read .*Move it away"):
        read_collected(state)
    collect(config, fleet)  # it does not keep the model away
    assert read_collected(state).run_ids == (RUN,)


def test_full_disk_is_noticed_before_the_download(
    config: ClientConfig, fleet: FakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(config.ca)._replace(free=1000)
    monkeypatch.setattr(release.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ReleaseError, match="0 MiB are free"):
        collect(config, fleet)
    assert "model.safetensors" not in fleet.downloaded


def test_what_is_here_is_not_sent_again_and_what_is_damaged_is(
    config: ClientConfig, fleet: FakeFleet, state: Path
) -> None:
    collect(config, fleet)
    fleet.downloaded.clear()
    collect(config, fleet)
    assert fleet.downloaded == ["manifest.json", "manifest.sig", "history.json"]
    (state / "model" / "model.safetensors").write_bytes(b"damaged")
    collect(config, fleet)
    load_model(state / "model")
    assert fleet.downloaded[-2:] == ["model.safetensors", "history.json"]
    assert json.loads((state / "collected.json").read_text())["run_ids"] == [RUN]


def test_server_that_goes_away_before_it_knows(
    config: ClientConfig, fleet: FakeFleet, released: Release, state: Path
) -> None:
    fleet.failure = ConnectionRefusedByServerError("gone")
    with pytest.raises(ConnectionRefusedByServerError):
        collect(config, fleet, released.sha256)
    load_model(state / "model")
    assert read_collected(Path(config.state_dir)) == Collected()
    fleet.failure = None
    fleet.downloaded.clear()
    collect(config, fleet, released.sha256)
    assert "model.safetensors" not in fleet.downloaded
    found = read_collected(state)
    assert (found.manifest_sha256, found.run_ids) == (released.sha256, (RUN,))


def test_leftovers_of_a_crash_do_not_hinder(config: ClientConfig, fleet: FakeFleet, state: Path) -> None:
    collect(config, fleet)
    for name in (".model.replaced.partial", ".federation_report.replaced.partial", ".release.partial"):
        (state / name).mkdir()
        (state / name / "model.safetensors").write_bytes(b"old")
    collect(config, fleet)
    load_model(state / "model")
    assert not list(state.glob(".*"))


def test_next_release_replaces_the_last(
    config: ClientConfig, fleet: FakeFleet, released: Release, state: Path, tmp_path: Path
) -> None:
    collect(config, fleet)
    second = Release(tmp_path / "second", tmp_path / "coordinator" / "release.key", seed=5)
    second.sign(run_id="next")
    collect(config, FakeFleet({}, second.folder), second.sha256)
    assert load_model(state / "model")[1]["plan"]["seed"] == 5
    found = read_collected(state)
    assert (found.manifest_sha256, found.run_ids) == (second.sha256, (RUN, "next"))


def test_release_of_a_run_of_others_is_taken_by_hand_only(
    config: ClientConfig, fleet: FakeFleet, released: Release, state: Path
) -> None:
    released.sign(run_id="strange")
    with pytest.raises(ReleaseError, match=r"took no part.*--fetch-model"):
        collect(config, fleet, released.sha256)
    assert not (state / "model").exists()
    collect(config, fleet)
    assert (state / "model" / "model.safetensors").is_file()


def test_older_release_does_not_replace_a_newer(
    config: ClientConfig, fleet: FakeFleet, released: Release, state: Path, tmp_path: Path
) -> None:
    released.sign(released="2025-11-02T00:00:00+00:00")
    collect(config, fleet)
    old = Release(tmp_path / "old", tmp_path / "coordinator" / "release.key", seed=5)
    for time in ("2025-11-01T00:00:00+00:00", "2025-11-02T12:00:00+14:00", ""):
        old.sign(released=time)
        with pytest.raises(ReleaseError, match="before the one here"):
            collect(config, FakeFleet({}, old.folder), old.sha256)
    assert load_model(state / "model")[1]["plan"]["seed"] != 5
    shutil.rmtree(state / "model")  # what was here is remembered
    with pytest.raises(ReleaseError, match="before the one here"):
        collect(config, FakeFleet({}, old.folder), old.sha256)
    assert not (state / "model").exists()


@pytest.mark.parametrize("key", ["study", "approval"])
def test_release_of_another_study_is_refused(config: ClientConfig, fleet: FakeFleet, state: Path, key: str) -> None:
    setattr(config.policy, key, "ours")
    with pytest.raises(ReleaseError, match=rf"policy\.{key} allows 'ours' only"):
        collect(config, fleet)
    assert not (state / "model").exists()


def test_waiting_process_does_not_load_torch() -> None:
    code = "import client.release.collect, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0


def test_command_explains_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert release.main(["--config", str(tmp_path / "client.yaml")]) == 1
    assert "There is no" in capsys.readouterr().err
