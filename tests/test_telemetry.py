"""Nothing about a run is reported to anyone, whatever the environment says."""

import subprocess
import sys
from pathlib import Path

import pytest

from fedmed.processes import child_environment


@pytest.mark.parametrize("module", ["simulations.run", "server.app", "client.app"])
def test_telemetry_is_off_before_flower_is_imported(module: str) -> None:
    code = (
        f"import {module}, os, sys;"
        "assert not {'flwr', 'ray', 'torch'} & set(sys.modules), 'imported before it is needed';"
        "import flwr.supercore.telemetry as telemetry;"
        "print(telemetry.FLWR_TELEMETRY_ENABLED, os.environ['FLWR_DISABLE_UPDATE_CHECK'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"FLWR_TELEMETRY_ENABLED": "1"},
    )
    assert done.stdout.split() == ["0", "1"]


def test_ray_reports_nothing() -> None:
    code = "import simulations.run, os; print(os.environ['RAY_USAGE_STATS_ENABLED'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={})
    assert done.stdout.split() == ["0"]


def test_telemetry_is_off_in_child_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    assert child_environment(tmp_path)["FLWR_TELEMETRY_ENABLED"] == "0"
