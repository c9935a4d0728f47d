"""Whether intervals hold the truth, equal groups are left alone, and differences are found.

    python simulations/benchmarks/coverage.py
    python simulations/benchmarks/coverage.py --repeats 300 --only flags power

Data are drawn from models whose true figures are known; each line is a number of repetitions with their own seeds.

``coverage``  share of 95 % intervals that hold the truth, for figures where that is hard: tiny classes, near-perfect
              models, a class that is nearly always answered, the worst of equal groups (aim: at least .90);
``flags``     share of reports of equal groups with any flag, several images a patient (aim: at most .07) and few images
              (aim: at most .055);
``power``     share of reports in which a failure in one class is flagged, beside a plain test of every class (Fisher's,
              Holm's correction; aim: within .05 of the better one of this and of the gaps alone);
``benefit``   how often a hospital is called better off, with a true gain and without one, and how often the interval of
              the gain holds it (aim: within .05 of a plain test of accuracy; at most .05 without a gain);
``mixed``     what is lost where patients have images of several classes, which tables do not link (no aim).
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import NormalDist

import numpy as np
from scipy.stats import binomtest, fisher_exact

from fedmed.fairness.chance.compare_groups import compare_groups
from fedmed.fairness.chance.flags import FLAG_KEYS, flag_attributes
from fedmed.fairness.chance.intervals import add_intervals
from fedmed.fairness.chance.paired import compare_paired
from fedmed.fairness.figures.gap_figures import compute_gaps
from fedmed.fairness.figures.rates import CLASS_GAP
from fedmed.metrics.classification import compute_figures
from fedmed.metrics.site_tables import make_paired
from fedmed.metrics.tables import EvaluationTables
from fedmed.metrics.values import Array
from simulations.benchmarks.coverage_images import Images
from simulations.benchmarks.coverage_mixed import judge_once

TABLES = ("coverage", "flags", "power", "benefit", "mixed")
NUM_DRAWS = 400
_TRUTH_IMAGES = 60_000
_LEVEL = 0.05

Rates = dict[str, float]


COVERED: Mapping[str, tuple[Images, tuple[str, ...]]] = {
    "rarest class 1 image": (Images((120, 60, 30, 1)), ("auc", "auc/3", "balanced_accuracy", "macro_f1")),
    "rarest class 2 images": (Images((120, 60, 30, 2)), ("auc", "auc/3", "balanced_accuracy", "macro_f1")),
    "rarest class 5 images": (Images((120, 60, 30, 5)), ("auc", "auc/3", "balanced_accuracy", "macro_f1")),
    "rarest class 10 images": (Images((120, 60, 30, 10)), ("auc", "auc/3", "balanced_accuracy", "macro_f1")),
    "near perfect": (
        Images((40, 30, 20), skill=4.5),
        ("macro_f1", "kappa", "mcc", "specificity", "auc", "auc/2", "balanced_accuracy", "macro_precision", "accuracy"),
    ),
    "near perfect, two classes": (Images((40, 20), skill=4.0), ("macro_f1", "specificity", "auc", "balanced_accuracy")),
    "ordinary": (
        Images((80, 60, 40, 30), skill=1.5),
        (
            "accuracy",
            "balanced_accuracy",
            "macro_f1",
            "kappa",
            "mcc",
            "specificity",
            "auc",
            "ece",
            "brier",
            "worst_class_recall",
            "class_recall_gap",
        ),
    ),
    "one class nearly always answered, 40 images": (Images((20, 20), skill=0.5, bias=(4.0, 0.0)), ("ece", "accuracy")),
    "one class nearly always answered, 1,000 images": (Images((500, 500), skill=0.5, bias=(4.0, 0.0)), ("ece",)),
    "five images a patient": (
        Images((100, 60, 40), per_patient=5, correlation=0.5),
        ("accuracy", "balanced_accuracy", "macro_f1", "kappa", "auc", "ece", "brier"),
    ),
}
GAPS: Mapping[str, tuple[Images, tuple[str, ...]]] = {
    "two equal groups of 100": (
        Images((50, 30, 20), groups=2),
        (
            "worst_group_balanced_accuracy",
            "gap_balanced_accuracy",
            "es_balanced_accuracy",
            "gap_accuracy",
            "pqd",
            "gap_auc",
            "worst_group_auc",
            "equal_opportunity_difference",
            "equalized_odds_difference",
            "demographic_parity_difference",
            "eopp1",
            "eodd",
            "demographic_parity_ratio",
            "eom",
            "gap_macro_f1",
            "worst_group_macro_f1",
        ),
    ),
    "five equal groups of 60": (
        Images((30, 20, 10), groups=5),
        (
            "worst_group_balanced_accuracy",
            "gap_balanced_accuracy",
            "es_balanced_accuracy",
            "worst_group_accuracy",
            "gap_accuracy",
            "gap_auc",
            "equal_opportunity_difference",
            "gap_macro_f1",
            "worst_group_macro_f1",
        ),
    ),
}
FLAGGED: Mapping[str, Images] = {
    **{
        f"2 groups x 100 patients x {images}": Images(
            (50 * images, 30 * images, 20 * images), groups=2, per_patient=images, correlation=0.5
        )
        for images in (1, 2, 3, 5, 10)
    },
    "4 groups x 60 patients x 5": Images((150, 90, 60), groups=4, per_patient=5, correlation=0.5),
    "2 groups x 20 images": Images((10, 6, 4), groups=2),
    "2 groups x 50 images": Images((25, 15, 10), groups=2),
    "5 groups x 100 images": Images((50, 30, 20), groups=5),
}
MELANOMA = (200, 33, 32, 15, 10, 6, 4)
"""Images of seven classes in each of two groups of 300, in the shares of dermatoscopic data."""

BENEFITS = (
    (0.1, 1, 0.0),
    (0.1, 1, 0.7),
    (0.1, 1, 1.0),
    (0.0, 1, 0.0),
    (0.0, 1, 0.7),
    (0.1, 5, 0.0),
    (0.1, 5, 0.7),
    (0.0, 5, 0.0),
    (0.0, 5, 0.7),
)
"""Gain, images a patient, and share of the images that both models answer alike, of each line on benefit."""


def repeat(number: int, seed: int, once: Callable[[np.random.Generator], Mapping[str, bool | None]]) -> Rates:
    """Return how often each of several things is so, of the repetitions in which it can be told."""
    yes: dict[str, list[bool]] = {}
    for index in range(number):
        for name, answer in once(np.random.default_rng([seed, index])).items():
            yes.setdefault(name, [])
            if answer is not None:
                yes[name].append(answer)
    return {name: float(np.mean(answers)) if answers else float("nan") for name, answers in yes.items()}


def measure_coverage(images: Images, keys: Sequence[str], number: int, seed: int) -> Rates:
    """Return how often intervals hold the figure of very many images of the same kind; ``auc/3`` is that of class 3."""
    factor = max(1, _TRUTH_IMAGES // sum(images.sizes))
    truth = compute_figures(images.make_tables(np.random.default_rng(seed + 1), factor))

    def once(rng: np.random.Generator) -> dict[str, bool | None]:
        tables = images.make_tables(rng)
        found = add_intervals(compute_figures(tables), tables, int(rng.integers(2**31)), NUM_DRAWS)
        return {key: _holds(*_pick(found, key), _pick(truth, key)[0]) for key in keys}

    return repeat(number, seed, once)


def _pick(figures: Mapping[str, object], key: str) -> tuple[float | None, tuple[float, float] | None]:
    name, _, label = key.partition("/")
    figure = figures[name]
    if not label:
        return figure.value, figure.interval  # type: ignore[attr-defined]
    pairs = figure.by_class_interval or {int(label): None}  # type: ignore[attr-defined]
    return figure.by_class[int(label)], pairs[int(label)]  # type: ignore[attr-defined]


def _holds(value: float | None, interval: tuple[float, float] | None, truth: float | None) -> bool | None:
    if value is None or interval is None or truth is None:
        return None
    if interval[1] <= interval[0]:
        raise ValueError(f"The interval {interval} has width zero.")
    return interval[0] - 1e-12 <= truth <= interval[1] + 1e-12


def measure_gap_coverage(images: Images, keys: Sequence[str], number: int, seed: int) -> Rates:
    """Return how often intervals of disparities hold that of very many images of the same kind."""
    factor = max(1, 20 * _TRUTH_IMAGES // sum(images.sizes) // images.groups)
    truth = compute_gaps(images.make_tables(np.random.default_rng(seed + 1), factor))

    def once(rng: np.random.Generator) -> dict[str, bool | None]:
        found = compare_groups(images.make_tables(rng), int(rng.integers(2**31)), NUM_DRAWS)
        # Groups are equal, so that what is left of a gap in the large data is the noise of that.
        equal = {key: 0.0 for key in keys if truth[key].better == "down"}
        equal |= dict.fromkeys(("pqd", "demographic_parity_ratio", "eom"), 1.0)
        return {key: _holds(found[key].value, found[key].interval, equal.get(key, truth[key].value)) for key in keys}

    return repeat(number, seed, once)


def measure_flags(images: Images, number: int, seed: int) -> Rates:
    """Return the share of reports with a flag."""

    def once(rng: np.random.Generator) -> dict[str, bool | None]:
        return {"any flag": _is_flagged(images.make_tables(rng), int(rng.integers(2**31)), FLAG_KEYS)}

    return repeat(number, seed, once)


def _is_flagged(tables: EvaluationTables, seed: int, keys: Sequence[str]) -> bool:
    figures = flag_attributes({"sex": compare_groups(tables, seed, NUM_DRAWS)})["sex"]
    return any(figures[key].flagged for key in keys)


def measure_power(lower_by: float, factor: int, number: int, seed: int) -> Rates:
    """Return how often a lower sensitivity in one class of one of two groups is found."""
    sizes = np.array(MELANOMA) * factor

    def once(rng: np.random.Generator) -> dict[str, bool | None]:
        right = np.full((2, len(sizes)), 0.75)
        right[1, 1] -= lower_by
        hits = rng.binomial(sizes, right)
        counts = np.zeros((2, len(sizes), len(sizes)), np.int64)
        for g, k in np.ndindex(2, len(sizes)):
            counts[g, k, k] = hits[g, k]
            others = np.delete(np.arange(len(sizes)), k)
            counts[g, k, others] = rng.multinomial(sizes[k] - hits[g, k], np.full(len(others), 1 / len(others)))
        tables = EvaluationTables.make(("f", "m"), len(sizes), counts=counts)
        figures = flag_attributes({"sex": compare_groups(tables, int(rng.integers(2**31)), NUM_DRAWS)})["sex"]
        plain = sorted(
            float(fisher_exact([[hits[g, k], sizes[k] - hits[g, k]] for g in (0, 1)]).pvalue) for k in range(len(sizes))
        )
        gaps = [figures[key].p_value or 1.0 for key in FLAG_KEYS if key != CLASS_GAP]
        return {
            "flag": any(figures[key].flagged for key in FLAG_KEYS),
            "plain test of every class": plain[0] <= _LEVEL / len(sizes),
            "gaps alone": min(gaps) <= _LEVEL / len(gaps),
        }

    return repeat(number, seed, once)


def measure_benefit(gain: float, per_patient: int, number: int, seed: int, alike: float = 0.0) -> Rates:
    """Return verdicts on a federated model that is better by some share of right answers in every class.

    Of a share ``alike`` of the images both models find the same ones easy, so that only the better one of them is right
    where they differ; the plain test of accuracy is one of signs, by patient.
    """
    sizes = np.array((60, 100, 30, 3, 50, 5, 2))

    def once(rng: np.random.Generator) -> dict[str, bool | None]:
        y_N = np.repeat(np.arange(len(sizes)), sizes)
        patient_N = np.cumsum(np.r_[True, np.diff(y_N) != 0]) * 1000 + np.arange(len(y_N)) // per_patient
        _, place_N = np.unique(patient_N, return_inverse=True)
        # Patients differ in how hard they are for either model, so that differences hang together, too.
        shared = 0.5 if per_patient > 1 else 0.0
        level = np.sqrt(shared) * rng.normal(size=(2, place_N.max() + 1))[:, place_N]
        noise = rng.normal(size=(2, len(y_N)))
        noise[1] = np.where(rng.random(len(y_N)) < alike, noise[0], noise[1])
        other, own = (
            one < NormalDist().inv_cdf(chance)
            for one, chance in zip(level + np.sqrt(1 - shared) * noise, (0.6, 0.6 + gain), strict=True)
        )
        paired = make_paired(own, other, y_N, ["a"] * len(y_N), len(sizes), [str(p) for p in place_N.tolist()])
        patients = np.array([len(set(place_N[y_N == k].tolist())) for k in range(len(sizes))])
        found = compare_paired(
            paired.cells[0], int(rng.integers(2**31)), NUM_DRAWS, spread=paired.spread[0], patients=patients
        )
        decided = [one.verdict for one in found.values() if one.family_p is not None and one.family_p < _LEVEL]
        surplus = np.bincount(place_N, weights=own.astype(np.float64) - other)
        return {
            "better": "better" in decided,
            "worse": "worse" in decided,
            "plain test of accuracy": surplus.sum() > 0 and _flip_patients(rng, surplus) < _LEVEL,
            **{f"interval {key}": _holds(one.value, one.interval, gain) for key, one in found.items()},
        }

    return repeat(number, seed, once)


def _flip_patients(rng: np.random.Generator, surplus: Array) -> float:
    """Return the p-value of a test in which the difference of every patient goes either way."""
    if (np.abs(surplus) <= 1).all():
        return float(binomtest(int((surplus > 0).sum()), max(int(np.abs(surplus).sum()), 1)).pvalue)
    drawn = np.abs(rng.choice([-1.0, 1.0], (NUM_DRAWS, len(surplus))) @ surplus)
    return float(1 + (drawn >= abs(surplus.sum()) - 1e-9).sum()) / (1 + NUM_DRAWS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=300, help="repetitions of each line (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all lines (default: 0)")
    parser.add_argument("--only", nargs="+", choices=TABLES, help="tables (default: all)")
    options = parser.parse_args(arguments)
    chosen = options.only or TABLES
    number, seed = options.repeats, options.seed
    if "coverage" in chosen:
        for title, (images, keys) in COVERED.items():
            _print_rates(f"coverage, {title}", measure_coverage(images, keys, number, seed))
        for title, (images, keys) in GAPS.items():
            _print_rates(f"coverage, {title}", measure_gap_coverage(images, keys, number, seed))
    if "flags" in chosen:
        for title, images in FLAGGED.items():
            _print_rates(f"equal groups, {title}", measure_flags(images, number, seed))
    if "power" in chosen:
        for lower_by, factor in ((0.4, 1), (0.2, 3)):
            title = f"one class lower by {lower_by} in one of two groups of {300 * factor}"
            _print_rates(title, measure_power(lower_by, factor, number, seed))
    if "benefit" in chosen:
        for gain, per_patient, alike in BENEFITS:
            title = f"benefit of {gain}, {per_patient} images a patient, {alike} answered alike"
            _print_rates(title, measure_benefit(gain, per_patient, number, seed, alike))
    if "mixed" in chosen:
        for per_patient, mixed in ((5, 0.0), (2, 1.0), (5, 0.5), (5, 1.0)):
            title = f"{per_patient} images a patient, a share of {mixed} of any class"
            _print_rates(title, repeat(number, seed, partial(judge_once, per_patient=per_patient, mixed=mixed)))
    return 0


def _print_rates(title: str, rates: Rates) -> None:
    print(f"{title}: " + ", ".join(f"{name} {rate:.3f}" for name, rate in rates.items()), flush=True)


if __name__ == "__main__":
    sys.exit(main())
