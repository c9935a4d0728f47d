import dataclasses
import math

import numpy as np
import pytest
from fairlearn import metrics as fair
from sklearn import metrics as oracle

from fedmed.fairness import compare_groups, compute_gaps, flag_attributes, wilson_interval
from fedmed.fairness.chance.compare_groups import GAP_KEYS
from fedmed.metrics.classification import compute_figures
from fedmed.metrics.tables import EvaluationTables
from tests.fairness.support.samples import count_images, draw_answers, draw_images, tables_of_groups

RATE_KEYS = {key for key in GAP_KEYS if key.startswith(("demographic", "equal", "eo", "dpm", "class_"))}
# Two groups, three classes. Recalls of a: 8/10, 4/5, 5/5; of b: 6/10, 9/10, 5/10.
BY_HAND = [[[8, 2, 0], [1, 4, 0], [0, 0, 5]], [[6, 2, 2], [0, 9, 1], [5, 0, 5]]]
RATES = {"selection": ([9 / 20, 6 / 20, 5 / 20], [11 / 30, 11 / 30, 8 / 30])}
RATES["fpr"] = ([1 / 10, 2 / 15, 0], [5 / 20, 2 / 20, 3 / 20])
RATES["tpr"] = ([0.8, 0.8, 1.0], [0.6, 0.9, 0.5])


def gaps_of(counts, **options):
    return compute_gaps(tables_of_groups(counts, **options))


def test_every_figure_has_its_key_and_direction():
    gaps = gaps_of(BY_HAND)
    assert tuple(gaps) == GAP_KEYS
    assert all(figure.key == key for key, figure in gaps.items())
    up = {"demographic_parity_ratio", "dpm", "eom", "pqd", "es_auc", "es_balanced_accuracy"}
    up |= {key for key in gaps if key.startswith("worst_group_")}
    assert {key for key, figure in gaps.items() if figure.better == "up"} == up


def test_rates_by_hand():
    gaps = gaps_of(BY_HAND)
    selection, tpr, fpr = (np.array(RATES[name]) for name in ("selection", "tpr", "fpr"))
    differences = {name: np.abs(rate[0] - rate[1]) for name, rate in (("s", selection), ("t", tpr), ("f", fpr))}
    ratio = selection.min(axis=0) / selection.max(axis=0)
    odds = np.maximum(differences["t"], differences["f"])
    for key, by_class, worst in (
        ("demographic_parity_difference", differences["s"], max),
        ("demographic_parity_ratio", ratio, min),
        ("equal_opportunity_difference", differences["t"], max),
        ("equalized_odds_difference", odds, max),
    ):
        assert gaps[key].by_class == pytest.approx(tuple(by_class), abs=1e-12)
        assert gaps[key].value == pytest.approx(worst(by_class), abs=1e-12)
        assert gaps[key].mean == pytest.approx(by_class.mean(), abs=1e-12)
    expected = {
        "eopp1": 0.2 + 0.1 + 0.5,
        "eopp0": (0.25 - 0.1) + (2 / 15 - 0.1) + 0.15,
        "eodd": abs(-0.2 + 0.15) + abs(0.1 - 1 / 30) + abs(-0.5 + 0.15),
        "dpm": ratio.mean(),
        "eom": (0.6 / 0.8 + 0.8 / 0.9 + 0.5) / 3,
    }
    assert {key: gaps[key].value for key in expected} == pytest.approx(expected, abs=1e-12)
    assert {gaps[key].skipped for key in RATE_KEYS} == {0}
    assert {figure.n for key, figure in gaps.items() if figure.value is not None} == {50, 15}


def test_groups_and_class_that_decide():
    gaps = gaps_of(BY_HAND, groups=("a", "b"))
    opportunity = gaps["equal_opportunity_difference"]
    assert (opportunity.worst_class, opportunity.worst_group, opportunity.best_group) == (2, "b", "a")
    assert (gaps["gap_accuracy"].worst_group, gaps["gap_accuracy"].best_group) == ("b", "a")


def test_many_false_alarms_are_the_bad_end_of_equalised_odds():
    """All recalls are 1 but those of class 1; its images are called 0 in group b more often."""
    gaps = gaps_of([[[50, 0], [1, 9]], [[50, 0], [1, 9]], [[2, 0], [9, 1]]], groups=("a", "b", "c"))
    figure = gaps["equalized_odds_difference"]
    assert figure.by_class == pytest.approx((0.8, 0.8))
    assert figure.worst_group == "c"


def test_figures_of_groups_by_hand():
    """Accuracies 17/20 and 20/30, balanced 2.6/3 and 2/3, altogether 37/50 and (14/20 + 13/15 + 10/15) / 3."""
    gaps = gaps_of(BY_HAND)
    first, second, both = 17 / 20, 20 / 30, (14 / 20 + 13 / 15 + 10 / 15) / 3
    expected = {
        "worst_group_accuracy": second,
        "gap_accuracy": first - second,
        "std_accuracy": (first - second) / 2,
        "pqd": second / first,
        "worst_group_balanced_accuracy": 2 / 3,
        "gap_balanced_accuracy": 0.2,
        "std_balanced_accuracy": 0.1,
        "es_balanced_accuracy": both / (1 + abs(both - 2.6 / 3) + abs(both - 2 / 3)),
    }
    assert {key: gaps[key].value for key in expected} == pytest.approx(expected, abs=1e-12)


def test_of_more_than_two_groups_the_largest_sum_over_pairs_counts():
    """Recalls (0.5, 1), (1, 0.5), (0.9, 0.9): pairs 0.5 + 0.5, 0.4 + 0.1, 0.1 + 0.4."""
    gaps = gaps_of([[[5, 5], [0, 10]], [[10, 0], [5, 5]], [[9, 1], [1, 9]]])
    assert gaps["eopp1"].value == pytest.approx(1.0)
    assert gaps["eopp0"].value == pytest.approx(1.0)  # with two classes the FPR of one is 1 - TPR of the other
    assert gaps["eodd"].value == pytest.approx(2.0)


@pytest.mark.parametrize(("num_groups", "shares", "seed"), [(2, (0.5, 0.3, 0.2), 0), (5, (0.4, 0.3, 0.2, 0.1), 1)])
def test_rates_equal_fairlearn_one_against_the_rest(num_groups, shares, seed):
    logits, labels, groups = draw_images(1500, shares, [f"g{i}" for i in range(num_groups)], seed)
    gaps = compute_gaps(count_images(logits, labels, groups))
    answers = logits.argmax(axis=1)
    for key in (
        "demographic_parity_difference",
        "demographic_parity_ratio",
        "equal_opportunity_difference",
        "equalized_odds_difference",
    ):
        expected = [
            getattr(fair, key)(labels == k, answers == k, sensitive_features=groups) for k in range(len(shares))
        ]
        assert gaps[key].by_class == pytest.approx(tuple(expected), abs=1e-12)
    for key, rate in (("dpm", fair.selection_rate), ("eom", fair.true_positive_rate)):
        frames = [
            fair.MetricFrame(metrics=rate, y_true=labels == k, y_pred=answers == k, sensitive_features=groups)
            for k in range(len(shares))
        ]
        assert gaps[key].value == pytest.approx(np.mean([frame.ratio() for frame in frames]), abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_figures_of_groups_equal_fairlearn_and_scikit_learn(seed):
    logits, labels, groups = draw_images(900, (0.5, 0.3, 0.2), ("f", "m", "x"), seed)
    gaps = compute_gaps(count_images(logits, labels, groups))
    answers = logits.argmax(axis=1)
    metrics = {
        "accuracy": oracle.accuracy_score,
        "balanced_accuracy": oracle.balanced_accuracy_score,
        "macro_f1": lambda y, p: oracle.f1_score(y, p, average="macro", labels=range(3), zero_division=0),
    }
    frame = fair.MetricFrame(metrics=metrics, y_true=labels, y_pred=answers, sensitive_features=groups)
    for key in metrics:
        assert gaps[f"gap_{key}"].value == pytest.approx(frame.difference()[key], abs=1e-12)
        assert gaps[f"worst_group_{key}"].value == pytest.approx(frame.group_min()[key], abs=1e-12)
        assert gaps[f"std_{key}"].value == pytest.approx(np.std(frame.by_group[key].astype(float)), abs=1e-12)
        assert gaps[f"gap_{key}"].worst_group == frame.by_group[key].astype(float).idxmin()
    assert gaps["pqd"].value == pytest.approx(frame.ratio()["accuracy"], abs=1e-12)
    overall, by_group = frame.overall["balanced_accuracy"], frame.by_group["balanced_accuracy"].astype(float)
    expected = overall / (1 + np.abs(overall - by_group).sum())
    assert gaps["es_balanced_accuracy"].value == pytest.approx(expected, abs=1e-12)


def test_figures_of_scores_and_confidences_are_those_of_the_groups():
    logits, labels, groups = draw_images(900, (0.5, 0.3, 0.2), ("f", "m", "x"), 7)
    tables = count_images(logits, labels, groups)
    gaps, overall = compute_gaps(tables), compute_figures(tables)
    by_group = [compute_figures(tables.select(group)) for group in tables.groups]
    areas, errors = (np.array([figures[key].value for figures in by_group]) for key in ("auc", "ece"))
    expected = {
        "worst_group_auc": areas.min(),
        "gap_auc": np.ptp(areas),
        "std_auc": areas.std(),
        "es_auc": overall["auc"].value / (1 + np.abs(overall["auc"].value - areas).sum()),
        "gap_ece": np.ptp(errors),
    }
    assert {key: gaps[key].value for key in expected} == pytest.approx(expected, abs=1e-12)
    assert gaps["gap_ece"].worst_group == tables.groups[errors.argmax()]
    exact = [
        oracle.roc_auc_score(labels[groups == g], np.exp(z) / np.exp(z).sum(1, keepdims=True), multi_class="ovr")
        for g in tables.groups
        for z in [logits[groups == g]]
    ]
    assert gaps["gap_auc"].value == pytest.approx(np.ptp(exact), abs=0.01)


def test_a_class_that_a_group_has_no_images_of_is_skipped_and_counted():
    """fairlearn gives the group without positives a TPR of 0 and so a gap of 0.8, which is false."""
    gaps = gaps_of([[[8, 2], [1, 9]], [[7, 3], [0, 0]]])
    assert (
        fair.equal_opportunity_difference(
            [1] * 10 + [0] * 10, [1] * 8 + [0] * 12, sensitive_features=[0] * 10 + [1] * 10
        )
        == 0.8
    )
    for key in RATE_KEYS - {"eopp0", "eodd", "equalized_odds_difference"}:
        assert gaps[key].skipped == 1
        assert gaps[key].value is not None
        if gaps[key].by_class is not None:
            assert gaps[key].by_class[1] is None
    assert gaps["equal_opportunity_difference"].value == gaps["equal_opportunity_difference"].mean
    assert gaps["equal_opportunity_difference"].value == pytest.approx(0.1)
    # The group has only class 0, so that its FPR of class 0 has no denominator either.
    assert gaps["eopp0"].value is gaps["equalized_odds_difference"].value is None
    assert gaps["eopp0"].skipped == 2
    assert gaps["eopp0"].reason == "no class has images in every group"


def test_groups_without_a_common_class_have_no_rates_to_compare():
    gaps = gaps_of([[[8, 2], [0, 0]], [[0, 0], [1, 9]]])
    for key in RATE_KEYS:
        assert (gaps[key].value, gaps[key].skipped) == (None, 2)
        where = "every group" if key in {"eopp1", "eopp0", "eodd"} else "two groups"
        assert gaps[key].reason == f"no class has images in {where}"
    for key in ("gap_accuracy", "worst_group_accuracy", "pqd"):
        assert (gaps[key].value, gaps[key].reason) == (None, "fewer than two groups have two classes in common")


def test_ratios_without_a_denominator_are_skipped_and_counted():
    """Class 1 is never answered: no ratio of its rates; the difference of its rates is 0."""
    gaps = gaps_of([[[9, 0], [3, 0]], [[8, 0], [5, 0]]])
    assert (gaps["dpm"].value, gaps["dpm"].skipped, gaps["dpm"].by_class) == (1.0, 1, (1.0, None))
    assert (gaps["eom"].value, gaps["eom"].skipped) == (1.0, 1)
    assert gaps["demographic_parity_ratio"].by_class == (1.0, None)
    assert gaps["demographic_parity_difference"].by_class == (0.0, 0.0)
    wrong = gaps_of([[[0, 9], [3, 0]], [[0, 8], [5, 0]]])
    assert (wrong["pqd"].value, wrong["pqd"].skipped, wrong["pqd"].reason) == (None, 1, "no group has a right answer")
    assert (wrong["eom"].value, wrong["eom"].reason) == (None, "the rate is 0 in every group")
    assert wrong["gap_accuracy"].value == 0


def test_an_empty_group_takes_no_part():
    with_empty = gaps_of([*BY_HAND, np.zeros((3, 3))], groups=("a", "b", "empty"))
    without = gaps_of(BY_HAND, groups=("a", "b"))
    for key in GAP_KEYS:
        assert with_empty[key].value == without[key].value
        if with_empty[key].value is not None:
            assert with_empty[key].left_out == ("empty",)
            assert with_empty[key].skipped == without[key].skipped + (key not in RATE_KEYS)


def test_the_unknown_group_is_left_out():
    tables = tables_of_groups([*BY_HAND, [[0, 9, 9]] * 3], groups=("a", "b", "unknown"))
    assert compute_gaps(tables) == gaps_of(BY_HAND, groups=("a", "b"))
    assert compare_groups(tables, 0, 20) == compare_groups(tables_of_groups(BY_HAND, groups=("a", "b")), 0, 20)


@pytest.mark.parametrize(
    ("counts", "groups"),
    [
        (BY_HAND[:1], ("a",)),
        ([BY_HAND[0], np.zeros((3, 3))], ("a", "b")),
        (BY_HAND, ("a", "unknown")),
        (np.zeros((0, 3, 3)), ()),
    ],
    ids=["one", "one with images", "one known", "none"],
)
@pytest.mark.parametrize("compute", [compute_gaps, lambda tables: compare_groups(tables, 0, 20)])
def test_fewer_than_two_groups_give_no_figure_but_a_reason(compute, counts, groups):
    gaps = compute(tables_of_groups(counts, groups=groups))
    assert tuple(gaps) == GAP_KEYS
    for figure in gaps.values():
        assert figure.value is figure.interval is figure.p_value is figure.mean is figure.family_p is None
        assert figure.reason


def test_without_scores_figures_of_the_auc_are_missing():
    gaps = gaps_of(BY_HAND)
    for key in ("worst_group_auc", "gap_auc", "std_auc", "es_auc"):
        assert (gaps[key].value, gaps[key].reason) == (None, "the tables hold no scores")


def test_groups_are_compared_over_the_classes_that_all_have():
    logits, labels, groups = draw_images(900, (0.5, 0.3, 0.2), ("a", "b", "c"), 3)
    tables = count_images(logits, labels, groups)
    arrays = {name: array.copy() for name, array in tables.to_arrays().items()}
    for name in ("counts", "scores", "calibration"):
        arrays[name][0, 2] = 0
    arrays["withheld"][0, 2] = 2
    gaps = compute_gaps(type(tables)(tables.groups, **arrays))
    for key in ("balanced_accuracy", "macro_f1", "auc"):
        figure = gaps[f"gap_{key}"]
        assert (figure.left_out, figure.skipped, figure.n_withheld, figure.classes) == ((), 0, 2, (0, 1))
    same = [compute_figures(tables.select(g), np.array([True, True, False])) for g in tables.groups]
    for key in ("balanced_accuracy", "macro_f1"):
        values = [one[key].value for one in same]
        assert gaps[f"gap_{key}"].value == pytest.approx(max(values) - min(values), abs=1e-12)
        pooled = compute_figures(tables, np.array([True, True, False]))[key].value
        assert gaps[f"gap_{key}"].overall == pytest.approx(pooled, abs=1e-12)
    assert gaps["gap_accuracy"].left_out == ()
    # Of the class that one group lacks the two others are compared.
    opportunity = gaps["equal_opportunity_difference"]
    recall = [compute_figures(tables.select(g))["sensitivity"].by_class[2] for g in "bc"]
    assert opportunity.by_class[2] == pytest.approx(abs(recall[0] - recall[1]))
    assert opportunity.lacking == {2: ("a",)}
    arrays["counts"][:, 1:], arrays["withheld"][:, 1:] = 0, 1
    nowhere = compute_gaps(type(tables)(tables.groups, **arrays))
    assert nowhere["gap_balanced_accuracy"].reason == "fewer than two groups have two classes in common"


def test_a_group_with_one_class_is_not_ranked():
    """Its share of right answers is that of one class; the others are compared over both classes."""
    gaps = gaps_of([[[8, 2], [1, 9]], [[7, 3], [3, 7]], [[10, 0], [0, 0]]], groups=("a", "b", "c"))
    assert (gaps["gap_balanced_accuracy"].left_out, gaps["gap_balanced_accuracy"].best_group) == (("c",), "a")
    assert gaps["gap_balanced_accuracy"].value == pytest.approx(0.85 - 0.7)
    assert (gaps["gap_accuracy"].left_out, gaps["gap_accuracy"].best_group) == (("c",), "a")
    assert gaps["gap_accuracy"].value == pytest.approx(17 / 20 - 14 / 20)
    assert (gaps["gap_accuracy"].n, gaps["gap_accuracy"].classes) == (40, (0, 1))


def test_accuracies_are_compared_over_the_same_classes():
    """Group b lacks class 2, of which a has 5 of 5 right, and has 4 rare images, all right: 12/15 against 15/20."""
    rare = np.zeros((2, 15, 3))
    rare[1, 10] = 4, 3, 4
    counts = [BY_HAND[0], [[6, 2, 2], [0, 9, 1], [0, 0, 0]]]
    gaps = gaps_of(counts, rare=rare, groups=("a", "b"))
    figure = gaps["gap_accuracy"]
    assert (figure.value, figure.n, figure.classes) == (pytest.approx(12 / 15 - 15 / 20), 35, (0, 1))
    assert figure.overall == pytest.approx(27 / 35)
    found = compare_groups(tables_of_groups(counts, rare=rare, groups=("a", "b")), 0, 50)["gap_accuracy"]
    low, high = wilson_interval(np.array([12, 15]), np.array([15, 20]))
    assert found.interval[1] == pytest.approx(0.05 + math.hypot(high[0] - 0.8, 0.75 - low[1]))
    assert gaps_of(BY_HAND)["gap_accuracy"].classes is None


def test_the_calibration_error_of_one_class_is_not_ranked():
    logits, labels, groups = draw_images(600, (0.6, 0.4), ("a", "b", "c"), 1)
    kept = (groups != "c") | (labels == 0)
    figure = compute_gaps(count_images(logits[kept], labels[kept], groups[kept]))["gap_ece"]
    assert figure.left_out == ("c",)
    two = compute_gaps(count_images(*(one[groups != "c"] for one in (logits, labels, groups))))["gap_ece"]
    assert figure.value == two.value


def test_the_class_that_differs_most_for_its_images():
    """Class 1 differs by 0.4 in 2 x 10 images, class 0 by 0.2 in 2 x 100: 0.4 / sqrt(0.6 0.4 / 5) = 1.83 against
    0.2 / sqrt(0.8 0.2 / 50) = 3.54."""
    gaps = gaps_of([[[90, 10], [2, 8]], [[70, 30], [6, 4]]], groups=("a", "b"))
    figure = gaps["class_sensitivity_gap"]
    assert (figure.value, figure.worst_class, figure.worst_group) == (pytest.approx(0.2), 0, "b")
    assert figure.statistic == pytest.approx(0.2 / math.sqrt(0.8 * 0.2 / 50))
    assert figure.n == 200
    lower, upper = compare_groups(tables_of_groups([[[90, 10], [2, 8]], [[70, 30], [6, 4]]]), 0)[figure.key].interval
    assert 0 < lower < 0.2 < upper


def test_images_of_rare_classes_count_in_the_accuracy_of_their_group():
    """17 of 20 and 20 of 30 right, and 0 of 4 of the rare ones of the first group."""
    rare = np.zeros((2, 15, 3))
    rare[0, 10] = 4, 3, 0
    gaps = gaps_of(BY_HAND, rare=rare)
    assert gaps["gap_accuracy"].value == pytest.approx(17 / 24 - 2 / 3)
    assert gaps["gap_accuracy"].n == 54
    assert gaps["gap_balanced_accuracy"] == gaps_of(BY_HAND)["gap_balanced_accuracy"]


def test_draws_do_not_change_what_was_observed():
    tables = count_images(*draw_images(600, (0.5, 0.3, 0.2), ("f", "m", "x"), 5))
    observed = compute_gaps(tables)
    for key, figure in compare_groups(tables, 0, 50).items():
        if not key.startswith("std_") and key != "gap_ece":
            assert figure.interval[0] <= figure.value <= figure.interval[1], key
        assert (figure.mean_interval is None) == (figure.mean is None)
        blank = {"interval": None, "mean_interval": None, "p_value": None, "chance": None, "chance_mean": None}
        assert dataclasses.replace(figure, **blank, family_p=None) == observed[key]


def test_the_seed_decides_and_nothing_else():
    tables = count_images(*draw_images(300, (0.5, 0.3, 0.2), ("f", "m"), 5))
    assert compare_groups(tables, 1, 50) == compare_groups(tables, 1, 50)
    assert compare_groups(tables, 1, 50) != compare_groups(tables, 2, 50)


def test_chance_of_a_gap_by_hand():
    """Two groups of 2 x 100 images, all recalls 0.8: each accuracy varies by sqrt(0.16 / 200), so the mean gap is
    sqrt(2) times that times sqrt(2 / pi)."""
    gaps = compare_groups(tables_of_groups([[[80, 20], [20, 80]]] * 2), 0, 4000)
    expected = math.sqrt(2 * 0.16 / 200) * math.sqrt(2 / math.pi)
    assert gaps["gap_accuracy"].chance == pytest.approx(expected, rel=0.05)
    assert gaps["gap_accuracy"].p_value == 1
    assert gaps["gap_accuracy"].interval[0] == 0
    assert gaps["pqd"].interval[1] == 1


def test_other_shares_of_classes_are_not_blamed_on_the_groups():
    """Class 0 is easy and class 1 hard in both groups; the second group has more of class 1."""
    gaps = compare_groups(tables_of_groups([[[190, 10], [10, 10]], [[19, 1], [100, 100]]]), 0)
    assert gaps["gap_accuracy"].value > 0.3
    assert gaps["gap_accuracy"].chance == pytest.approx(gaps["gap_accuracy"].value, abs=0.05)
    assert gaps["gap_accuracy"].p_value > 0.3


def test_images_of_rare_classes_keep_the_rate_of_their_group():
    """They are of unknown classes; that they are harder in one group is no evidence against equality."""
    rare = np.zeros((2, 15, 3))
    rare[0, 10], rare[1, 10] = (100, 70, 95), (100, 70, 5)
    gaps = compare_groups(tables_of_groups([[[80, 20], [20, 80]]] * 2, rare=rare), 0)
    assert gaps["gap_accuracy"].value == pytest.approx(0.3)
    assert gaps["gap_accuracy"].p_value > 0.3


@pytest.mark.parametrize("options", [{"num_draws": 0}, {"level": 0.0}, {"level": 1.0}])
def test_settings_that_are_not_allowed_are_refused(options):
    with pytest.raises(ValueError, match="Allowed"):
        compare_groups(tables_of_groups(BY_HAND), 0, **options)


def test_intervals_hold_the_true_gap_about_as_often_as_they_say():
    """Recalls differ between three groups of 2 x 100; and three equal groups, where plain percentiles never hold 0."""
    truths = {
        "gap_accuracy": (0.2, 0.0),
        "worst_group_accuracy": (0.6, 0.8),
        "pqd": (0.75, 1.0),
        "gap_balanced_accuracy": (0.2, 0.0),
    }
    for case, recalls in enumerate(([[0.8], [0.7], [0.6]], [[0.8]] * 3)):
        rng, hits = np.random.default_rng(case), dict.fromkeys(truths, 0)
        for seed in range(100):
            tables = tables_of_groups(draw_answers(rng, np.array(recalls), np.full((3, 2), 100)))
            gaps = compare_groups(tables, seed, 200)
            for key, truth in truths.items():
                lower, upper = gaps[key].interval
                hits[key] += lower - 1e-9 <= truth[case] <= upper + 1e-9
        assert {key: number for key, number in hits.items() if number < 86} == {}


def test_sites_without_histograms_are_compared_by_their_own_areas():
    """Areas of 3/4 and 1/2 of both classes at two sites; all pairs of both together 5/8, so 5/8 over 1 + 1/8 + 1/8."""
    areas = np.zeros((2, 2, 7))
    areas[0, :, :2], areas[1, :, :2] = (4, 3), (4, 2)
    counts = np.array([[[2, 0], [0, 2]], [[2, 0], [0, 2]]])
    tables = EvaluationTables.make(("a", "b"), 2, counts=counts, areas=areas)
    gaps = compare_groups(tables, 0, 50)
    assert gaps["gap_auc"].value == pytest.approx(0.25)
    assert gaps["worst_group_auc"].value == pytest.approx(0.5)
    assert gaps["es_auc"].value == pytest.approx(0.625 / 1.25)
    assert (gaps["gap_auc"].interval[0], gaps["gap_auc"].p_value, gaps["gap_auc"].n) == (0, None, 8)


def test_wrong_answers_that_one_group_does_not_tell_are_no_finding():
    """All answers are class 0 in both groups; of group b 13 are told without the class, so that they may be any."""
    counts = [[[300, 0, 0], [200, 0, 0], [200, 0, 0]], [[300, 0, 0], [200, 0, 0], [187, 0, 0]]]
    other = np.array([[0, 0, 0], [0, 0, 13]])
    tables = dataclasses.replace(tables_of_groups(counts, groups=("a", "b")), other_wrong=other)
    gaps = flag_attributes({"sex": compare_groups(tables, 0)})["sex"]
    assert gaps["equalized_odds_difference"].value is not None
    assert (gaps["equalized_odds_difference"].p_value, gaps["equalized_odds_difference"].flagged) == (None, None)
    assert not any(gap.flagged for gap in gaps.values())
    assert gaps["equal_opportunity_difference"].flagged is False
