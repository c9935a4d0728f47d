"""Nothing about a run is reported to anyone."""

import subprocess
import sys


def test_telemetry_is_off_before_flower_is_imported() -> None:
    code = (
        "import simulations.run, os, sys;"
        "assert 'flwr' not in sys.modules and 'ray' not in sys.modules;"
        "import flwr.supercore.telemetry as telemetry;"
        "print(telemetry.FLWR_TELEMETRY_ENABLED, os.environ['RAY_USAGE_STATS_ENABLED'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={})
    assert done.stdout.split() == ["0", "0"]
