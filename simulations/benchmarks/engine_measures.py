"""The measurements behind ``engine.py``, each in a process of its own."""

import argparse
import gc
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fedmed.config import RunConfig
from fedmed.metrics.classification import compute_figures
from fedmed.metrics.tables import combine_tables
from fedmed.storage.history import read_history
from fedmed.storage.run_folder import RunFolder
from fedmed.training.evaluate import evaluate
from fedmed.training.fit import fit
from fedmed.training.network import Network
from server.rounds.progress import LogListener
from simulations.benchmarks.apps import RUN_VARIABLE, make_benchmark_run, open_benchmark_site, stock_app
from simulations.simulation import run_simulation


class Work(TypedDict):
    """Settings of one part of the benchmark."""

    sites: NotRequired[int]
    rounds: int
    model: dict[str, str]
    data: dict[str, str | int]


class Measured(TypedDict, total=False):
    """What one process has measured: its rounds, or its peak memory above its start."""

    rounds_s: list[float]
    private_mib: float
    shared_mib: float


SETTINGS: dict[str, Work] = {
    "45 MB": {
        "sites": 10,
        "rounds": 4,
        "model": {"name": "resnet18"},
        "data": {"source": "phantom", "images_per_site": 150, "image_size": 64, "num_classes": 3},
    },
    "tiny": {
        "sites": 50,
        "rounds": 6,
        "model": {"name": "benchmark_tiny"},
        "data": {"source": "phantom", "images_per_site": 40, "image_size": 32, "num_classes": 3},
    },
    "memory": {
        "rounds": 2,
        "model": {"name": "benchmark_100mb"},
        "data": {"source": "phantom", "images_per_site": 20, "image_size": 16, "num_classes": 2},
    },
}


def main() -> int:
    """Make one measurement and print its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["plain", "ours", "stock", "memory"])
    parser.add_argument("part", choices=list(SETTINGS))
    parser.add_argument("folder", type=Path, help="for the run; must not exist")
    parser.add_argument("--share", default="0/1", help="plain: which of how many equal parts of the sites")
    parser.add_argument("--workers", type=int, default=1, help="ours, memory: workers; stock: actors")
    parser.add_argument("--sites", type=int, help="instead of the part's own number")
    print("RESULT " + json.dumps(measure(parser.parse_args())))
    return 0


def make_config(part: str, sites: int | None = None, workers: int = 1) -> RunConfig:
    """Return the settings of one measurement."""
    values = {"seed": 0, "threads": 1, "workers": workers, "loss": {"ce": 1.0}, **SETTINGS[part]}
    return RunConfig.model_validate(values | ({"sites": sites} if sites else {}))


def measure(options: argparse.Namespace) -> Measured:
    """Make one measurement and return its figures."""
    kind, part = options.kind, options.part
    run = make_benchmark_run(options.folder, make_config(part, options.sites, options.workers))
    sites = list(run.read_roster().values())
    if kind == "plain":
        first, step = (int(text) for text in options.share.split("/"))
        return {"rounds_s": _run_plain(run, sites[first::step])}
    if kind == "stock":
        return {"rounds_s": _run_stock(run, len(sites), options.workers)}
    if kind == "memory":
        return _measure_memory(run)
    run_simulation(run, run.read_config(), LogListener(), client_app="simulations.benchmarks.apps:app")
    return {"rounds_s": [record.wall_s for record in read_history(run.history_file)]}


def _run_plain(run: RunFolder, names: list[str]) -> list[float]:
    """Federated averaging as a loop: nothing is sent, saved or checked."""
    torch.set_num_threads(1)
    config = run.read_config()
    plan = config.make_plan()
    network = Network(plan)
    model = network.model
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sites = [open_benchmark_site(run, name) for name in names]
    total = sum(len(site.data.train) for site in sites)
    rounds_s = []
    for number in range(1, config.rounds + 1):
        began = time.perf_counter()
        sums = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in weights.items()}
        for site in sites:
            model.load_state_dict(weights)
            fit(model, site.data.train, plan, site=site.name, round_number=number, device=site.device)
            for name, tensor in model.state_dict().items():
                sums[name] += tensor * (len(site.data.train) / total)
        weights = {name: summed.to(weights[name].dtype) for name, summed in sums.items()}
        model.load_state_dict(weights)
        tables = [evaluate(model, s.data.validation, plan, group=s.name, device=s.device) for s in sites]
        compute_figures(combine_tables(tables).pool())
        rounds_s.append(time.perf_counter() - began)
    return rounds_s


def _run_stock(run: RunFolder, num_sites: int, actors: int) -> list[float]:
    """Flower's simulator with its FedAvg, on the same work."""
    from flwr.simulation import run_simulation as run_stock  # noqa: PLC0415  (only this measurement needs it)

    os.environ[RUN_VARIABLE] = str(run.path)
    config = run.read_config()
    server = ServerApp()
    ends: list[float] = []

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        def note_end(round_number: int, arrays: ArrayRecord) -> None:
            ends.append(time.perf_counter())

        FedAvg(min_train_nodes=num_sites, min_evaluate_nodes=num_sites, min_available_nodes=num_sites).start(
            grid=grid,
            initial_arrays=ArrayRecord(Network(config.make_plan()).model.state_dict()),
            num_rounds=config.rounds,
            evaluate_fn=note_end,
        )

    run_stock(
        server,
        stock_app,
        num_supernodes=num_sites,
        backend_config={
            "client_resources": {"num_cpus": 2 // actors},
            "init_args": {"num_cpus": 2, "log_to_driver": False, "include_dashboard": False},
        },
    )
    # evaluate_fn is called once before round 1 and then at the end of every round.
    return [float(seconds) for seconds in np.diff(ends)]


def _measure_memory(run: RunFolder) -> Measured:
    """Return the peak memory of this process, which runs the ServerApp, above its start."""
    gc.collect()
    start, peak, ended = _read_pss_mib(), {"private": 0.0, "shared": 0.0}, threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            for name, value in _read_pss_mib().items():
                peak[name] = max(peak[name], value)

    thread = threading.Thread(target=watch)
    thread.start()
    run_simulation(run, run.read_config(), LogListener(), client_app="simulations.benchmarks.apps:app")
    ended.set()
    thread.join()
    return {"private_mib": peak["private"] - start["private"], "shared_mib": peak["shared"] - start["shared"]}


def _read_pss_mib() -> dict[str, float]:
    """Return this process's proportional set size: private and file pages, and shared memory."""
    fields = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        fields[name] = int(rest.split()[0]) / 1024
    return {"private": fields["Pss_Anon"] + fields["Pss_File"], "shared": fields["Pss_Shmem"]}


if __name__ == "__main__":
    sys.exit(main())
