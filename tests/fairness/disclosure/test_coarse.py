"""What a hospital tells: by hand, and whatever images, models, groups and patients there are."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmed.fairness.disclosure.breach import find_breach
from fedmed.fairness.disclosure.rows import Disclosure, plan_disclosure
from fedmed.fairness.disclosure.tables import disclose_tables
from fedmed.fairness.reconstruction.held import Held, hold_rows
from fedmed.fairness.reconstruction.statement import Row
from fedmed.metrics.packing import pack_site_tables, unpack_site_tables
from fedmed.metrics.rounding import is_rounded
from fedmed.metrics.site_tables import FEDERATED, LOCAL, SiteTables
from fedmed.metrics.tables import EvaluationTables, calibration_bins, find_answers, tables_from_logits

LIMITS = Disclosure(k=10, k_row=5, k_bin=5)
K = 3


def tell(
    logits: torch.Tensor,
    labels: torch.Tensor,
    patients: Sequence[str] | None = None,
    limits: Disclosure = LIMITS,
    **groups: Sequence[str],
) -> SiteTables:
    named = {"site": ["north"] * len(labels), **groups}
    plan = plan_disclosure(labels, named, [str(place) for place in range(len(labels))], limits, None, patients)
    models = {FEDERATED: logits, LOCAL: logits.flip(0)}
    return disclose_tables(models, labels, named, plan, limits, patients)


def answer(*chosen: int, sure: float = 3.0) -> torch.Tensor:
    return sure * torch.nn.functional.one_hot(torch.tensor(chosen), K).double()


def test_wrong_answers_are_told_class_by_class_from_five_on() -> None:
    """Of 20 images of class 0 five are taken for 1, four for 2; of 10 of class 1 all are right."""
    logits = answer(*[0] * 11, *[1] * 5, *[2] * 4, *[1] * 10)
    found = tell(logits, torch.tensor([0] * 20 + [1] * 10)).site
    assert found.counts.tolist() == [[[11, 5, 0], [0, 10, 0], [0, 0, 0]]]
    assert found.other_wrong.tolist() == [[4, 0, 0]]
    assert found.row_images.tolist() == [[20, 10, 0]]
    assert found.withheld.tolist() == [[0, 0, 1]]


def test_wrong_answers_are_counted_by_patients() -> None:
    """Six wrong answers of four patients are not told class by class."""
    logits = answer(*[0] * 14, *[1] * 6)
    patients = [f"p{i}" for i in range(14)] + ["q0", "q0", "q0", "q1", "q2", "q3"]
    found = tell(logits, torch.zeros(20, dtype=torch.int64), patients).site
    assert found.counts.tolist() == [[[14, 0, 0], [0, 0, 0], [0, 0, 0]]]
    assert found.other_wrong.tolist() == [[6, 0, 0]]
    assert found.patients[0, 0, 0] == 18
    assert tell(logits, torch.zeros(20, dtype=torch.int64)).site.counts[0, 0, 1] == 6


def test_what_would_give_hidden_rows_away_is_told_in_no_table() -> None:
    """Of 20 women of class 0 twelve are right and eight taken for 1; of 20 men all are right."""
    labels, sex = torch.zeros(40, dtype=torch.int64), ["f"] * 20 + ["m"] * 20
    groups = {"site": ["north"] * 40, "sex": sex}
    plan = plan_disclosure(labels, groups, [str(place) for place in range(40)], LIMITS)
    held = Held(folded=frozenset({Row("sex", "f", 0)}), unpaired=frozenset({Row("sex", "m", 0)}))
    models = {FEDERATED: answer(*[0] * 12, *[1] * 8, *[0] * 20), LOCAL: answer(*[0] * 40)}
    limited = hold_rows(plan, labels.tolist(), groups, held)
    open_tables, found = (disclose_tables(models, labels, groups, one, LIMITS) for one in (plan, limited))
    by_sex = found.models[FEDERATED]["sex"]
    assert open_tables.models[FEDERATED]["sex"].counts[:, 0].tolist() == [[12, 8, 0], [20, 0, 0]]
    assert by_sex.counts[:, 0].tolist() == [[12, 0, 0], [20, 0, 0]]
    assert by_sex.other_wrong[:, 0].tolist() == [8, 0]
    assert by_sex.row_images[:, 0].tolist() == [20, 20]
    assert found.paired[LOCAL]["sex"].cells[:, 0].tolist() == [[[0, 8], [0, 12]], [[0, 0], [0, 0]]]
    assert found.paired[LOCAL]["site"].cells[0, 0].tolist() == [[0, 8], [0, 32]]
    assert find_breach(found, LIMITS, "north") is None


def test_bins_are_merged_until_each_holds_five() -> None:
    """Confidences in bins 6 (3 images), 8 (3), 9 (6) and 13 (2): bins 0 to 8 together, and 9 with all after it."""
    confidence = np.repeat([6.5, 8.5, 9.5, 13.5], [3, 3, 6, 2]) / 15
    z_N = np.log(confidence) - np.log((1 - confidence) / 2)
    logits = torch.zeros(14, K, dtype=torch.float64)
    logits[:, 0] = torch.from_numpy(z_N)
    found = tell(logits, torch.tensor([0] * 12 + [1, 1])).site
    expected = np.zeros((15, 3))
    expected[0] = 6, 3 * (6.5 + 8.5) / 15, 6
    expected[9] = 8, 5.60, 6  # (6 * 9.5 + 2 * 13.5) / 15
    # The two images of class 1 are too few for a row, also for one of rare classes: nothing of them is told.
    expected[9] = 6, 3.80, 6
    np.testing.assert_array_equal(found.mixed[0], expected)
    assert not found.calibration.any()


def test_a_merged_bin_counts_patients_and_few_are_withheld_whole() -> None:
    logits = answer(*[0] * 12, sure=1.0)
    patients = ["a"] * 9 + ["b", "c", "d"]
    found = tell(logits, torch.zeros(12, dtype=torch.int64), patients, Disclosure(4, 4, scores=True, k_bin=5)).site
    assert found.row_images[0, 0] == 12
    assert not found.mixed.any()
    assert tell(logits, torch.zeros(12, dtype=torch.int64)).site.mixed[0, 0, 0] == 12


def test_rare_classes_count_in_the_merged_bins() -> None:
    labels = torch.tensor([0] * 10 + [1] * 3 + [2] * 3)
    found = tell(answer(*[0] * 12, *[1] * 4), labels).site
    assert found.rare.tolist() == [[6, 1]]
    assert found.mixed[0, :, [0, 2]].sum(axis=1).tolist() == [16, 11]
    assert found.brier[0, 0] == 10
    assert found.withheld.tolist() == [[0, 1, 1]]


def test_sums_have_three_digits_and_are_those_of_all_told_images() -> None:
    generator = torch.Generator().manual_seed(4)
    logits, labels = 2 * torch.randn(200, K, generator=generator).double(), torch.arange(200) % K
    patients = [f"p{i // 2}" for i in range(200)]
    found, exact = tell(logits, labels, patients).site, tables_from_logits(logits, labels, ["north"] * 200, patients)
    for name in ("patients", "brier", "areas"):
        told, true = getattr(found, name), getattr(exact, name)
        np.testing.assert_allclose(told, true, rtol=0.005)
        assert (told != true).any()
    assert found.brier[0, 0] == 200


def test_groups_have_counts_and_patients_only() -> None:
    generator = torch.Generator().manual_seed(5)
    logits, labels = torch.randn(120, K, generator=generator).double(), torch.arange(120) % K
    sex = ["f" if i % 2 else "m" for i in range(120)]
    own = tell(logits, labels, sex=sex).models[FEDERATED]["sex"]
    assert own.row_images.sum() == 120
    assert own.patients[..., 0].sum() == 120
    assert not any(getattr(own, name).any() for name in ("scores", "calibration", "mixed", "brier", "areas"))
    allowed = replace(LIMITS, group_histograms=True)
    more = tell(logits, labels, limits=allowed, sex=sex)
    assert all(getattr(more.models[FEDERATED]["sex"], name).any() for name in ("mixed", "brier", "areas"))
    assert find_breach(more, allowed, "north") is None
    assert find_breach(more, LIMITS, "north") == "they tell calibration, Brier score or AUC of groups"


def test_no_images_and_too_few_leave_alike() -> None:
    """A class of 4 images and one of none; a site of 3 and one of none."""
    few, none = torch.tensor([0] * 30 + [1] * 4), torch.tensor([0] * 30)
    sex = ["f"] * 15 + ["m"] * 15
    with_few = tell(answer(*[0] * 34), few, sex=[*sex, "f", "f", "m", "m"])
    without = tell(answer(*[0] * 30), none, sex=sex)
    assert pack_site_tables(with_few) == pack_site_tables(without)
    nothing = tell(answer(0, 0, 0), torch.zeros(3, dtype=torch.int64))
    empty = tell(torch.zeros(0, K).double(), torch.zeros(0, dtype=torch.int64))
    assert pack_site_tables(nothing) == pack_site_tables(empty)


def test_a_small_group_of_few_images_of_a_class_leaves_as_one_of_none() -> None:
    """Four of unknown sex in a class of their own, or in the class of the others: 10 of 30 or more are of no sex."""
    sex = ["f"] * 15 + ["m"] * 15 + ["unknown"] * 4
    for of_unknown in ([1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 0]):
        found = tell(answer(*[0] * 34), torch.tensor([0] * 30 + of_unknown), sex=sex).models[FEDERATED]
        assert found["sex"].groups == ("f", "m")
        assert found["site"].row_images[0, 0] - found["sex"].row_images[:, 0].sum() == 10


IMAGES = st.lists(
    st.tuples(st.integers(0, K - 1), st.sampled_from("fmu"), st.integers(0, 30), st.integers(0, 40), st.booleans()),
    max_size=60,
)
"""True class, sex, patient, how sure the model is, whether its answer is right."""


def read_images(
    images: list[tuple[int, str, int, int, bool]],
) -> tuple[torch.Tensor, torch.Tensor, list[str], list[str]]:
    labels = torch.tensor([image[0] for image in images], dtype=torch.int64)
    logits = torch.zeros(len(images), K, dtype=torch.float64)
    for place, (label, _, who, sure, is_right) in enumerate(images):
        logits[place, label if is_right else (label + 1 + who % 2) % K] = sure / 7 + 0.001 * who
    return logits, labels, [image[1] for image in images], [f"p{image[2]}" for image in images]


def check(tables: EvaluationTables, limits: Disclosure, is_site: bool) -> None:
    """Look at every number by itself, without find_breach."""
    assert ((tables.row_images == 0) | (tables.row_images >= limits.k_row)).all()
    assert ((tables.patients[..., 0] == 0) | (tables.patients[..., 0] >= limits.k_row)).all()
    assert ((tables.row_images == 0) == (tables.withheld == 1)).all()
    wrong = tables.counts * (1 - np.eye(K, dtype=np.int64))
    assert ((wrong == 0) | (wrong >= limits.k_row)).all()
    assert ((tables.rare[:, 0] == 0) | (tables.rare[:, 0] >= limits.k_row)).all()
    assert ((tables.mixed[..., 0] == 0) | (tables.mixed[..., 0] >= limits.k_bin)).all()
    assert not tables.scores.any()
    assert not tables.calibration.any()
    assert is_site or not (tables.mixed.any() or tables.brier.any() or tables.areas.any())
    for array in (tables.patients[..., 1:], tables.mixed[..., 1], tables.brier[:, 1:], tables.areas[..., 1:5]):
        assert is_rounded(array)
    told = tables.row_images.sum(axis=1) + tables.rare[:, 0]
    assert (told > 0).all()


@settings(max_examples=100, deadline=None)
@given(IMAGES, st.booleans(), st.sampled_from([LIMITS, Disclosure(3, 2, k_bin=4), Disclosure(1, 3, k_bin=2)]))
def test_whatever_comes_in_nothing_small_or_exact_goes_out(
    images: list[tuple[int, str, int, int, bool]], has_ids: bool, limits: Disclosure
) -> None:
    logits, labels, sex, patients = read_images(images)
    found = tell(logits, labels, patients if has_ids else None, limits, sex=sex)
    assert find_breach(found, limits, "north") is None
    for by_attribute in found.models.values():
        for attribute, own in by_attribute.items():
            check(own, limits, attribute == "site")
            assert EvaluationTables.from_arrays(own.groups, own.to_arrays()).groups == own.groups
    packed = pack_site_tables(found)
    assert packed == pack_site_tables(tell(logits, labels, patients if has_ids else None, limits, sex=sex))
    assert pack_site_tables(unpack_site_tables(packed)) == packed


@settings(max_examples=50, deadline=None)
@given(IMAGES)
def test_merged_bins_hold_five_patients(images: list[tuple[int, str, int, int, bool]]) -> None:
    logits, labels, _, patients = read_images(images)
    mixed = tell(logits, labels, patients).site.mixed
    if not len(mixed):
        return
    _, confidence = find_answers(logits)
    bins = calibration_bins(confidence)
    starts = np.flatnonzero(mixed[0, :, 0]).tolist()
    for start, end in zip(starts, [*starts[1:], 15], strict=True):
        people = {who for who, own in zip(patients, bins.tolist(), strict=True) if start <= own < end}
        assert len(people) >= 5
