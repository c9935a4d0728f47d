import numpy as np
import pytest
from scipy.stats import binomtest
from scipy.stats import t as student

from fedmed.fairness import compare_paired
from fedmed.fairness.chance.paired import sign_test
from fedmed.fairness.chance.paired_effects import find_paired_effects
from fedmed.metrics.clusters import count_clusters
from fedmed.metrics.site_tables import make_paired


def make_cells(*classes):
    """Cells of classes given as (both wrong, only the other right, only the federated right, both right)."""
    return np.array(classes, np.int64).reshape(-1, 2, 2)


def test_differences_by_hand():
    """Class 0: 30 of 40 against 26 of 40. Class 1: 6 of 10 against 7 of 10."""
    found = compare_paired(make_cells((6, 4, 8, 22), (2, 2, 1, 5)), seed=0)
    assert found["accuracy"].value == pytest.approx((36 - 33) / 50)
    assert found["balanced_accuracy"].value == pytest.approx((4 / 40 - 1 / 10) / 2, abs=1e-15)
    assert {difference.n for difference in found.values()} == {50}
    assert set(found) == {"accuracy", "balanced_accuracy"}
    assert {difference.verdict for difference in found.values()} == {"undecided"}


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (1, 0), (3, 3), (9, 2), (2, 9), (400, 330), (3000, 3200)])
def test_the_sign_test_equals_scipy(won, lost):
    expected = binomtest(won, won + lost).pvalue if won + lost else 1.0
    assert sign_test(won, lost) == pytest.approx(expected, rel=1e-9)


def test_a_p_value_is_never_zero():
    assert 0 < sign_test(5000, 0) < 1e-300


def test_the_p_value_of_one_class_is_that_of_the_sign_test():
    """Nine to two: both tests are McNemar's, one of them simulated."""
    found = compare_paired(make_cells((5, 2, 9, 20)), 0, 20000)
    assert found["accuracy"].p_value == pytest.approx(binomtest(2, 11).pvalue)
    assert found["balanced_accuracy"].p_value == pytest.approx(binomtest(2, 11).pvalue, abs=0.006)


def test_the_stratified_p_value_by_hand():
    """One differing image in a class of 2 and one in a class of 4, both won: |+-1/2 +- 1/4| >= 3/4 in 2 of 4 cases."""
    found = compare_paired(make_cells((0, 0, 1, 1), (0, 0, 1, 3)), 0, 20000)
    assert found["balanced_accuracy"].p_value == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("cells", "verdict"), [((5, 2, 20, 73), "better"), ((5, 20, 2, 73), "worse")])
def test_verdicts(cells, verdict):
    for difference in compare_paired(make_cells(cells, cells), 0).values():
        assert difference.verdict == verdict
        lower, upper = difference.interval
        assert lower < difference.value < upper
        assert lower > 0 or upper < 0
        assert difference.p_value < 0.01


def test_exchanging_the_models_turns_the_result_round():
    cells = make_cells((6, 4, 8, 22), (2, 0, 1, 5))
    ours, theirs = compare_paired(cells, 0), compare_paired(cells.swapaxes(1, 2), 0)
    for key, difference in ours.items():
        assert theirs[key].value == -difference.value
        assert theirs[key].p_value == pytest.approx(difference.p_value, abs=0.05)
        assert theirs[key].interval == pytest.approx((-difference.interval[1], -difference.interval[0]), abs=0.03)


def test_classes_without_images_do_not_count():
    cells = make_cells((6, 4, 8, 22), (2, 2, 1, 5))
    with_empty = np.insert(cells, 1, 0, axis=0)
    assert compare_paired(with_empty, 0) == compare_paired(cells, 0)


def test_no_images_give_no_difference_but_a_reason():
    for difference in compare_paired(np.zeros((3, 2, 2), np.int64), 0).values():
        assert difference.value is difference.interval is difference.p_value is None
        assert (difference.n, difference.verdict, difference.reason) == (0, "undecided", "no images")


def test_models_that_never_differ_are_undecided_but_not_certainly_equal():
    difference = compare_paired(make_cells((1, 0, 0, 9), (0, 0, 0, 10)), 0)["balanced_accuracy"]
    assert (difference.value, difference.p_value, difference.verdict) == (0, 1, "undecided")
    assert difference.interval[0] < -0.05
    assert difference.interval[1] > 0.05


def test_the_seed_decides_and_nothing_else():
    cells = make_cells((6, 4, 8, 22), (2, 2, 1, 5))
    assert compare_paired(cells, 1) == compare_paired(cells, 1) != compare_paired(cells, 2)


@pytest.mark.parametrize(
    ("cells", "num_draws"), [(np.zeros((3, 2)), 10), (np.full((3, 2, 2), -1), 10), (np.ones((3, 2, 2), int), 0)]
)
def test_what_is_not_allowed_is_refused(cells, num_draws):
    with pytest.raises(ValueError, match="Needed"):
        compare_paired(cells, 0, num_draws)


def simulate(sizes, ours, theirs, num_reports, alike=0.7):
    """Differences of the balanced accuracy of simulated sites; the models answer a share of the images alike."""
    rng = np.random.default_rng(sum(sizes))
    found = []
    for seed in range(num_reports):
        cells = np.zeros((len(sizes), 2, 2), np.int64)
        for k, size in enumerate(sizes):
            first, second = rng.random((2, size))
            second = np.where(rng.random(size) < alike, first, second)
            np.add.at(cells[k], ((first < ours[k]).astype(int), (second < theirs[k]).astype(int)), 1)
        found.append(compare_paired(cells, seed, 300)["balanced_accuracy"])
    return found


@pytest.mark.parametrize(
    ("sizes", "ours", "theirs"),
    [
        ((5,) * 8, (0.7,) * 8, (0.7,) * 8),
        ((100, 40, 20, 8), (0.9, 0.8, 0.7, 0.6), (0.8, 0.8, 0.6, 0.6)),
        ((100, 100), (0.85, 0.75), (0.7, 0.6)),
    ],
)
def test_intervals_hold_the_truth_and_equal_models_are_rarely_told_apart(sizes, ours, theirs):
    truth = np.mean(ours) - np.mean(theirs)
    found = simulate(sizes, ours, theirs, 200)
    assert np.mean([d.interval[0] <= truth <= d.interval[1] for d in found]) >= 0.91
    verdicts = [d.verdict for d in found]
    if truth == 0:
        assert verdicts.count("undecided") >= 0.92 * len(found)
    else:
        assert verdicts.count("worse") <= 0.01 * len(found)


def test_a_clear_benefit_is_found():
    verdicts = [d.verdict for d in simulate((100, 100), (0.85, 0.75), (0.7, 0.6), 100)]
    assert verdicts.count("better") >= 95


def test_images_of_one_patient_count_as_one_where_they_are_answered_alike():
    """Ten patients with four images; each model is right for whole patients, 8 times only the federated one."""
    right = np.repeat([True] * 8 + [False] * 2, 4)
    other = np.zeros(40, np.bool_)
    patients = np.repeat(np.arange(10), 4).astype(str).tolist()
    paired = make_paired(right, other, np.zeros(40, np.int64), ["a"] * 40, 2, patients)
    as_images = compare_paired(paired.cells[0], 0)["accuracy"]
    as_patients = compare_paired(paired.cells[0], 0, 4000, spread=paired.spread[0], patients=np.array([10, 0]))
    assert as_images.p_value == pytest.approx(2.0**-31)
    # Between patients the variance is (10 / 9) 16 (8 0.2^2 + 2 0.8^2), unrelated images have (40 / 39) 40 0.8 0.2.
    effect = (10 / 9 * 16 * (8 * 0.04 + 2 * 0.64)) / (40 / 39 * 40 * 0.16)
    # Found from 9 degrees of freedom only, for which Student's quantile is 2.262 instead of 1.960.
    flips = round(32 / (effect * (2.262157 / 1.959964) ** 2))
    assert flips == 6
    assert as_patients["accuracy"].p_value == pytest.approx(2 * 0.5**flips, abs=0.01)
    assert as_patients["accuracy"].value == 0.8
    width = [one.interval[1] - one.interval[0] for one in (as_images, as_patients["accuracy"])]
    assert width[1] > 1.5 * width[0]


def test_balanced_accuracy_costs_accuracy_little_where_it_rests_on_few_images():
    """Under the hypothesis accuracy has the variance 12 / 102^2, balanced accuracy (11 / 100^2 + 1 / 2^2) / 4.

    That is 54 times as much, so that its p-value would have to be 54 times as small to decide: the adjusted p-value
    of accuracy is its own and at most a fiftieth more.
    """
    found = compare_paired(make_cells((5, 2, 9, 84), (1, 0, 1, 0)), 0, 20000)
    own = binomtest(2, 12).pvalue
    assert found["accuracy"].family_p == pytest.approx(own, abs=0.004)
    assert found["accuracy"].family_p >= own * 0.9
    assert found["balanced_accuracy"].family_p == pytest.approx(1, abs=0.01)


def test_two_patients_are_no_ten_images():
    """All ten images of two patients are won: nothing varies, but only two flips of a coin have fallen the same way."""
    patients = np.repeat(["a", "b"], 5).tolist()
    paired = make_paired(np.ones(10, np.bool_), np.zeros(10, np.bool_), np.zeros(10, np.int64), ["x"] * 10, 1, patients)
    found = compare_paired(paired.cells[0], 0, 4000, spread=paired.spread[0], patients=np.array([2]))["accuracy"]
    assert found.p_value == pytest.approx(0.5, abs=0.03)
    unknown = compare_paired(paired.cells[0], 0, 4000, spread=paired.spread[0], patients=np.array([0]))["accuracy"]
    assert unknown.p_value == pytest.approx(2 * 0.5**10)


def test_the_adjusted_p_value_allows_for_both_figures():
    """Of one class both figures are the same, and so is the adjusted p-value; of several it is at least as large."""
    one = compare_paired(make_cells((5, 2, 9, 20)), 0, 4000)
    assert one["balanced_accuracy"].family_p == pytest.approx(one["balanced_accuracy"].p_value, abs=1e-9)
    several = compare_paired(make_cells((20, 4, 18, 60), (1, 0, 2, 2), (3, 1, 1, 4)), 0, 4000)
    for difference in several.values():
        assert difference.family_p >= difference.p_value - 0.01
    assert min(one.family_p for one in several.values()) < 2 * min(one.p_value for one in several.values()) + 0.01


def of_patients(sizes, wins, losses=0):
    """Cells and sums of one class: patients of some sizes whose images one model alone is right on, then alike ones."""
    sizes = np.array(sizes)
    gains = np.repeat([1, -1, 0], [wins, losses, len(sizes) - wins - losses])
    right = np.repeat(gains != -1, sizes)
    other = np.repeat(gains != 1, sizes)
    names = np.repeat(np.arange(len(sizes)), sizes).astype(str).tolist()
    paired = make_paired(right, other, np.zeros(len(right), np.int64), ["a"] * len(right), 1, names)
    clusters = count_clusters(np.zeros(len(right), np.int64), np.array(names, np.int64), right, 1)
    return paired.cells[0], paired.spread[0], clusters


@pytest.mark.parametrize(("num_patients", "verdict"), [(4, "undecided"), (5, "undecided"), (30, "better")])
def test_few_patients_give_no_verdict_however_many_images_they_have(num_patients, verdict):
    """Of m patients the sign flips in 2^m ways, two of which are as far from 0: no p-value below 2^(1 - m)."""
    rng = np.random.default_rng(3)
    names = np.repeat(np.arange(num_patients), 24)
    right = rng.random(len(names)) < 0.8  # of every patient alike, so that nothing is seen of a correlation
    other = rng.random(len(names)) < 0.5
    paired = make_paired(right, other, 0 * names, ["a"] * len(names), 1, names.astype(str).tolist())
    found = compare_paired(
        paired.cells[0], 0, spread=paired.spread[0], patients=count_clusters(0 * names, names, right, 1)
    )
    assert compare_paired(paired.cells[0], 0)["accuracy"].verdict == "better"
    for one in found.values():
        assert one.verdict == verdict
        assert min(one.p_value, one.family_p) >= 2.0 ** (1 - num_patients)
    assert found["accuracy"].n == 24 * num_patients


def test_a_site_of_few_patients_keeps_its_own_variance_among_many_patients():
    """60 patients of one image each, and 4 of 24 that are all won: pooled sums would take the 4 for part of 64.

    By hand, of the site with 60: U = 60 / 59 (30 - 10^2 / 60). Of the other, 3 won patients of 4: the differences are
    1 for three patients and 0 for one, U = 96 / 95 (72 - 72^2 / 96), D / n = 24, Q = 3 6^2 + 18^2, so rho = 1.
    """
    many, few = of_patients([1] * 60, 20, 10), of_patients([24] * 4, 3)
    cells, spread, patients = (np.stack(pair) for pair in zip(many, few, strict=True))
    alone, small = 60 / 59 * (30 - 100 / 60), 96 / 95 * 18
    assert spread[1, 0] == pytest.approx(3 * 6**2 + 18**2)
    assert 4 / 3 * spread[1, 0] / small > 24
    freedom = (alone + 24 * small) ** 2 / ((24 * small) ** 2 / 3)
    factor = (student.ppf(0.975, freedom) / student.ppf(0.975, np.inf)) ** 2
    found = find_paired_effects(cells, spread, patients)
    assert found.by_class[0] == pytest.approx((alone + 24 * small) / (alone + small) * factor, rel=1e-6)
    assert found.lowest_p == 2.0**-63
    together = compare_paired(cells, 0, spread=spread, patients=patients)["accuracy"]
    as_one = compare_paired(cells.sum(axis=0), 0, spread=spread.sum(axis=0), patients=patients.sum(axis=0))["accuracy"]
    assert together.value == as_one.value == pytest.approx(82 / 156)
    assert together.p_value > as_one.p_value


def test_sites_with_single_images_are_compared_as_their_images():
    cells = np.stack([make_cells((6, 4, 8, 22), (2, 2, 1, 5)), make_cells((1, 2, 9, 3), (2, 4, 1, 5))])
    n = cells.sum(axis=(2, 3))
    patients = np.stack([n, n * 0, n * 0, n], axis=-1).astype(float)
    found = compare_paired(cells, 0, spread=np.ones((2, 2)), patients=patients)
    assert found == compare_paired(cells.sum(axis=0), 0)


def test_of_few_patients_the_correlation_is_at_least_that_of_right_answers():
    """Each of 8 patients is answered alike by the federated model; by luck the differences cancel out within each."""
    names, right = np.repeat(np.arange(8), 4), np.repeat([1, 1, 1, 1, 1, 1, 0, 0], 4) > 0
    other = right.copy()
    other[::4] = ~other[::4]
    paired = make_paired(right, other, 0 * names, ["a"] * 32, 1, names.astype(str).tolist())
    clusters = count_clusters(0 * names, names, right, 1)
    found = find_paired_effects(paired.cells, paired.spread, clusters[None])
    assert found.by_class[0] > 4  # D / n = 4, with few degrees of freedom on top
    known = find_paired_effects(paired.cells, paired.spread, np.array([[8]]))
    assert known.by_class[0] < 2.5
