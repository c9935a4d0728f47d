"""What a hospital keeps no longer is deleted and counted; ``--forget`` says what it leaves."""

import json
import os
import time
from pathlib import Path

import pytest
import yaml

from client.app import main
from client.guard.audit import open_site_audit, verify_site_audit
from client.supernode.collected import Collected, write_collected
from client.supernode.keeping import delete_what_is_kept_no_longer
from fedmed.config.client import ClientConfig, load_client_config
from fedmed.config.keep import SiteKeepConfig
from fedmed.protocol.heads import LogHead, SignedHeads, read_stored, store_heads
from tests.client.support.kit import make_kit

DAY_S = 86_400
PATIENT = "PATIENT-ERIKA"


@pytest.fixture
def config(tmp_path: Path) -> ClientConfig:
    """A hospital with a run that has come home and one that has not; everything is 40 days old."""
    config = make_kit(tmp_path, keep={"run_state": 30, "test_answers": 365, "logs": 30, "models": None})
    state = Path(config.state_dir)
    for run in ("done", "under_way"):
        for name in (
            "state/round_00001.safetensors",
            "local/a",
            "test_tables/b",
            f"own_tables/{PATIENT}",
            "counts.json",
        ):
            write(state / "runs" / run / name)
    for name in ("logs/worker.log", "model/model.onnx", "told_rows/test.json", "splits/splits.json"):
        write(state / name)
    write_collected(state, Collected("0" * 64, ("done", "../..", "gone")))
    open_site_audit(state).append("start", site="north")
    age(state, 40)
    return config


def write(path: Path, size: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)


def age(folder: Path, days: float) -> None:
    then = time.time() - days * DAY_S
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (then, then))


def list_files(config: ClientConfig) -> set[str]:
    state = Path(config.state_dir)
    return {path.relative_to(state).as_posix() for path in state.rglob("*") if path.is_file()}


def read_events(config: ClientConfig, name: str) -> list[dict[str, object]]:
    lines = (Path(config.state_dir) / "audit.jsonl").read_text().splitlines()
    return [entry["fields"] for entry in map(json.loads, lines) if entry["event"] == name]


def test_only_what_is_old_of_runs_that_ended_is_deleted(config: ClientConfig) -> None:
    before = list_files(config)
    deleted = delete_what_is_kept_no_longer(config)
    gone = {"runs/done/state/round_00001.safetensors", "runs/done/local/a", "logs/worker.log"}
    assert before - list_files(config) == gone
    assert deleted == {"run_state": {"files": 2, "bytes": 200}, "logs": {"files": 1, "bytes": 100}}
    assert read_events(config, "deleted") == [deleted]
    assert delete_what_is_kept_no_longer(config) == {}, "there is nothing left to delete"
    later = time.time() + 330 * DAY_S
    assert delete_what_is_kept_no_longer(config, later) == {"test_answers": {"files": 2, "bytes": 200}}
    kept = list_files(config)
    assert {"runs/done/counts.json", "told_rows/test.json", "model/model.onnx", "runs/under_way/local/a"} <= kept
    assert PATIENT not in (Path(config.state_dir) / "audit.jsonl").read_text()
    assert verify_site_audit(Path(config.state_dir)).ok


def test_everything_may_be_kept_for_ever(config: ClientConfig) -> None:
    keep = SiteKeepConfig.model_validate(dict.fromkeys(SiteKeepConfig.model_fields))
    before = list_files(config)
    assert delete_what_is_kept_no_longer(config.model_copy(update={"keep": keep}), time.time() + 10**9) == {}
    assert list_files(config) == before


def test_models_go_after_their_time_and_links_are_not_followed(config: ClientConfig, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    write(outside / "image.png")
    state = Path(config.state_dir)
    (state / "runs" / "done" / "link").symlink_to(outside)
    (state / "model" / "link").symlink_to(outside)
    keep = config.keep.model_copy(update={"models": 10.0})
    deleted = delete_what_is_kept_no_longer(config.model_copy(update={"keep": keep}), time.time() + 50 * DAY_S)
    assert not (state / "model").exists()
    assert "models" in deleted
    assert (outside / "image.png").exists()


def test_oldest_entries_of_the_audit_log_go_with_what_was_signed_of_them(config: ClientConfig) -> None:
    state = Path(config.state_dir)
    log = open_site_audit(state)
    for _ in range(3):
        log.append("start")
        head = LogHead(length=log.length, hash=log.head)
        store_heads(state / "countersigned.jsonl", SignedHeads(by="server", run="r", site="north", own=head), head)
    keep = config.keep.model_copy(update={"audit_log": 5.0, "run_state": None, "logs": None, "test_answers": None})
    config = config.model_copy(update={"keep": keep})
    assert delete_what_is_kept_no_longer(config) == {}
    deleted = delete_what_is_kept_no_longer(config, time.time() + 7 * DAY_S)
    assert deleted == {"audit_log": {"entries": 3}}
    assert len(list(read_stored(state / "countersigned.jsonl"))) == 1
    assert verify_site_audit(state).ok
    open_site_audit(state).append("start")
    assert verify_site_audit(state).ok


@pytest.mark.parametrize("value", [-1, "long", 10**6])
def test_days_are_numbers_from_0(tmp_path: Path, value: object) -> None:
    config = make_kit(tmp_path)
    file = Path(config.key).parent / "client.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"keep": {"logs": value}}))
    with pytest.raises(Exception, match="keep"):
        load_client_config(file)


def test_forget_says_what_it_leaves_and_why(config: ClientConfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(Path(config.key).parent / "client.yaml"), "--forget"]) == 0
    told = capsys.readouterr().out
    assert [line.split(":")[0] for line in told.splitlines()] == ["removed"] + ["kept"] * 5
    for name, why in (("audit.jsonl", "what left this site"), ("told_rows", "by one patient"),
                      ("splits", "no test image is ever trained on"), ("model", "the released model")):  # fmt: skip
        assert any(f"/{name}: " in line and why in line for line in told.splitlines()), name
