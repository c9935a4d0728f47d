"""Time and memory of the simulation engine, beside plain PyTorch and beside Flower's own simulator, in one run.

    python simulations/benchmarks/engine.py            # all parts, about ten minutes on two cores
    python simulations/benchmarks/engine.py --part tiny

Every measurement is a process of its own. The work is the same in all: train one epoch and score the validation images
at every site, then average. The first round, which loads the images, is not counted. Read the ratios, not the seconds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from simulations.benchmarks.engine_measures import SETTINGS, Measured

MESSAGES_PER_SITE_AND_ROUND = 2
MEASURE = str(Path(__file__).with_name("engine_measures.py"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=list(SETTINGS), action="append", help="measure this part only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to a file")
    options = parser.parse_args(arguments)
    parts = options.part or list(SETTINGS)
    figures: dict[str, dict[str, float] | dict[str, Measured]] = {}
    for part in parts:
        figures[part] = _measure_memory() if part == "memory" else _measure_speed(part)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def _measure_speed(part: str) -> dict[str, float]:
    settings = SETTINGS[part]
    seconds = {
        "plain loop, one thread": _round_time([("plain", "0/1", 1)], part),
        "two plain loops side by side, half the sites each": _round_time(
            [("plain", "0/2", 1), ("plain", "1/2", 1)], part
        ),
        "fedmed, one worker": _round_time([("ours", "0/1", 1)], part),
        "fedmed, two workers": _round_time([("ours", "0/1", 2)], part),
        "stock Flower, one actor": _round_time([("stock", "0/1", 1)], part),
        "stock Flower, two actors": _round_time([("stock", "0/1", 2)], part),
    }
    limits = list(seconds.values())[:2]
    print(f"\n{part} model, {settings['sites']} sites, seconds a round (median of rounds 2 to {settings['rounds']})")
    print(f"{'':52}{'seconds':>9}{'to limit':>10}{'ms a message more':>20}")
    messages = settings["sites"] * MESSAGES_PER_SITE_AND_ROUND
    for number, (name, value) in enumerate(seconds.items()):
        limit = limits[number % 2]
        more = 1000 * (value - limit) / messages
        print(f"{name:52}{value:9.3f}{value / limit:10.3f}{more:20.2f}")
    return seconds


def _measure_memory() -> dict[str, Measured]:
    figures = {f"{sites} sites": _run([("memory", "0/1", 2)], "memory", sites=sites)[0] for sites in (2, 32)}
    print("\nServerApp's process, 100 MB model, MiB above its start (PSS: private and file pages, then shared memory)")
    for name, found in figures.items():
        print(f"{name:12}{found['private_mib']:10.0f}{found['shared_mib']:10.0f}")
    return figures


def _round_time(processes: list[tuple[str, str, int]], part: str) -> float:
    """Return the median time of a round after the first; of processes side by side, the slower one's."""
    return max(float(statistics.median(found["rounds_s"][1:])) for found in _run(processes, part))


def _run(processes: list[tuple[str, str, int]], part: str, sites: int | None = None) -> list[Measured]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        started = []
        for number, (kind, share, workers) in enumerate(processes):
            command = [sys.executable, MEASURE, kind, part, f"{folder}/{number}", "--share", share]
            command += ["--workers", str(workers)] + (["--sites", str(sites)] if sites else [])
            pipe = subprocess.PIPE
            started.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment))  # noqa: S603
        results = []
        for process in started:
            output, errors = process.communicate()
            lines = [line for line in output.splitlines() if line.startswith("RESULT ")]
            if process.returncode or not lines:
                raise SystemExit(f"a measurement failed:\n{output}\n{errors}")
            results.append(json.loads(lines[0].removeprefix("RESULT ")))
    return results


if __name__ == "__main__":
    sys.exit(main())
