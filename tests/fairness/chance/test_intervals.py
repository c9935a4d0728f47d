import dataclasses
import math
import time

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, chi2, poisson, t

from fedmed.fairness import add_intervals, wilson_interval
from fedmed.fairness.chance.proportions import proportion_interval
from fedmed.metrics.classification import Figure, compute_figures, score_values
from fedmed.metrics.tables import EvaluationTables, tables_from_logits
from tests.metrics.support.samples import LONG_TAIL, draw_predictions, draw_tables

BY_CLASS = {"macro_f1", "macro_precision", "macro_recall", "sensitivity", "specificity", "auc", "classwise_ece"}


def with_intervals(tables, seed=0, **options):
    return add_intervals(compute_figures(tables), tables, seed, **options)


def tables_of_counts(counts):
    """Tables with these counts; the other tables are of no interest."""
    counts = np.asarray(counts, np.int64)
    return EvaluationTables.make(("a",), len(counts), counts=counts[None])


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (3, 10), (1, 1), (0, 1), (970, 1000)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilson_equals_scipy(successes, n, level):
    expected = binomtest(successes, n).proportion_ci(confidence_level=level, method="wilson")
    lower, upper = wilson_interval(np.array(successes), np.array(n), level)
    assert (lower, upper) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_by_hand_and_without_images():
    """Half of 100 with z = 1.95996: 0.5 -+ z sqrt(0.25 / 100 + z^2 / 40000) / (1 + z^2 / 100)."""
    z = 1.959963984540054
    reach = z * math.sqrt(0.25 / 100 + z**2 / 40000) / (1 + z**2 / 100)
    lower, upper = wilson_interval(np.array([50, 0]), np.array([100, 0]))
    assert (lower[0], upper[0]) == pytest.approx((0.5 - reach, 0.5 + reach), abs=1e-12)
    assert np.isnan([lower[1], upper[1]]).all()


def test_single_proportions_have_wilson_intervals():
    """Counts by hand: sensitivity 12/16, 6/11; specificity likewise; precision 12/17 and 6/10; accuracy 18/27."""
    figures = with_intervals(tables_of_counts([[12, 4], [5, 6]]))

    def wilson(successes, n):
        interval = binomtest(successes, n).proportion_ci(method="wilson")
        return pytest.approx((interval.low, interval.high), abs=1e-12)

    assert figures["accuracy"].interval == wilson(18, 27)
    for key in ("sensitivity", "macro_recall"):
        assert figures[key].by_class_interval == (wilson(12, 16), wilson(6, 11))
    assert figures["macro_precision"].by_class_interval == (wilson(12, 17), wilson(6, 10))
    assert figures["specificity"].by_class_interval == (wilson(6, 11), wilson(12, 16))


def test_one_to_three_misses_are_bounded_by_poisson():
    """The smallest mean of which at most one, two or three events come up in 5 % of the cases."""
    for misses, n in ((1, 20), (2, 50), (3, 51)):
        lower, upper = proportion_interval(np.array([misses, n - misses]), np.array([n, n]))
        bound = chi2.ppf(0.05, 2 * misses) / (2 * n)
        assert poisson.sf(misses - 1, bound * n) == pytest.approx(0.05)
        plain = binomtest(misses, n).proportion_ci(method="wilson")
        assert bound < plain.low
        assert (lower[0], upper[0]) == pytest.approx((bound, plain.high))
        assert (lower[1], upper[1]) == pytest.approx((1 - plain.high, 1 - bound))
    lower, _ = proportion_interval(np.array(3), np.array(50))
    assert lower == pytest.approx(binomtest(3, 50).proportion_ci(method="wilson").low)


def test_every_figure_has_an_interval_around_it():
    for seed, temperature in ((0, 0.5), (1, 1.0), (2, 2.0)):
        figures = with_intervals(draw_tables(400, shares=(0.5, 0.3, 0.2), seed=seed, temperature=temperature))
        assert figures.pop("class_auc_std").interval is None
        for key, figure in figures.items():
            lower, upper = figure.interval
            assert lower < upper
            assert 0 <= lower <= figure.value <= upper <= (2 if key == "brier" else 1), key
            assert (figure.by_class_interval is not None) == (key in BY_CLASS)
            for value, pair in zip(figure.by_class or (), figure.by_class_interval or (), strict=True):
                assert pair[0] <= value <= pair[1], key


def test_values_stay_as_they_were():
    tables = draw_tables(200)
    figures = compute_figures(tables)
    for key, figure in add_intervals(figures, tables, 0).items():
        assert dataclasses.replace(figure, interval=None, by_class_interval=None) == figures[key]


def test_the_seed_decides_and_nothing_else():
    tables = draw_tables(300)
    assert with_intervals(tables, seed=1) == with_intervals(tables, seed=1)
    assert with_intervals(tables, seed=1)["auc"] != with_intervals(tables, seed=2)["auc"]


def test_a_higher_level_gives_wider_intervals():
    tables = draw_tables(300, shares=(0.5, 0.5))
    narrow, wide = with_intervals(tables, level=0.8), with_intervals(tables, level=0.99)
    for key in ("accuracy", "balanced_accuracy", "auc", "brier", "kappa"):
        assert wide[key].interval[0] < narrow[key].interval[0]
        assert wide[key].interval[1] > narrow[key].interval[1]


def test_balanced_accuracy_interval_by_hand():
    """Recalls 0.9 of 100 and 0.6 of 400: the distances of Wilson's ends, as a root of squares, over two."""
    wilson = [binomtest(*pair).proportion_ci(method="wilson") for pair in ((90, 100), (240, 400))]
    below = math.hypot(0.9 - wilson[0].low, 0.6 - wilson[1].low) / 2
    above = math.hypot(wilson[0].high - 0.9, wilson[1].high - 0.6) / 2
    figures = with_intervals(tables_of_counts([[90, 10], [160, 240]]))
    for key in ("balanced_accuracy", "sensitivity", "macro_recall"):
        assert figures[key].interval == pytest.approx((0.75 - below, 0.75 + above), abs=1e-12)


def test_the_macro_recall_counts_absent_classes_as_zero_also_in_its_interval():
    figures = with_intervals(tables_of_counts([[90, 10, 0], [160, 240, 0], [0, 0, 0]]))
    for end, other in zip(figures["macro_recall"].interval, figures["balanced_accuracy"].interval, strict=True):
        assert end == pytest.approx(other * 2 / 3, abs=1e-12)


def test_small_classes_answered_alike_do_not_make_the_mean_recall_certain():
    lower, upper = with_intervals(tables_of_counts(np.diag([4, 4, 4])))["balanced_accuracy"].interval
    assert lower == pytest.approx(1 - (1 - binomtest(4, 4).proportion_ci(method="wilson").low) / math.sqrt(3))
    assert upper == 1


def test_images_of_rare_classes_count_in_accuracy_and_ece():
    """11 of 15 right, and 3 of 5 of rare classes with a confidence of 0.9: 14 / 20, and an ECE of |3 - 4.5| / 5."""
    tables = tables_of_counts([[8, 2], [2, 3]])
    mixed = np.zeros((1, 15, 3))
    mixed[0, 13] = 5, 4.5, 3
    figures = with_intervals(dataclasses.replace(tables, rare=np.array([[5, 3]]), mixed=mixed))
    expected = binomtest(14, 20).proportion_ci(method="wilson")
    assert figures["accuracy"].interval == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert figures["balanced_accuracy"] == with_intervals(tables)["balanced_accuracy"]
    lower, upper = figures["ece"].interval
    assert figures["ece"].value == pytest.approx(0.3)  # these tables have no other confidences
    assert lower < 0.3 < upper


def test_brier_interval_is_students():
    logits, labels = draw_predictions(300)
    p = torch.softmax(logits, dim=1).numpy()
    scores = np.square(p - np.eye(7)[labels.numpy()]).sum(axis=1)
    reach = t.ppf(0.975, 299) * scores.std(ddof=1) / math.sqrt(300)
    interval = with_intervals(tables_from_logits(logits, labels, ["a"] * 300))["brier"].interval
    assert interval == pytest.approx((scores.mean() - reach, scores.mean() + reach), abs=1e-9)


def row_bootstrap_of_auc(logits, labels, num_draws, seed):
    """The reference: images drawn with replacement within each true class."""
    rng, y = np.random.default_rng(seed), labels.numpy()
    strata = [np.flatnonzero(y == k) for k in np.unique(y)]
    draws = []
    for _ in range(num_draws):
        rows = np.concatenate([rng.choice(stratum, len(stratum)) for stratum in strata])
        drawn = tables_from_logits(logits[rows], labels[rows], ["a"] * len(rows))
        draws.append(score_values(drawn.scores[0])["auc"])
    return np.array([d.value for d in draws]), np.array([d.by_class for d in draws])


@pytest.mark.parametrize(("shares", "widest"), [((0.7, 0.3), 1.15), ((0.6, 0.3, 0.1), 1.6), ((0.125,) * 8, 2.0)])
def test_auc_intervals_are_as_wide_as_those_from_rows_or_wider(shares, widest):
    logits, labels = draw_predictions(400, shares=shares, seed=6, signal=1.2)
    value, by_class = row_bootstrap_of_auc(logits, labels, 300, seed=0)
    figure = with_intervals(tables_from_logits(logits, labels, ["a"] * 400))["auc"]

    def ratio(interval, draws):
        return (interval[1] - interval[0]) / np.subtract(*np.quantile(draws, [0.975, 0.025]))

    assert 0.85 < ratio(figure.interval, value) < widest
    for c, interval in enumerate(figure.by_class_interval):
        assert 0.75 < ratio(interval, by_class[:, c]) < 1.3


def coverage(draw, truths, num_reports=200):
    """Share of simulated reports whose interval holds the truth, by figure."""
    hits = dict.fromkeys(truths, 0)
    for seed in range(num_reports):
        figures = with_intervals(draw(seed), seed=seed, num_draws=200)
        for key, truth in truths.items():
            lower, upper = figures[key].interval
            hits[key] += lower <= truth <= upper
    return {key: number / num_reports for key, number in hits.items()}


def draw_counts(seed, recalls=(0.9, 0.7, 0.5), sizes=(200, 80, 60)):
    rng = np.random.default_rng(seed)
    right = rng.binomial(sizes, recalls)
    wrong = np.array(sizes) - right
    return tables_of_counts(np.diag(right) + np.diag(wrong[:2], 1) + np.array([[0, 0, 0], [0, 0, 0], [wrong[2], 0, 0]]))


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    truths = {"accuracy": (0.9 * 200 + 0.7 * 80 + 0.5 * 60) / 340, "balanced_accuracy": 0.7, "sensitivity": 0.7}
    truths |= {"worst_class_recall": 0.5, "class_recall_gap": 0.4}
    found = coverage(draw_counts, truths)
    assert {key: share for key, share in found.items() if not 0.87 <= share <= 0.99} == {}


@pytest.mark.parametrize(
    "temperature", [pytest.param(0.5, marks=pytest.mark.slow), 1.0, pytest.param(2.0, marks=pytest.mark.slow)]
)
def test_intervals_of_the_ece_hold_the_truth_whether_the_model_is_calibrated_or_not(temperature):
    """At temperature 1 the model is calibrated; percentiles of the draws would then hold the truth in no report."""
    options = {"shares": LONG_TAIL, "temperature": temperature}
    truth = compute_figures(draw_tables(200000, seed=999, **options))["ece"].value
    assert coverage(lambda seed: draw_tables(300, seed=seed, **options), {"ece": truth}, 100)["ece"] >= 0.82


def test_figures_without_a_value_have_no_interval():
    """Class 2 of three does not occur and is never answered."""
    logits = torch.tensor([[3.0, 0.0, -3.0], [0.0, 1.0, -3.0], [0.0, 2.0, -3.0]])
    figures = with_intervals(tables_from_logits(logits, torch.tensor([0, 0, 1]), ["a"] * 3))
    for key in ("sensitivity", "macro_precision", "macro_f1", "auc"):
        assert figures[key].by_class[2] is None
        assert figures[key].by_class_interval[2] is None
        assert figures[key].by_class_interval[0] is not None
    one_class = with_intervals(tables_from_logits(logits, torch.zeros(3, dtype=torch.int64), ["a"] * 3))
    assert one_class["auc"].interval is None
    assert one_class["accuracy"].interval is not None


@pytest.mark.parametrize("num_classes", [2, 7])
def test_no_image_gives_no_interval(num_classes):
    empty = tables_from_logits(torch.zeros(0, num_classes), torch.zeros(0, dtype=torch.int64), [])
    assert all(figure.interval is None for figure in with_intervals(empty).values())


def test_one_image_gives_no_interval_of_the_brier_score():
    figures = with_intervals(tables_from_logits(torch.tensor([[1.0, 0.0]]), torch.tensor([0]), ["a"]))
    assert figures["brier"].value is not None
    assert figures["brier"].interval is None


def test_without_scores_only_figures_of_the_auc_have_no_interval():
    tables = draw_tables(100)
    hidden = dataclasses.replace(tables, scores=np.zeros_like(tables.scores), areas=np.zeros_like(tables.areas))
    assert [key for key, figure in with_intervals(hidden).items() if figure.interval is None] == [
        "auc",
        "class_auc_std",
        "classwise_ece",
    ]


def test_groups_are_pooled_and_other_figures_are_left_alone():
    tables = draw_tables(60, group="a") + draw_tables(90, group="b", seed=1)
    other = Figure("gap_accuracy", 0.1, 150, "down")
    figures = add_intervals(compute_figures(tables) | {"gap_accuracy": other}, tables, 0)
    assert figures.pop("gap_accuracy") is other
    assert figures == with_intervals(tables.pool())


@pytest.mark.parametrize("options", [{"num_draws": 0}, {"level": 0.0}, {"level": 1.0}])
def test_settings_that_are_not_allowed_are_refused(options):
    with pytest.raises(ValueError, match="Allowed"):
        with_intervals(draw_tables(10), **options)


def test_a_thousand_draws_of_two_thousand_images_take_a_moment():
    tables = draw_tables(2000, shares=(0.125,) * 8)
    figures = compute_figures(tables)
    start = time.process_time()
    add_intervals(figures, tables, seed=0, num_draws=1000)
    assert time.process_time() - start < 0.8


def test_one_number_has_one_interval_and_none_has_width_zero():
    """Of two classes the specificity of one is the sensitivity of the other; no interval is a point."""
    figures = with_intervals(tables_of_counts([[0, 30], [0, 170]]))
    assert figures["specificity"].by_class_interval == figures["sensitivity"].by_class_interval[::-1]
    three = with_intervals(tables_of_counts([[30, 0, 0], [4, 0, 0], [0, 0, 0]]))
    for figure in (*figures.values(), *three.values()):
        for pair in (figure.interval, *(figure.by_class_interval or ())):
            assert pair is None or (pair[0] < pair[1] and pair[0] >= (-1 if figure.key in {"kappa", "mcc"} else 0))
