"""What updates of 8 or 16 bits cost: in bytes, and in balanced accuracy.

    python simulations/benchmarks/compressed_updates.py
    python simulations/benchmarks/compressed_updates.py --kind fp16 --seeds 1 --set rounds=4
    python simulations/benchmarks/compressed_updates.py --rounding-alone
    python simulations/benchmarks/compressed_updates.py --seeds 10 --json figures.json

Federated averaging as a plain loop over the sites of a config (default: HAM10000's four), with the code that sites run.
Each seed trains twice, with whole and with rounded updates, and every model is scored on the same test images
(``--rounding-alone`` leaves the whole training out):

``rounding``   In every round of the rounded training, the average of what the sites had before it was rounded is scored
               beside the average of what travelled. Both come from the same training, so this is the rounding alone.
``training``   The last model of the rounded training against the last one of the whole. Training is chaotic: the
               smallest change in the first round leads elsewhere, so this is the effect together with as much chance as
               there is between two runs of one kind, and only many seeds narrow it. ``--control`` shows that chance
               without any rounding: it trains a third time, with one weight of the first model moved by one part in a
               million.

Differences are rounded minus whole, in points of balanced accuracy; intervals are of Student's t over seeds.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from client.local import Site
from fedmed.aggregation import TensorFile
from fedmed.compression import Kind, compress_update, decompress_update
from fedmed.config import Plan, RunConfig
from fedmed.config_files import load_run_config
from fedmed.data import prepare_data
from fedmed.errors import FedmedError
from fedmed.metrics.classification import compute_figures
from fedmed.metrics.tables import combine_tables
from fedmed.network import Network
from fedmed.run_folder import RunFolder
from fedmed.training import evaluate, fit
from fedmed.wire import pack_tensors, unpack_tensors
from simulations.benchmarks.apps import open_benchmark_site

State = dict[str, torch.Tensor]
CONFIG = Path("configs/ham10000_sites.yaml")
SETTINGS = ("data.image_size=32", "rounds=16")
_MOVED = 1 + 1e-6


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIG, help="of a simulation")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help=f"default: {' and '.join(SETTINGS)}"
    )
    parser.add_argument("--kind", choices=["int8", "fp16"], default="int8")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--rounding-alone", action="store_true", help="train with rounded updates only")
    parser.add_argument("--control", action="store_true", help="also train with one weight moved, to show chance")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to a file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    found: list[dict[str, Any]] = []
    try:
        for seed in range(options.seeds):
            config = load_run_config(options.config, [*SETTINGS, *options.set, f"seed={seed}"])
            found.append({"seed": seed} | _measure(config, options))
            print(describe_seed(found[-1]), file=sys.stderr, flush=True)
            if options.json:
                options.json.write_text(json.dumps(found, indent=1) + "\n")
    except FedmedError as error:
        print(f"The benchmark did not finish.\n{error}", file=sys.stderr)
        return 1
    print(describe(found, options.kind))
    return 0


def _measure(config: RunConfig, options: argparse.Namespace) -> dict[str, Any]:
    return measure_seed(config, options.kind, whole=not options.rounding_alone, control=options.control)


def measure_seed(config: RunConfig, kind: Kind, *, whole: bool = True, control: bool = False) -> dict[str, Any]:
    """Train up to three times, and return balanced accuracies and the share of the bytes.

    Parameters
    ----------
    config : RunConfig
        Settings of a simulation with complete averaging; what a loop does not have (benefit, deadlines) is left out.
    kind : {"int8", "fp16"}
        How updates are rounded.
    whole : bool
        Whether to train with whole updates too.
    control : bool
        Whether to train once more with whole updates, from a start that differs by one part in a million of one weight.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder.create(Path(folder) / "run", "none")
        prepared = prepare_data(config.data, config.sites, config.seed, run.splits)
        config = config.model_copy(update={"classes": list(prepared.classes)})
        run.write_config(config)
        federation = Loop(config, [open_benchmark_site(run, name) for name in prepared.sites])
        rounded = Rounded(kind, Path(folder))
        last: dict[str, float] = {}
        pairs: list[dict[str, float]] = []

        def look(sites: Mapping[str, State], start: State, weights: State) -> None:
            before = federation.score(federation.average(sites, start))
            pairs.append({"whole": before, "rounded": federation.score(weights)})

        if whole:
            last["whole"] = federation.score(federation.train(as_it_is))
        last["rounded"] = federation.score(federation.train(rounded, look))
        if control:
            last["moved"] = federation.score(federation.train(as_it_is, moved=True))
        return {"rounds": pairs, "bytes_share": rounded.num_bytes / rounded.num_whole_bytes, "last": last}


class Loop:
    """Federated averaging as a loop: nothing is sent, saved or checked.

    Parameters
    ----------
    config : RunConfig
        Settings with classes.
    sites : sequence of Site
        With their images.
    """

    def __init__(self, config: RunConfig, sites: Sequence[Site]) -> None:
        self.plan: Plan = config.make_plan()
        self.sites = sites
        self.network = Network(self.plan)
        self._start = clone(self.network.model.state_dict())

    def train(
        self,
        travel: Callable[[str, State, State], State],
        look: Callable[[Mapping[str, State], State, State], None] | None = None,
        *,
        moved: bool = False,
    ) -> State:
        """Return the weights after all rounds.

        Parameters
        ----------
        travel : callable
            From a site, its weights and those that it began with to what arrives at the server.
        look : callable, optional
            Told in every round what the sites had, what they began with and the average of what arrived.
        moved : bool
            Whether one weight of the first model is moved by one part in a million.
        """
        weights = clone(self._start)
        if moved:
            first = next(tensor for tensor in weights.values() if tensor.is_floating_point())
            first[(0,) * first.ndim] *= _MOVED
        for number in range(1, self.plan.rounds + 1):
            trained = {site.name: self._fit(site, weights, number) for site in self.sites}
            arrived = {name: travel(name, state, weights) for name, state in trained.items()}
            start, weights = weights, self.average(arrived, weights)
            if look is not None:
                look(trained, start, weights)
        return weights

    def average(self, states: Mapping[str, State], start: State) -> State:
        """Return the mean over sites, weighted by training images; of a counter the largest, as in a federation."""
        images = [len(site.data.train) for site in self.sites]
        averaged: State = {}
        for name, before in start.items():
            tensors = [states[site.name][name] for site in self.sites]
            if before.is_floating_point():
                summed = torch.zeros_like(before, dtype=torch.float64)
                for tensor, number in zip(tensors, images, strict=True):
                    summed += tensor.double() * number
                averaged[name] = (summed / sum(images)).to(before.dtype)
            else:
                averaged[name] = torch.stack(tensors).amax(dim=0)
        return averaged

    def score(self, weights: State) -> float:
        """Return the balanced accuracy on all test images, in points."""
        self.network.model.load_state_dict(weights)
        tables = [
            evaluate(self.network.model, s.data.test, self.plan, group=s.name, device=s.device) for s in self.sites
        ]
        value = compute_figures(combine_tables(tables).pool())["balanced_accuracy"].value
        assert value is not None, "there are test images"
        return 100 * value

    def _fit(self, site: Site, weights: State, number: int) -> State:
        model = self.network.model
        model.load_state_dict(weights)
        fit(model, site.data.train, self.plan, site=site.name, round_number=number, device=site.device)
        return clone(model.state_dict())


def as_it_is(_site: str, state: State, _start: State) -> State:
    """Return a site's weights: nothing is rounded."""
    return state


class Rounded:
    """Packs an update at a site and restores it at the server, as in a federation; residuals stay with the site.

    Parameters
    ----------
    kind : {"int8", "fp16"}
        How.
    folder : Path
        For the files.
    """

    def __init__(self, kind: Kind, folder: Path) -> None:
        self._kind, self._folder = kind, folder
        self._residuals: dict[str, State] = {}
        self.num_bytes = self.num_whole_bytes = 0

    def __call__(self, site: str, state: State, start: State) -> State:
        """Return what arrives of a site's weights."""
        packed, self._residuals[site] = compress_update(state, start, self._residuals.get(site, {}), self._kind)
        files = [self._folder / name for name in ("packed", "reference", "restored")]
        whole = pack_tensors(start)
        files[0].write_bytes(packed)
        files[1].write_bytes(whole)
        decompress_update(files[0], TensorFile(files[1]), files[2])
        self.num_bytes += len(packed)
        self.num_whole_bytes += len(whole)
        return unpack_tensors(files[2].read_bytes())


def clone(state: Mapping[str, torch.Tensor]) -> State:
    """Return a copy that later training does not change."""
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def describe_seed(found: Mapping[str, Any]) -> str:
    """Return a line about one seed."""
    last = "  ".join(f"{name} {value:.2f}" for name, value in found["last"].items())
    return f"seed {found['seed']}: {last}; by rounding alone, last round: {rounding(found)[-1]:+.2f} points"


def describe(found: Sequence[Mapping[str, Any]], kind: str) -> str:
    """Return the figures of all seeds as text."""
    alone = np.concatenate([rounding(one) for one in found])
    lines = [
        f"{kind}: {100 * np.mean([one['bytes_share'] for one in found]):.2f} % of the bytes; {len(found)} seeds, "
        f"{len(found[0]['rounds'])} rounds, balanced accuracy, points",
        f"  rounding, mean over rounds   {with_interval([float(rounding(one).mean()) for one in found])}",
        f"  rounding, a single round     median size {np.median(abs(alone)):.2f}, largest {abs(alone).max():.2f}",
    ]
    for name in ("rounded", "moved"):
        if {name, "whole"} <= set(found[0]["last"]):
            differences = [one["last"][name] - one["last"]["whole"] for one in found]
            label = "training" if name == "rounded" else "chance: one weight moved"
            lines.append(f"  {label:28s} {with_interval(differences)}")
    return "\n".join(lines)


def rounding(found: Mapping[str, Any]) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """Return rounded minus whole in every round of a seed, in points."""
    return np.array([pair["rounded"] - pair["whole"] for pair in found["rounds"]])


def with_interval(values: Sequence[float]) -> str:
    """Return a mean with its 95 % interval over seeds, which a single one does not have."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:+.2f} (one seed)"
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})"


if __name__ == "__main__":
    sys.exit(main())
