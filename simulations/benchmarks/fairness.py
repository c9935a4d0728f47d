"""CPU time of the intervals of disparities, beside fairlearn's bootstrap on the same images, in one run.

    python simulations/benchmarks/fairness.py
    python simulations/benchmarks/fairness.py --fairlearn-draws 100 --turns 3 --json figures.json

First: one attribute of three groups, 8 classes, 2,000 images. Ours draws the table of counts anew, ``MetricFrame`` the
rows, for the same figures: accuracy, balanced accuracy and macro F1 of every group with their gap and worst group, and
selection rate, TPR and FPR of every class. fairlearn's time grows in proportion to its draws, so few of them are timed
and the time is scaled. ``everything`` are our draws of all disparities, of scores and confidences too, with p-values.

Then: a full report of four sites by site, sex, age band and sex x age band: every figure of every group with its
interval, every disparity with its interval, p-value and flag.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairlearn.metrics import MetricFrame, false_positive_rate, selection_rate, true_positive_rate
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from fedmed.fairness import add_intervals, compare_groups, compute_gaps, flag_attributes
from fedmed.fairness.figures.gap_sources import CountSource
from fedmed.fairness.figures.rates import class_rates
from fedmed.metrics.classification import compute_figures, count_values
from fedmed.metrics.site_tables import SITE_ATTRIBUTE
from fedmed.metrics.tables import EvaluationTables, combine_tables, tables_from_logits
from fedmed.metrics.values import Array, gap_defined
from fedmed.seeding import make_rng

NUM_CLASSES = 8
NUM_IMAGES = 2000
NUM_DRAWS = 1000
QUANTILES = [0.025, 0.975]
GROUPS = {"sex": ("f", "m"), "age_band": ("0-39", "40-59", "60-79", "80+")}
CROSSING = "sex x age_band"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--fairlearn-draws", type=int, default=10, help="draws of fairlearn that are timed, 10 by default"
    )
    parser.add_argument("--turns", type=int, default=3, help="turns of ours; the best one counts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to a file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    figures = compare_bootstraps(options.fairlearn_draws, options.turns) | {"report_s": time_report(options.turns)}
    print(
        f"3 groups, {NUM_CLASSES} classes, {NUM_IMAGES} images, {NUM_DRAWS} draws\n"
        f"  ours, same figures   {figures['ours_s']:9.3f} s\n"
        f"  fairlearn            {figures['fairlearn_s']:9.1f} s  "
        f"(timed with {options.fairlearn_draws} draws, scaled to {NUM_DRAWS})\n"
        f"  ratio                {figures['ratio']:9.0f}\n"
        f"  ours, everything     {figures['everything_s']:9.3f} s\n"
        f"report of 4 sites and 3 attributes with a crossing: {figures['report_s']:.2f} s"
    )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def compare_bootstraps(fairlearn_draws: int, turns: int) -> dict[str, float]:
    """Return seconds of the intervals of one attribute, ours and fairlearn's, and their ratio."""
    labels, logits = draw_images(NUM_IMAGES, seed=0)
    groups = np.array(["a", "b", "c"])[make_rng(0, "groups").integers(0, 3, NUM_IMAGES)]
    tables = tables_from_logits(torch.from_numpy(logits), torch.from_numpy(labels), list(groups))
    check_same_figures(tables, labels, logits.argmax(axis=1), groups)
    ours = _best_time(lambda: draw_intervals(tables), turns)
    began = time.process_time()
    make_frame(labels, logits.argmax(axis=1), groups, fairlearn_draws)
    fairlearn = (time.process_time() - began) * NUM_DRAWS / fairlearn_draws
    everything = _best_time(lambda: compare_groups(tables, 0, NUM_DRAWS), turns)
    return {"ours_s": ours, "fairlearn_s": fairlearn, "ratio": fairlearn / ours, "everything_s": everything}


def draw_intervals(tables: EvaluationTables) -> dict[str, Array]:
    """Return quantiles of the draws of the figures that fairlearn's frame has, of groups, gaps and worst groups."""
    counts, _ = CountSource(tables).resample(make_rng(0, "benchmark"), NUM_DRAWS)
    by_group, overall = count_values(counts), count_values(counts.sum(axis=1))
    drawn: dict[str, Array] = {}
    for key in ("accuracy", "balanced_accuracy", "macro_f1"):
        values = by_group[key].value
        drawn |= {key: values, f"all_{key}": overall[key].value, f"gap_{key}": gap_defined(values)}
        drawn |= {f"worst_group_{key}": values.min(axis=-1), f"ratio_{key}": values.min(axis=-1) / values.max(axis=-1)}
    for name, rate in class_rates(counts)._asdict().items():
        drawn |= {name: rate, f"gap_{name}": np.ptp(rate, axis=1), f"worst_{name}": rate.min(axis=1)}
    return {key: np.quantile(values, QUANTILES, axis=0) for key, values in drawn.items()}


def make_frame(labels: Array, answers: Array, groups: Array, num_draws: int | None = None) -> MetricFrame:
    """Return fairlearn's frame of the same figures, with a bootstrap of so many draws."""
    metrics: dict[str, Callable[..., float]] = {
        "accuracy": accuracy_score,
        "balanced_accuracy": balanced_accuracy_score,
        "macro_f1": lambda y, p: f1_score(y, p, labels=range(NUM_CLASSES), average="macro", zero_division=0),
    }
    for k in range(NUM_CLASSES):
        for name, rate in (("selection", selection_rate), ("tpr", true_positive_rate), ("fpr", false_positive_rate)):
            metrics[f"{name}_{k}"] = lambda y, p, rate=rate, k=k: rate(y == k, p == k)
    bootstrap = {} if num_draws is None else {"n_boot": num_draws, "ci_quantiles": QUANTILES, "random_state": 0}
    return MetricFrame(metrics=metrics, y_true=labels, y_pred=answers, sensitive_features=groups, **bootstrap)


def check_same_figures(tables: EvaluationTables, labels: Array, answers: Array, groups: Array) -> None:
    """Stop unless both sides compute the same figures.

    Raises
    ------
    ValueError
        If they do not.
    """
    gaps, difference = compute_gaps(tables), make_frame(labels, answers, groups).difference()
    ours = [gaps[f"gap_{key}"].value for key in ("accuracy", "balanced_accuracy", "macro_f1")]
    ours += list(gaps["equal_opportunity_difference"].by_class or ())
    ours += list(gaps["demographic_parity_difference"].by_class or ())
    keys = ["accuracy", "balanced_accuracy", "macro_f1"]
    keys += [f"{name}_{k}" for name in ("tpr", "selection") for k in range(NUM_CLASSES)]
    if not np.allclose(np.array(ours, np.float64), [difference[key] for key in keys], rtol=0, atol=1e-12):
        raise ValueError("Our figures are not those of fairlearn; timing them would be pointless.")


def time_report(turns: int) -> float:
    """Return the seconds of all figures, disparities and intervals of a report."""
    sites = [draw_site(f"site_0{i}", NUM_IMAGES // 4, seed=i) for i in range(1, 5)]
    pooled = {name: combine_tables([of_site[name] for of_site in sites]) for name in sites[0]}
    return _best_time(lambda: make_report(pooled), turns)


def make_report(pooled: dict[str, EvaluationTables]) -> list[Any]:
    """Return everything that a report says of tables by attribute."""
    compared = {name: compare_groups(tables, 0, NUM_DRAWS) for name, tables in pooled.items()}
    report: list[Any] = [flag_attributes(compared)]
    for tables in pooled.values():
        for group in tables.groups:
            chosen = tables.select(group)
            report.append(add_intervals(compute_figures(chosen), chosen, 0, NUM_DRAWS))
    return report


def draw_site(name: str, num_images: int, seed: int) -> dict[str, EvaluationTables]:
    """Return the tables of one site by attribute."""
    labels, logits = draw_images(num_images, seed)
    rng = make_rng(seed, "attributes")
    groups = {key: [values[i] for i in rng.integers(0, len(values), num_images)] for key, values in GROUPS.items()}
    groups[SITE_ATTRIBUTE] = [name] * num_images
    groups[CROSSING] = [", ".join(pair) for pair in zip(*(groups[key] for key in GROUPS), strict=True)]
    z, y = torch.from_numpy(logits), torch.from_numpy(labels)
    return {attribute: tables_from_logits(z, y, of_images) for attribute, of_images in groups.items()}


def draw_images(num_images: int, seed: int) -> tuple[Array, Array]:
    """Return labels (N,) and logits (N,K) of a model of middling quality."""
    rng = make_rng(seed, "images")
    labels = rng.integers(0, NUM_CLASSES, num_images)
    logits = rng.normal(size=(num_images, NUM_CLASSES))
    logits[np.arange(num_images), labels] += 2.0
    return labels, 1.5 * logits


def _best_time(run: Callable[[], Any], turns: int) -> float:
    """Return CPU seconds, which other processes on the machine hardly change."""
    seconds = []
    for _ in range(turns):
        began = time.process_time()
        run()
        seconds.append(time.process_time() - began)
    return min(seconds)


if __name__ == "__main__":
    sys.exit(main())
