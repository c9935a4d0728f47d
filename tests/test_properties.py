"""The property tests once more, with many examples."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = 2000


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_examples():
    files = sorted(
        str(path) for path in (ROOT / "tests").rglob("test_*.py") if "from hypothesis import" in path.read_text()
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--timeout",
        "3000",
        "-m",
        "not slow",
        *files,
    ]
    done = subprocess.run(
        command,
        check=False,
        cwd=ROOT,
        env=os.environ | {"FEDMED_EXAMPLES": str(EXAMPLES)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
