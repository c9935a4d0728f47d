import numpy as np
import pytest
from scipy.stats import fisher_exact

from fedmed.fairness import find_alarms
from fedmed.fairness.chance.alarms import fall_p_value
from fedmed.storage.history import RoundRecord, Validation


def make_record(number, **attributes):
    """A round; groups are given as (images by class, right ones by class)."""
    counts = {
        attribute: {group: {"n": list(n), "right": list(right)} for group, (n, right) in groups.items()}
        for attribute, groups in attributes.items()
    }
    return RoundRecord(round=number, validation=Validation(counts=counts))


def alarms_of(reference, record, history_length=1, **options):
    return find_alarms([reference] * history_length, record, reference, **options)


@pytest.mark.parametrize(("right", "n", "before", "n_before"), [(30, 50, 42, 50), (3, 9, 8, 9), (70, 100, 30, 40)])
def test_one_class_equals_the_exact_test_of_fisher(right, n, before, n_before):
    table = [[before, n_before - before], [right, n - right]]
    expected = fisher_exact(table, alternative="greater").pvalue
    found = fall_p_value(*(np.array([number]) for number in (right, n, before, n_before)))
    assert found == pytest.approx(expected, rel=1e-6)


def test_two_classes_by_hand():
    """Both classes: 1 of 1 right before, 0 of 1 now. Each falls with 1/2, so that both do with 1/4."""
    assert fall_p_value(np.zeros(2), np.ones(2), np.ones(2), np.ones(2)) == pytest.approx(1 / 4)
    # Class 0 of 2 images: of two right answers either round gets 0, 1, 2 in 1/6, 4/6, 1/6 of the cases.
    found = fall_p_value(np.array([0, 0]), np.array([2, 1]), np.array([2, 1]), np.array([2, 1]))
    assert found == pytest.approx(1 / 6 * 1 / 2)


def test_the_p_value_equals_dealing_out_anew():
    rng = np.random.default_rng(0)
    n, before, now = np.array([60, 30, 12]), np.array([50, 22, 9]), np.array([44, 17, 7])
    dealt = rng.hypergeometric(before + now, 2 * n - before - now, n, size=(200_000, 3))
    falls = ((before + now - 2 * dealt) / n).mean(axis=1)
    expected = (falls >= ((before - now) / n).mean() - 1e-9).mean()
    found = fall_p_value(now, n, before, n)
    assert expected <= found + 0.002
    assert found == pytest.approx(expected, rel=0.05)


def test_a_fall_is_told_in_plain_words():
    reference = make_record(5, site={"site_01": ([100, 50], [90, 40])}, sex={"f": ([80, 40], [72, 32])})
    record = make_record(9, site={"site_01": ([100, 50], [89, 41])}, sex={"f": ([80, 40], [40, 16])})
    (alarm,) = alarms_of(reference, record, num_rounds=20)
    assert (alarm.kind, alarm.attribute, alarm.group) == ("fall", "sex", "f")
    assert (alarm.figure, alarm.reference_round) == ("balanced_accuracy", 5)
    assert alarm.value == pytest.approx((0.5 + 0.4) / 2)
    assert alarm.reference == pytest.approx((0.9 + 0.8) / 2)
    n = np.array([80, 40])
    raw = fall_p_value(np.array([40, 16]), n, np.array([72, 32]), n)
    assert alarm.p_value == pytest.approx(raw * 2 * 20)  # two groups, twenty rounds
    assert alarm.text == (
        "Patients with sex f: the share of right answers, averaged over the classes, fell from 85.0% in round 5 to "
        "45.0% in round 9. Chance alone would show such a fall in fewer than 1 of 1,000 runs, all groups and rounds of "
        "this run considered."
    )


def test_lost_coverage_is_told():
    reference = make_record(2, site={"a": ([5, 5], [4, 4]), "b": ([6, 6], [5, 5])}, sex={"m": ([9, 0], [8, 0])})
    record = make_record(3, site={"a": ([5, 5], [4, 4])}, sex={"m": ([0, 0], [0, 0])})
    alarms = alarms_of(reference, record)
    assert [(a.kind, a.attribute, a.group, a.value, a.reference) for a in alarms] == [
        ("coverage", "site", "b", 0, 12),
        ("coverage", "sex", "m", 0, 9),
    ]
    assert alarms[0].p_value is None
    assert alarms[0].text == (
        "Site b: no image was checked in round 3; in round 2 there were 12. The model's quality for this site is not "
        "known in this round."
    )


def test_rises_and_small_falls_are_no_alarms():
    reference = make_record(1, site={"a": ([50, 50], [40, 30])})
    for right in ([45, 35], [40, 30], [37, 28]):
        assert alarms_of(reference, make_record(2, site={"a": ([50, 50], right)})) == []


def test_more_rounds_and_groups_need_a_larger_fall():
    reference = make_record(1, site={"a": ([50, 50], [40, 40])})
    record = make_record(2, site={"a": ([50, 50], [30, 30])})
    (alarm,) = alarms_of(reference, record, num_rounds=10)
    assert alarm.p_value < 0.05
    assert alarms_of(reference, record, num_rounds=100_000) == []
    # Without a planned number the t-th comparison counts t (t + 1) times.
    (third,) = alarms_of(reference, record, history_length=3)
    assert third.p_value == pytest.approx(alarm.p_value / 10 * 12)


def test_only_classes_of_both_rounds_are_compared():
    """Class 1 is held back now; class 0 has not changed."""
    reference = make_record(1, site={"a": ([50, 50], [40, 50])})
    assert alarms_of(reference, make_record(2, site={"a": ([50, 0], [40, 0])})) == []
    assert alarms_of(reference, make_record(2, site={"a": ([0, 0], [0, 0])}))[0].kind == "coverage"
    apart = make_record(1, site={"a": ([50, 0], [50, 0])})
    assert alarms_of(apart, make_record(2, site={"a": ([0, 50], [0, 0])})) == []


def test_a_fall_names_over_how_many_classes_it_is():
    """Of three classes one or two have images in both rounds."""
    for n, words in (
        ([50, 0, 0], "in the only class that was"),
        ([50, 50, 0], "averaged over the 2 of 3 classes that were"),
    ):
        reference = make_record(1, site={"a": ([50, 50, 50], [50, 50, 50])})
        (alarm,) = alarms_of(reference, make_record(2, site={"a": (n, [5, 5, 0])}))
        assert f"the share of right answers, {words} checked in both rounds, fell from 100.0% in" in alarm.text


def test_without_a_reference_or_counts_there_are_no_alarms():
    record = make_record(1, site={"a": ([50, 50], [0, 0])})
    assert find_alarms([], record, None) == []
    assert find_alarms([RoundRecord(round=1)], record, RoundRecord(round=1)) == []
    assert (
        find_alarms([RoundRecord(round=1)], record, RoundRecord.model_validate({"round": 1, "validation": None})) == []
    )


def test_new_groups_are_no_alarm():
    reference = make_record(1, site={"a": ([50, 50], [40, 40])})
    record = make_record(2, site={"a": ([50, 50], [40, 40]), "b": ([50, 50], [0, 0])})
    assert alarms_of(reference, record) == []


def test_runs_in_which_nothing_changes_have_few_alarms():
    """Twenty rounds, four groups, answers drawn anew in every round, the best round so far as the reference."""
    rng, with_alarm = np.random.default_rng(0), 0
    n, recalls = np.array([40, 20, 10]), np.array([0.9, 0.7, 0.5])
    for _ in range(40):
        history, alarmed = [], False
        for number in range(20):
            right = rng.binomial(n, recalls, size=(4, 3))
            record = make_record(number, site={f"site_{i}": (n.tolist(), right[i].tolist()) for i in range(4)})
            record.validation.pooled["score"] = float((right / n).mean())
            best = max(history, key=lambda r: r.validation.pooled["score"], default=None)
            alarmed = alarmed or bool(find_alarms(history, record, best, num_rounds=20))
            history.append(record)
        with_alarm += alarmed
    assert with_alarm <= 4


def test_images_of_few_patients_are_worth_fewer():
    """From 90 to 60 of 100 images: clear of 100 patients; of 20 with five images alike it is 18 to 12 of 20."""
    before, now = ([100], [90]), ([100], [60])
    reference, record = make_record(1, sex={"f": before}), make_record(2, sex={"f": now})
    assert len(alarms_of(reference, record, num_rounds=2)) == 1
    for one in (reference, record):
        one.validation.counts["sex"]["f"]["worth"] = [20]
    raw = fisher_exact([[18, 2], [12, 8]], alternative="greater").pvalue
    assert raw > 0.025
    assert alarms_of(reference, record, num_rounds=2) == []
    (alarm,) = alarms_of(reference, record, num_rounds=1, level=0.1)
    assert alarm.p_value == pytest.approx(raw)
    assert (alarm.value, alarm.reference) == (0.6, 0.9)
