"""What the coordinating site keeps no longer of a run is deleted and counted."""

import json
import os
import time
from pathlib import Path

from fedmed.config.server import ServerConfig
from fedmed.storage.audit import AuditLog, verify_audit
from fedmed.storage.run_folder import RunFolder
from server.supervision.keeping import delete_what_is_kept_no_longer

DAY_S = 86_400
VALUES = {"address": "127.0.0.1:1", "sites": ["a"], "classes": ["x", "y"], "data": {"source": "sites"}}
NAMES = [
    "updates/a.safetensors",
    "tables/round_00001/a.safetensors",
    "tables/test/a.safetensors",
    "compression/site_models/round_00001/a.safetensors",
    "logs/executor.log",
    "checkpoints/round_00001/model.safetensors",
]


def make_run(folder: Path) -> RunFolder:
    run = RunFolder.create(folder / "run", "resume")
    for name in NAMES:
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_bytes(b"x" * 10)
        os.utime(run.path / name, (time.time() - 100 * DAY_S,) * 2)
    return run


def list_names(run: RunFolder) -> list[str]:
    return [name for name in NAMES if (run.path / name).exists()]


def test_a_run_under_way_loses_old_logs_only(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    audit = AuditLog(run.audit_file)
    config = ServerConfig.model_validate(VALUES)
    assert delete_what_is_kept_no_longer(config, run, audit) == {"logs": {"files": 1, "bytes": 10}}
    assert list_names(run) == [name for name in NAMES if not name.startswith("logs")]


def test_an_ended_run_loses_what_its_time_is_over_for(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.finished_file.write_text("{}")
    audit = AuditLog(run.audit_file)
    config = ServerConfig.model_validate(VALUES | {"keep": {"logs": None}})
    deleted = delete_what_is_kept_no_longer(config, run, audit)
    assert deleted == {name: {"files": 1, "bytes": 10} for name in ("updates", "site_models")}
    assert list_names(run) == [NAMES[1], NAMES[2], NAMES[4], NAMES[5]]
    assert "validation_tables" in delete_what_is_kept_no_longer(config, run, audit, time.time() + 366 * DAY_S)
    assert list_names(run) == [NAMES[2], NAMES[4], NAMES[5]], "the test's tables and the models stay"
    entries = [json.loads(line) for line in run.audit_file.read_text().splitlines()]
    assert [entry["event"] for entry in entries] == ["deleted"] * 2
    assert verify_audit(run.audit_file).ok
