"""Time and memory of a federation's rounds as real processes, beside the same bytes over plain TLS sockets.

    python simulations/benchmarks/deployment.py                  # all parts, about fifteen minutes on two cores
    python simulations/benchmarks/deployment.py --part "10 MB"
    python simulations/benchmarks/deployment.py --part "10 MB" --sites 2 --rounds 200    # does the disk fill?

Server and sites run on this machine, each site with a line of its own to the server. Nothing is trained: a round sends
the model down to every site and an update of the same size up. A round's time is what passes between two lines of
history.jsonl; the first round is not counted. Read the ratios, not the seconds. Needs psutil (the extra ``dev``).
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from simulations.benchmarks.deployment_measures import ROUND_PARTS, Case, Figures, measure
from simulations.benchmarks.links import time_raw_tls

PARTS = {
    "2 MB": [Case(2, 2), Case(2, 8)],
    "10 MB": [Case(10, 2), Case(10, 8)],
    "100 MB": [Case(100, 2), Case(100, 8)],
    "300 MB": [Case(300, 2, num_timed=3)],
    "100 Mbit/s": [Case(10, 2, 100.0), Case(100, 2, 100.0, num_timed=2)],
}
PROTOTYPE_S = {(2, 2): 4.2, (100, 2): 9.9, (300, 2): 33.0, (100, 8): 33.0}
"""Seconds a round of the prototype on such a machine, by MB and sites; the first was measured with 1 MB."""
_RAW_ROUNDS = 3

Found = tuple[Case, Figures, float]
"""What was run, what was found, and the seconds over plain sockets."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=list(PARTS), action="append", help="measure this part only")
    parser.add_argument("--sites", type=int, choices=[2, 8], help="measure with so many sites only")
    parser.add_argument("--rounds", type=int, help="timed rounds, in place of each part's own number")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to a file")
    options = parser.parse_args(arguments)
    cases = [case for part in options.part or list(PARTS) for case in PARTS[part]]
    if options.sites is not None:
        cases = [case for case in cases if case.num_sites == options.sites]
        if not cases:
            parser.error(f"no such part has {options.sites} sites; 2 is in every part")
    if options.rounds is not None:
        cases = [replace(case, num_timed=options.rounds) for case in cases]
    found = []
    for case in cases:
        print(f"measuring {_name(case)} ...", file=sys.stderr, flush=True)
        found.append(_measure(case))
    for title, show in (
        ("Seconds a round", _show_times),
        ("Where they go", _show_parts),
        ("Memory", _show_memory),
        ("Disk of the coordinating site", _show_disk),
    ):
        print(f"\n{title}")
        show(found)
    if options.json:
        values = [asdict(case) | asdict(figures) | {"raw_tls_s": raw} for case, figures, raw in found]
        options.json.write_text(json.dumps(values, indent=2) + "\n")
    return 0


def _measure(case: Case) -> Found:
    """Return the figures of a federation, and the seconds for its bytes over plain sockets on lines like its own."""
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(case, Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        raw = time_raw_tls(figures.bytes_each_way, case.num_sites, _RAW_ROUNDS, Path(folder), case.mbit_s)
    return case, figures, raw


def _show_times(found: list[Found]) -> None:
    print(f"{'':24}{'ours':>8}{'raw TLS':>9}{'ratio':>7}{'own time':>10}{'ratio':>7}{'prototype':>11}{'ratio':>7}")
    for case, figures, raw in found:
        ours = figures.round_s
        own = 2 * figures.bytes_each_way * 8 / case.mbit_s / 1e6 if case.mbit_s else None
        prototype = None if case.mbit_s else PROTOTYPE_S.get((case.megabytes, case.num_sites))
        print(
            f"{_name(case):24}{ours:8.2f}{raw:9.2f}{ours / raw:7.2f}{_pair(ours, own, 10)}{_pair(ours, prototype, 11)}"
        )


def _show_parts(found: list[Found]) -> None:
    columns = (*ROUND_PARTS, "CPU server", "CPU sites")
    print(f"{'':24}" + "".join(f"{column:>12}" for column in columns))
    for case, figures, _ in found:
        parts = [figures.parts_s.get(part, 0.0) for part in ROUND_PARTS]
        values = [*parts, figures.server_cpu_s, figures.sites_cpu_s]
        print(f"{_name(case):24}" + "".join(f"{value:12.3f}" for value in values))


def _show_memory(found: list[Found]) -> None:
    print(f"{'MiB (PSS)':24}{'server':>8}{'in models':>11}{'one site':>10}{'in models':>11}")
    for case, figures, _ in found:
        server, client = sum(figures.server_mib.values()), sum(figures.client_mib.values())
        model = figures.bytes_each_way / 2**20
        print(f"{_name(case):24}{server:8.0f}{server / model:11.1f}{client:10.0f}{client / model:11.1f}")
        for processes in (figures.server_mib, figures.client_mib):
            print("  of it " + ", ".join(f"{name} {mib:.0f}" for name, mib in processes.items()))


def _show_disk(found: list[Found]) -> None:
    print(f"{'MiB':24}{'most':>8}{'in models':>11}{'growth over the timed rounds':>30}")
    for case, figures, _ in found:
        models = figures.server_disk_mib / (figures.bytes_each_way / 2**20)
        print(f"{_name(case):24}{figures.server_disk_mib:8.0f}{models:11.1f}{figures.disk_growth_mib:30.1f}")


def _name(case: Case) -> str:
    speed = f", {case.mbit_s:g} Mbit/s" if case.mbit_s else ""
    return f"{case.megabytes} MB, {case.num_sites} sites{speed}"


def _pair(ours: float, other: float | None, width: int) -> str:
    """Return a time and how many times as long ours is."""
    return " " * (width + 7) if other is None else f"{other:{width}.2f}{ours / other:7.2f}"


if __name__ == "__main__":
    sys.exit(main())
