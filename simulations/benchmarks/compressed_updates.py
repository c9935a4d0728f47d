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
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch import nn

from client.hospital.site_data import Site
from fedmed.aggregation import WeightedUpdate, average_updates
from fedmed.config import RunConfig
from fedmed.metrics.classification import compute_figures
from fedmed.metrics.tables import combine_tables
from fedmed.protocol.quantisation import Kind, compress_update, decompress_update
from fedmed.protocol.tensors import unpack_tensors
from fedmed.storage.run_folder import RunFolder
from fedmed.storage.tensor_files import TensorFile, write_tensors
from fedmed.training.evaluate import evaluate
from fedmed.training.fit import fit
from fedmed.training.network import Network
from simulations.benchmarks.apps import make_benchmark_run, open_benchmark_site
from simulations.benchmarks.seeds import Finding, add_seed_options, measure_seeds, with_interval

SETTINGS = ("data.image_size=32", "rounds=16")
_MOVED = 1 + 1e-6
_POINTS = "+.2f"


class RoundScores(TypedDict):
    """Balanced accuracies, in points, of two averages of the same round."""

    whole: float
    """Of what the sites had before it was rounded."""
    rounded: float
    """Of what travelled."""


class SeedFinding(Finding):
    """What one seed shows."""

    rounds: list[RoundScores]
    bytes_share: float
    last: dict[str, float]
    """Training, ``whole``, ``rounded`` or ``moved`` -> balanced accuracy of its last model, in points."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_seed_options(parser, SETTINGS)
    parser.add_argument("--kind", choices=["int8", "fp16"], default="int8")
    parser.add_argument("--rounding-alone", action="store_true", help="train with rounded updates only")
    parser.add_argument("--control", action="store_true", help="also train with one weight moved, to show chance")
    options = parser.parse_args(arguments)

    def measure(config: RunConfig) -> Iterator[SeedFinding]:
        yield measure_seed(config, options.kind, whole=not options.rounding_alone, control=options.control)

    found = measure_seeds(options, SETTINGS, measure, describe_seed)
    if found is None:
        return 1
    print(describe(found, options.kind))
    return 0


def measure_seed(config: RunConfig, kind: Kind, *, whole: bool = True, control: bool = False) -> SeedFinding:
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
        loop = Loop(make_benchmark_run(Path(folder) / "run", config), Path(folder))
        rounded = Rounded(kind, Path(folder))
        last: dict[str, float] = {}
        pairs: list[RoundScores] = []

        def look(sites: Mapping[str, Path], averaged: Path) -> None:
            before = loop.score(loop.average(sites, Path(folder) / "not_rounded"))
            pairs.append({"whole": before, "rounded": loop.score(averaged)})

        if whole:
            last["whole"] = loop.score(loop.train(as_it_is))
        last["rounded"] = loop.score(loop.train(rounded, look))
        if control:
            last["moved"] = loop.score(loop.train(as_it_is, moved=True))
        return {"rounds": pairs, "bytes_share": rounded.num_bytes / rounded.num_whole_bytes, "last": last}


class Loop:
    """Federated averaging as a loop over tensor files: nothing is sent or checked.

    Parameters
    ----------
    run : RunFolder
        Of :func:`simulations.benchmarks.apps.make_benchmark_run`.
    folder : Path
        For the files.
    """

    def __init__(self, run: RunFolder, folder: Path) -> None:
        self.plan = run.read_config().make_plan()
        self.sites = [open_benchmark_site(run, name) for name in run.read_roster().values()]
        self._folder, self._network = folder, Network(self.plan)
        self._start = self._network.pack()

    def train(
        self,
        travel: Callable[[str, Path, Path], Path],
        look: Callable[[Mapping[str, Path], Path], None] | None = None,
        *,
        moved: bool = False,
    ) -> Path:
        """Return the file of the weights after all rounds; the next training replaces it.

        Parameters
        ----------
        travel : callable
            From a site, the files of its weights and of those that it began with to the file of what arrives.
        look : callable, optional
            Told in every round the files of what the sites had, and that of the average of what arrived.
        moved : bool
            Whether one weight of the first model is moved by one part in a million.
        """
        common = self._folder / "common"
        common.write_bytes(self._move() if moved else self._start)
        for number in range(1, self.plan.rounds + 1):
            packed = common.read_bytes()
            trained = {site.name: self._fit(site, packed, number) for site in self.sites}
            arrived = {name: travel(name, file, common) for name, file in trained.items()}
            self.average(arrived, common)
            if look is not None:
                look(trained, common)
        return common

    def average(self, files: Mapping[str, Path], target: Path) -> Path:
        """Write the mean over sites, weighted by training images, as a federation does, and return its file."""
        updates = [WeightedUpdate(site.name, files[site.name], len(site.data.train)) for site in self.sites]
        layout = TensorFile(updates[0].path).layout
        write_tensors(target, average_updates(updates), {"format": "pt"}, layout=layout)
        return target

    def score(self, file: Path) -> float:
        """Return the balanced accuracy on all test images, in points."""
        model = self.fill(file)
        tables = [evaluate(model, s.data.test, self.plan, group=s.name, device=s.device) for s in self.sites]
        value = compute_figures(combine_tables(tables).pool())["balanced_accuracy"].value
        assert value is not None, "there are test images"
        return 100 * value

    def fill(self, file: Path) -> nn.Module:
        """Return the network with the weights of a file; the next call changes it."""
        self._network.fill(file.read_bytes(), {})
        return self._network.model

    def _fit(self, site: Site, packed: bytes, number: int) -> Path:
        self._network.fill(packed, {})
        fit(self._network.model, site.data.train, self.plan, site=site.name, round_number=number, device=site.device)
        file = self._folder / f"trained_{site.name}"
        file.write_bytes(self._network.pack())
        return file

    def _move(self) -> bytes:
        self._network.fill(self._start, {})
        first = next(self._network.model.parameters())
        with torch.no_grad():
            first[(0,) * first.ndim] *= _MOVED
        return self._network.pack()


def as_it_is(_site: str, file: Path, _start: Path) -> Path:
    """Return the file of a site's weights: nothing is rounded."""
    return file


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
        self._residuals: dict[str, dict[str, torch.Tensor]] = {}
        self.num_bytes = self.num_whole_bytes = 0

    def __call__(self, site: str, file: Path, start: Path) -> Path:
        """Return the file of what arrives of a site's weights."""
        new, reference = (unpack_tensors(path.read_bytes()) for path in (file, start))
        packed, self._residuals[site] = compress_update(new, reference, self._residuals.get(site, {}), self._kind)
        sent, restored = self._folder / "sent", self._folder / f"restored_{site}"
        sent.write_bytes(packed)
        decompress_update(sent, TensorFile(start), restored)
        self.num_bytes += len(packed)
        self.num_whole_bytes += file.stat().st_size
        return restored


def describe_seed(found: SeedFinding) -> str:
    """Return a line about one seed."""
    last = "  ".join(f"{name} {value:.2f}" for name, value in found["last"].items())
    return f"seed {found['seed']}: {last}; by rounding alone, last round: {rounding(found)[-1]:+.2f} points"


def describe(found: Sequence[SeedFinding], kind: str) -> str:
    """Return the figures of all seeds as text."""
    alone = np.concatenate([rounding(one) for one in found])
    lines = [
        f"{kind}: {100 * np.mean([one['bytes_share'] for one in found]):.2f} % of the bytes; {len(found)} seeds, "
        f"{len(found[0]['rounds'])} rounds, balanced accuracy, points",
        f"  rounding, mean over rounds   {with_interval([float(rounding(one).mean()) for one in found], _POINTS)}",
        f"  rounding, a single round     median size {np.median(abs(alone)):.2f}, largest {abs(alone).max():.2f}",
    ]
    for name in ("rounded", "moved"):
        if {name, "whole"} <= set(found[0]["last"]):
            differences = [one["last"][name] - one["last"]["whole"] for one in found]
            label = "training" if name == "rounded" else "chance: one weight moved"
            lines.append(f"  {label:28s} {with_interval(differences, _POINTS)}")
    return "\n".join(lines)


def rounding(found: SeedFinding) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """Return rounded minus whole in every round of a seed, in points."""
    return np.array([pair["rounded"] - pair["whole"] for pair in found["rounds"]])


if __name__ == "__main__":
    sys.exit(main())
