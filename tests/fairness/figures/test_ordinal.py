"""Ordered classes: by hand, against scikit-learn, ranges against every possibility, coverage by simulation."""

import dataclasses
import itertools

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from fedmed.fairness.figures.ordinal import ORDINAL_FIGURES, compute_ordinal, ordinal_ranges
from fedmed.metrics.clusters import count_clusters
from fedmed.metrics.tables import EvaluationTables
from fedmed.metrics.values import Array


def make_tables(counts: Array, other: Array | None = None) -> EvaluationTables:
    num_classes = len(counts)
    more = {} if other is None else {"other_wrong": other[None].astype(np.int64)}
    return EvaluationTables.make(("all",), num_classes, counts=counts[None].astype(np.int64), **more)


def test_by_hand() -> None:
    """Three grades, 10 images: two are one step off, one is two steps off.

    Squares: 1 + 1 + 4 = 6. By chance, of images (4, 3, 3) and answers (4, 3, 3): 12 + 12 and 9 + 9 pairs of neighbours
    and 12 + 12 pairs of the ends, (24 + 18 + 4 * 24) / 10 = 13.8.
    """
    counts = np.array([[3, 0, 1], [1, 2, 0], [0, 1, 2]])
    figures = compute_ordinal(make_tables(counts))
    assert figures["quadratic_kappa"].value == pytest.approx(1 - 6 / 13.8)
    assert figures["mean_absolute_error"].value == pytest.approx(4 / 10)
    assert figures["beyond_one_step"].value == pytest.approx(1 / 10)
    assert [figures[key].better for key in ORDINAL_FIGURES] == ["up", "down", "down"]
    assert {figure.n for figure in figures.values()} == {10}


@pytest.mark.parametrize("num_classes", [2, 3, 5, 8])
def test_kappa_is_scikit_learns(num_classes: int) -> None:
    rng = np.random.default_rng(num_classes)
    true, answered = rng.integers(0, num_classes, 300), rng.integers(0, num_classes, 300)
    answered = np.where(rng.random(300) < 0.6, true, answered)
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (true, answered), 1)
    expected = cohen_kappa_score(true, answered, weights="quadratic")
    assert compute_ordinal(make_tables(counts))["quadratic_kappa"].value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_ranges_hold_every_possibility_and_touch_both_ends(seed: int) -> None:
    """All ways in which the answers without a class may have been given, one by one."""
    rng = np.random.default_rng(seed)
    counts, other = rng.integers(0, 6, (4, 4)) + 8 * np.eye(4, dtype=np.int64), np.array([2, 0, 1, 2])
    ranges = ordinal_ranges(counts, other)
    wrong = [[j for j in range(4) if j != k] for k in range(4)]
    ways = itertools.product(*(itertools.combinations_with_replacement(wrong[k], other[k]) for k in range(4)))
    values: dict[str, list[float]] = {key: [] for key in ORDINAL_FIGURES}
    for way in ways:
        whole = counts.copy()
        for k, answers in enumerate(way):
            np.add.at(whole, (k, list(answers)), 1)
        for key, (low, _) in ordinal_ranges(whole).items():
            values[key].append(float(low))
    for key in ORDINAL_FIGURES:
        assert ranges[key][0] == pytest.approx(min(values[key]), abs=1e-12)
        assert ranges[key][1] == pytest.approx(max(values[key]), abs=1e-12)


def test_a_wide_range_is_no_figure() -> None:
    counts, other = np.diag([10, 10, 10]), np.array([4, 4, 4])
    figures = compute_ordinal(make_tables(counts, other), seed=0)
    for figure in figures.values():
        assert (figure.value, figure.interval) == (None, None)
        assert figure.reason == "too many wrong answers are not told by class"
    few = compute_ordinal(make_tables(np.diag([100, 100, 100]), np.array([2, 0, 0])), seed=0)
    assert few["mean_absolute_error"].value == pytest.approx((2 + 4) / 2 / 302)
    assert few["mean_absolute_error"].interval is not None
    low, high = few["mean_absolute_error"].interval
    assert low < 2 / 302 < 4 / 302 < high


def test_what_cannot_be_computed_says_why() -> None:
    nothing = compute_ordinal(make_tables(np.zeros((3, 3))), seed=0)
    assert {(figure.value, figure.reason) for figure in nothing.values()} == {(None, "no images")}
    one_class = compute_ordinal(make_tables(np.array([[5, 0, 0], [0, 0, 0], [0, 0, 0]])), seed=0)
    assert one_class["quadratic_kappa"].reason == "the images are all of one class"
    assert one_class["mean_absolute_error"].value == 0


def test_no_interval_has_width_zero_and_patients_make_it_wider() -> None:
    perfect = compute_ordinal(make_tables(np.diag([9, 4, 2])), seed=0)
    for figure in perfect.values():
        assert figure.interval is not None
        low, high = figure.interval
        assert low <= figure.value <= high
        assert high - low > 0.01
    counts = np.array([[28, 10, 2], [6, 32, 6], [2, 10, 28]])
    tables = make_tables(counts)
    # Patients with four images, all right or all wrong: an image is worth a quarter, and the reach is twice as long.
    row, right = np.repeat([0, 1, 2], counts.sum(axis=1)), np.repeat([1, 0, 1, 0, 1, 0], [28, 12, 32, 12, 28, 12]) > 0
    clusters = count_clusters(row, np.arange(124) // 4, right, 3)[None]
    alone = compute_ordinal(tables, seed=0)
    clustered = compute_ordinal(dataclasses.replace(tables, patients=clusters), seed=0)
    for key in ("quadratic_kappa", "mean_absolute_error"):
        before, after = alone[key].interval, clustered[key].interval
        assert before is not None
        assert after is not None
        assert after[1] - after[0] == pytest.approx(2 * (before[1] - before[0]))


@pytest.mark.ci
@pytest.mark.parametrize("accuracy", [0.6, 0.9, 0.98])
@pytest.mark.parametrize("num_classes", [3, 5, 7])
def test_intervals_hold_the_truth(num_classes: int, accuracy: float) -> None:
    place = np.arange(num_classes)
    steps = np.abs(place[:, None] - place)
    wrong = np.where(steps > 0, 0.4**steps, 0.0)
    shares = wrong / wrong.sum(axis=1, keepdims=True) * (1 - accuracy) + accuracy * np.eye(num_classes)
    joint = shares * (0.6**place / (0.6**place).sum())[:, None]
    truth = {key: float(low) for key, (low, _) in ordinal_ranges(joint).items()}
    rng, held = np.random.default_rng(1), dict.fromkeys(ORDINAL_FIGURES, 0)
    for repetition in range(150):
        counts = rng.multinomial(60, joint.ravel()).reshape(num_classes, num_classes)
        for key, figure in compute_ordinal(make_tables(counts), seed=repetition, num_draws=400).items():
            assert figure.interval is not None
            held[key] += figure.interval[0] <= truth[key] <= figure.interval[1]
    assert {key: number / 150 >= 0.9 for key, number in held.items()} == dict.fromkeys(ORDINAL_FIGURES, True), held
