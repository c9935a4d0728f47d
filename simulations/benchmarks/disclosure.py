"""What a report loses because hospitals tell less than they know.

    python simulations/benchmarks/disclosure.py
    python simulations/benchmarks/disclosure.py --seeds 1 --set rounds=2 --json figures.json

Federated averaging as a plain loop over the sites of a config (default: HAM10000's four, FEDMED_DATA names their
folder) gives one model a seed. Its figures on the test images are computed three times:

``exact``      from all images together, each against all others, as if one person held them;
``simulation`` from the complete tables of the sites, with histograms of scores;
``hospitals``  from what hospitals tell with ``k = 10``, ``k_row = 5`` and ``k_bin = 5``, patients counted where the
               data names them, and groups by sex and age told as well.

The differences are hospitals minus exact, in points; n/a where hospitals' tables give no such figure.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from client.hospital.site_data import Site
from fedmed.config import RunConfig
from fedmed.fairness.disclosure.rows import Disclosure, plan_disclosure
from fedmed.fairness.disclosure.tables import disclose_tables
from fedmed.fairness.figures.groups import assign_groups
from fedmed.metrics.classification import Figure, compute_figures
from fedmed.metrics.site_tables import FEDERATED
from fedmed.metrics.tables import EvaluationTables, combine_tables, tables_from_logits
from fedmed.training.evaluate import compute_logits
from simulations.benchmarks.apps import make_benchmark_run
from simulations.benchmarks.compressed_updates import Loop, as_it_is
from simulations.benchmarks.seeds import Finding, add_seed_options, measure_seeds

SETTINGS = ("data.image_size=32", "rounds=6")
HOSPITALS = Disclosure(k=10, k_row=5, k_bin=5)
FIGURES = ("balanced_accuracy", "macro_f1", "kappa", "mcc", "auc", "ece", "brier")

Values = dict[str, float | None]


class LossFinding(Finding):
    """What one seed shows."""

    exact: Values
    simulation: Values
    hospitals: Values
    classes: dict[str, list[float | None]]
    """AUC of each class: ``exact`` and ``hospitals``."""
    images: list[int]
    """Test images, and how many of them count in the hospitals' accuracy and are told class by class."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_seed_options(parser, SETTINGS)
    options = parser.parse_args(arguments)
    found = measure_seeds(options, SETTINGS, measure, describe_seed)
    if found is None:
        return 1
    print(describe(found))
    return 0


def measure(config: RunConfig) -> Iterator[LossFinding]:
    """Train a model, and give its figures in the three ways."""
    with tempfile.TemporaryDirectory() as folder:
        loop = Loop(make_benchmark_run(Path(folder) / "run", config), Path(folder))
        logits = score_sites(loop, loop.train(as_it_is))
    yield compare(logits, loop.sites, config)


def score_sites(loop: Loop, file: Path) -> dict[str, torch.Tensor]:
    """Return a model's outputs for the test images of every site."""
    model = loop.fill(file)
    return {site.name: compute_logits(model, site.data.test, loop.plan, device=site.device) for site in loop.sites}


def compare(logits: Mapping[str, torch.Tensor], sites: Sequence[Site], config: RunConfig) -> LossFinding:
    """Return the figures of outputs in the three ways."""
    parts = {site.name: site.data.test for site in sites}
    everything = tables_from_logits(
        torch.cat([logits[name] for name in parts]),
        torch.cat([part.labels for part in parts.values()]),
        ["all"] * sum(map(len, parts.values())),
        [f"{name}/{patient}" for name, part in parts.items() for patient in part.patients],
    )
    complete = [
        tables_from_logits(logits[name], part.labels, [name] * len(part), part.patients) for name, part in parts.items()
    ]
    told = combine_tables([tell(logits[site.name], site, config) for site in sites])
    exact = use_areas(compute_figures(everything), everything)
    hospitals = compute_figures(told)
    return {
        "exact": read(exact),
        "simulation": read(compute_figures(combine_tables(complete))),
        "hospitals": read(hospitals),
        "classes": {"exact": list(exact["auc"].by_class or ()), "hospitals": list(hospitals["auc"].by_class or ())},
        "images": [everything.num_images, told.num_images, int(told.row_images.sum())],
    }


def tell(z_NK: torch.Tensor, site: Site, config: RunConfig) -> EvaluationTables:
    """Return what the site tells of itself as a hospital."""
    part = site.data.test
    groups = assign_groups(site.name, part.attributes, config.fairness, len(part))
    plan = plan_disclosure(part.labels, groups, part.items, HOSPITALS)
    return disclose_tables({FEDERATED: z_NK}, part.labels, groups, plan, HOSPITALS, part.patients).site


def use_areas(figures: dict[str, Figure], tables: EvaluationTables) -> dict[str, Figure]:
    """Return figures with the AUC of images compared one by one instead of that of histograms."""
    hidden = {"scores": np.zeros_like(tables.scores)}
    without = EvaluationTables(tables.groups, **(tables.to_arrays() | hidden))
    return figures | {"auc": compute_figures(without)["auc"]}


def read(figures: Mapping[str, Figure]) -> Values:
    """Return the values of the figures that are compared."""
    return {key: figures[key].value for key in FIGURES}


def describe_seed(found: LossFinding) -> str:
    """Return a line about one seed."""
    return f"seed {found['seed']}: " + "  ".join(f"{key} {_difference(found, key)}" for key in FIGURES)


def describe(found: Sequence[LossFinding]) -> str:
    """Return the figures of all seeds as a table."""
    lines = [
        "| figure | exact | simulation | hospitals | hospitals - exact, points |",
        "| --- | --- | --- | --- | --- |",
    ]
    for key in FIGURES:
        cells = [", ".join(_show(one[kind][key]) for one in found) for kind in ("exact", "simulation", "hospitals")]
        lines.append(f"| {key} | {' | '.join(cells)} | {', '.join(_difference(one, key) for one in found)} |")
    largest = [
        max((abs(own - true) for own, true in _pairs(one) if own is not None and true is not None), default=0.0)
        for one in found
    ]
    lines.append("Largest difference of a class's AUC, points: " + ", ".join(f"{100 * value:.1f}" for value in largest))
    lines.append("Test images, told, told class by class: " + "; ".join(str(one["images"]) for one in found))
    return "\n".join(lines)


def _pairs(found: LossFinding) -> Iterator[tuple[float | None, float | None]]:
    yield from zip(found["classes"]["hospitals"], found["classes"]["exact"], strict=True)


def _difference(found: LossFinding, key: str) -> str:
    own, true = found["hospitals"][key], found["exact"][key]
    return "n/a" if own is None or true is None else f"{100 * (own - true):+.2f}"


def _show(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    sys.exit(main())
