"""Attacks on what leaves a site: each succeeds where only small rows are left out, and fails here."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np
import pytest
import torch

from fedmed.config import FairnessConfig
from fedmed.fairness.disclosure.rows import Disclosure, DisclosurePlan, plan_disclosure
from fedmed.fairness.disclosure.tables import disclose_tables, find_breach
from fedmed.fairness.figures.groups import assign_groups
from fedmed.metrics.site_tables import FEDERATED
from fedmed.seeding import make_rng

LIMITS = Disclosure(k=10, k_row=5)
Groups = Mapping[str, Sequence[str]]
Rows = dict[tuple[str, str, int | None], np.ndarray]


def make_groups(attributes: Mapping[str, Sequence[str]], num_images: int, intersections: str = "none") -> Groups:
    return assign_groups("north", attributes, FairnessConfig(intersections=intersections), num_images)


def list_told(plan: DisclosurePlan, labels: np.ndarray, groups: Groups) -> Rows:
    """Return the images of every row in a site's tables: (attribute, group, class), or no class for rare ones."""
    rows = {}
    for attribute, of_attribute in plan.attributes.items():
        names = np.array(groups[attribute])
        for name in np.unique(names):
            for label in np.unique(labels):
                rows[attribute, str(name), int(label)] = of_attribute.counted & (names == name) & (labels == label)
            rows[attribute, str(name), None] = of_attribute.rare & (names == name)
    return {key: mask for key, mask in rows.items() if mask.any()}


def list_naive(labels: np.ndarray, groups: Groups, disclosure: Disclosure = LIMITS) -> Rows:
    """Leave out small groups and small rows, put the latter into the rare row if that is large enough, no more."""
    rows = {}
    for attribute, of_images in groups.items():
        names = np.array(of_images)
        for name in np.unique(names):
            inside = names == name
            sizes = {int(label): int((inside & (labels == label)).sum()) for label in np.unique(labels[inside])}
            small = [label for label, size in sizes.items() if size < disclosure.k_row]
            rare = inside & np.isin(labels, small)
            if inside.sum() >= disclosure.k:
                rows |= {(attribute, str(name), c): inside & (labels == c) for c in sizes if c not in small}
                rows |= {(attribute, str(name), None): rare} if rare.sum() >= disclosure.k_row else {}
    return rows


def attack(rows: Iterable[np.ndarray], secret_N: np.ndarray, target_N: np.ndarray) -> float | None:
    """Work the sum of ``secret`` over the target out from the rows' sums; None where it does not follow from them."""
    rows_RN = np.array([row.astype(float) for row in rows])
    sums_R = rows_RN @ secret_N  # this is what leaves the site
    weights_R = np.linalg.lstsq(rows_RN.T, target_N.astype(float), rcond=None)[0]
    if not np.allclose(weights_R @ rows_RN, target_N, atol=1e-8):
        return None
    return float(weights_R @ sums_R)


def find_small_set(rows: Sequence[np.ndarray], most: int) -> tuple[int, ...] | None:
    """Return images, at most so many, about which a weighted sum of rows tells; by trying all."""
    rows_RN = np.array([row.astype(float) for row in rows])
    rank = np.linalg.matrix_rank(rows_RN)
    for size in range(1, most + 1):
        for chosen in combinations(range(rows_RN.shape[1]), size):
            if np.linalg.matrix_rank(np.delete(rows_RN, chosen, axis=1)) < rank:
                return chosen
    return None


def plan_of(labels: np.ndarray, groups: Groups, disclosure: Disclosure = LIMITS, **options) -> DisclosurePlan:
    items = options.pop("items", [f"image{number:04d}" for number in range(len(labels))])
    return plan_disclosure(torch.from_numpy(labels), groups, items, disclosure, **options)


def secrets(num_images: int, seed: int = 5) -> np.ndarray:
    """Return what is to be kept secret: whether the model is right, say."""
    return make_rng(seed, "secret").integers(0, 2, num_images).astype(float)


def split(counts: Mapping[str, int]) -> list[str]:
    return [name for name, count in counts.items() for _ in range(count)]


# Attack 1: the site's total minus the groups that are told.


@pytest.mark.parametrize("unknown", [2, 4])
def test_total_minus_groups(unknown: int) -> None:
    """With few images of unknown sex, others are left out of the rows of sex beside these, until they are ten."""
    sex = split({"female": 20, "male": 15, "unknown": unknown}) + split({"female": 10, "unknown": 12})
    labels = np.array([0] * (35 + unknown) + [1] * 22)
    groups, secret = make_groups({"sex": sex}, len(labels)), secrets(len(labels))
    target = (labels == 0) & (np.array(sex) == "unknown")
    assert attack(list_naive(labels, groups).values(), secret, target) == pytest.approx(secret[target].sum())
    plan = plan_of(labels, groups)
    rows = list_told(plan, labels, groups)
    assert attack(rows.values(), secret, target) is None
    assert ("site", "north", 0) in rows
    assert not plan.set_aside.any()
    told = {group: row.sum() for (attribute, group, label), row in rows.items() if (attribute, label) == ("sex", 0)}
    assert set(told) == {"female", "male"}
    assert sum(told.values()) == 35 + unknown - 10


def test_small_group_does_not_follow_from_the_total() -> None:
    """A group of 9 has rows of 5 images, which are large enough; but the group is not."""
    sex = split({"female": 20, "male": 30, "unknown": 8}) + split({"female": 25, "male": 30, "unknown": 1})
    labels, secret = np.array([0] * 58 + [1] * 56), secrets(114)
    groups = make_groups({"sex": sex}, 114)
    target = (labels == 0) & (np.array(sex) == "unknown")
    assert attack(list_naive(labels, groups).values(), secret, target) == pytest.approx(secret[target].sum())
    plan = plan_of(labels, groups)
    assert attack(list_told(plan, labels, groups).values(), secret, target) is None
    assert plan.attributes["sex"].whole == {"unknown"}


# Attack 2: two attributes whose groups nearly agree.


def test_two_overlapping_attributes() -> None:
    labels, secret = np.zeros(40, np.int64), secrets(40)
    groups = make_groups({"ward": split({"a": 20, "b": 20}), "scanner": split({"x": 19, "y": 21})}, 40)
    target = np.arange(40) == 19  # in ward a, but not with scanner x
    assert attack(list_naive(labels, groups).values(), secret, target) == pytest.approx(secret[19])
    rows = list_told(plan_of(labels, groups), labels, groups)
    assert attack(rows.values(), secret, target) is None
    assert find_small_set([*rows.values()], 2) is None
    assert ("site", "north", 0) in rows
    assert {attribute for attribute, _, _ in rows} == {"site", "scanner"}  # the larger row came first


# Attack 3: the same rows before and after a patient withdrew.


@pytest.mark.parametrize("intersections", ["none", "pairs"])
def test_two_rounds_with_a_patient_withdrawn(intersections: str) -> None:
    labels = np.array([0] * 60 + [1] * 40)
    attributes = {"sex": ["f", "m"] * 50, "age": ["a", "a", "b", "b"] * 25}
    groups, secret, items = make_groups(attributes, 100, intersections), secrets(100), [str(i) for i in range(100)]
    gone = np.isin(np.arange(100), [7, 8])
    left = np.flatnonzero(~gone)
    later = make_groups({name: [values[i] for i in left] for name, values in attributes.items()}, 98, intersections)

    def widen(rows: Iterable[np.ndarray]) -> list[np.ndarray]:
        wide = []
        for row in rows:
            wide.append(np.zeros(100, np.bool_))
            wide[-1][left] = row
        return wide

    naive = [*list_naive(labels, groups).values(), *widen(list_naive(labels[left], later).values())]
    assert attack(naive, secret, gone) == pytest.approx(secret[gone].sum())
    first = plan_of(labels, groups, items=items)
    second = plan_of(labels[left], later, items=[items[i] for i in left], earlier=first.told)
    rows = [*list_told(first, labels, groups).values(), *widen(list_told(second, labels[left], later).values())]
    for images in ([7], [8], [7, 8]):
        assert attack(rows, secret, np.isin(np.arange(100), images)) is None
    assert find_small_set(rows, 2) is None
    # Both classes can still be told, for a few images that are set aside.
    assert ("site", "north", 0) in list_told(second, labels[left], later)
    assert 3 <= second.set_aside.sum() <= 6
    # A patient who comes back is not counted again, and the same data gives the same plan.
    third = plan_of(labels, groups, items=items, earlier=second.told)
    assert third.set_aside[[7, 8]].all()
    assert third.told == second.told


# Attack 4: the rows of rare classes.


def test_rows_of_rare_classes() -> None:
    """The site's rare classes minus those of the women leave two men."""
    labels = np.array([0] * 40 + [1] * 4 + [2] * 3)
    sex = split({"f": 20, "m": 20}) + split({"f": 3, "m": 1}) + split({"f": 2, "m": 1})
    groups, secret = make_groups({"sex": sex}, 47), secrets(47)
    target = (labels > 0) & (np.array(sex) == "m")
    naive = list_naive(labels, groups)
    assert ("site", "north", None) in naive
    assert ("sex", "f", None) in naive
    assert attack(naive.values(), secret, target) == pytest.approx(secret[target].sum())
    rows = list_told(plan_of(labels, groups), labels, groups)
    assert attack(rows.values(), secret, target) is None
    assert rows["site", "north", None].sum() == 7
    assert ("sex", "f", None) not in rows


# Attack 5: a crossing with its margins.


def test_crossing_with_its_margins() -> None:
    cells = {("f", "a"): 18, ("f", "b"): 18, ("m", "a"): 18, ("m", "b"): 4}
    sex, age = (split({f"{cell[place]}|{cell}": n for cell, n in cells.items()}) for place in (0, 1))
    attributes = {"sex": [text[0] for text in sex], "age": [text[0] for text in age]}
    groups = make_groups(attributes, 58, "pairs")
    labels, secret = np.zeros(58, np.int64), secrets(58)
    target = np.array([group == "m, b" for group in groups["sex x age"]])
    assert target.sum() == 4
    assert attack(list_naive(labels, groups).values(), secret, target) == pytest.approx(secret[target].sum())
    rows = list_told(plan_of(labels, groups), labels, groups)
    assert attack(rows.values(), secret, target) is None
    assert {key for key in rows if key[0] in ("site", "sex", "age")} == {
        ("site", "north", 0), ("sex", "f", 0), ("sex", "m", 0), ("age", "a", 0), ("age", "b", 0)
    }  # fmt: skip
    assert not any(attribute == "sex x age" for attribute, _, _ in rows)


# All of them together.


def draw(seed: int, num_images: int, num_classes: int) -> tuple[np.ndarray, dict[str, list[str]]]:
    rng = make_rng(seed, "data")
    labels = rng.choice(num_classes, num_images, p=rng.dirichlet(np.full(num_classes, 2.0)))
    attributes = {
        name: rng.choice([*values, "unknown"], num_images, p=[*(0.9 * rng.dirichlet(np.full(len(values), 3.0))), 0.1])
        for name, values in {"sex": ["f", "m"], "age": ["a", "b", "c"]}.items()
    }
    return labels, {name: [str(value) for value in values] for name, values in attributes.items()}


@pytest.mark.parametrize("seed", range(12))
def test_nothing_about_few_images_ever_follows(seed: int) -> None:
    """Three rounds, two withdrawals; every set of up to k_row - 1 images and every small group is tried."""
    labels, attributes = draw(seed, 26, 2)
    rng = make_rng(seed, "withdrawals")
    release = Disclosure(k=7, k_row=3)
    present, told, protected = np.arange(26), None, None
    rows: list[np.ndarray] = []
    naive: list[np.ndarray] = []
    for _ in range(3):
        groups_now = make_groups({n: [v[i] for i in present] for n, v in attributes.items()}, len(present), "pairs")
        plan = plan_of(labels[present], groups_now, release, items=[f"i{i}" for i in present], earlier=told)
        told = plan.told
        protected = told.protected if protected is None else protected
        for found, collected in (
            (list_told(plan, labels[present], groups_now), rows),
            (list_naive(labels[present], groups_now, release), naive),
        ):
            for row in found.values():
                collected.append(np.isin(np.arange(26), present[row]))
                assert row.sum() >= release.k_row
        present = np.sort(rng.choice(present, len(present) - 1, replace=False))
    assert find_small_set(naive, 2) is not None
    assert find_small_set(rows, 2) is None
    # A group that has become small later was told before; one that was small from the start never follows.
    full = np.array([row.astype(float) for row in rows])
    for group in protected:
        outside = np.array([f"i{i}" not in group for i in range(26)])
        assert np.linalg.matrix_rank(full[:, outside]) == np.linalg.matrix_rank(full)


@pytest.mark.parametrize("seed", range(4))
def test_plan_is_the_same_again_and_its_tables_breach_nothing(seed: int) -> None:
    labels, attributes = draw(seed, 200, 4)
    groups = make_groups(attributes, 200, "pairs")
    plan = plan_of(labels, groups)
    again = plan_of(labels, groups, earlier=plan.told)
    assert again.told == plan.told
    for attribute, of_attribute in plan.attributes.items():
        np.testing.assert_array_equal(of_attribute.counted, again.attributes[attribute].counted)
        np.testing.assert_array_equal(of_attribute.rare, again.attributes[attribute].rare)
        assert of_attribute.whole == again.attributes[attribute].whole
    logits = {FEDERATED: torch.randn(200, 4, generator=torch.Generator().manual_seed(seed))}
    tables = disclose_tables(logits, torch.from_numpy(labels), groups, plan, LIMITS)
    assert find_breach(tables, LIMITS, "north") is None
    assert tables.site.num_images == plan.num_told


@pytest.mark.parametrize("seed", range(2))
def test_no_row_that_is_held_back_follows_in_a_test_part_of_real_size(seed: int) -> None:
    """Three attributes and their crossings, with some values that are rare; every held back row is a target."""
    rng = make_rng(seed, "real")
    number = 300
    labels = rng.choice(7, number, p=[0.66, 0.11, 0.11, 0.06, 0.03, 0.02, 0.01])
    shares = {
        "sex": {"f": 0.47, "m": 0.51, "unknown": 0.02},
        "age": {"0-29": 0.1, "30-44": 0.25, "45-59": 0.3, "60+": 0.34, "unknown": 0.01},
        "place": {"back": 0.3, "leg": 0.3, "face": 0.2, "hand": 0.1, "ear": 0.06, "foot": 0.04},
    }
    attributes = {
        name: [str(value) for value in rng.choice(list(of), number, p=list(of.values()))] for name, of in shares.items()
    }
    groups = make_groups(attributes, number, "pairs")
    everything = list_naive(labels, groups, Disclosure())
    naive, told = list_naive(labels, groups), list_told(plan_of(labels, groups), labels, groups)
    secret = secrets(number)
    for rows, safe in ((naive, False), (told, True)):
        hidden = {key: row for key, row in everything.items() if key not in rows and row.sum() < LIMITS.k_row}
        targets_NT, rows_NR = np.stack([*hidden.values()], 1).astype(float), np.stack([*rows.values()], 1).astype(float)
        weights_RT = np.linalg.lstsq(rows_NR, targets_NT, rcond=None)[0]
        solved_T = np.isclose(rows_NR @ weights_RT, targets_NT, atol=1e-8).all(axis=0)
        assert solved_T.any() != safe
        np.testing.assert_allclose(  # what the attacker finds is the truth
            (secret @ rows_NR @ weights_RT)[solved_T], (secret @ targets_NT)[solved_T], atol=1e-6
        )
    assert {key for key in told if key[0] == "site"} == {key for key in naive if key[0] == "site"}
    singles = [key for key in naive if " x " not in key[0] and key[2] is not None]
    assert len(set(singles) & set(told)) > 0.8 * len(singles)


def test_rows_of_other_attributes_of_an_earlier_run_count_too() -> None:
    """A server that asks for one attribute after the other learns no more than one that asks for both."""
    labels = np.zeros(40, np.int64)
    ward = make_groups({"ward": split({"a": 20, "b": 20})}, 40)
    scanner = make_groups({"scanner": split({"x": 19, "y": 21})}, 40)
    first = plan_of(labels, ward)
    assert first.attributes["ward"].counted.all()
    second = plan_of(labels, scanner, earlier=first.told)
    assert not second.attributes["scanner"].counted.any()
    assert second.attributes["scanner"].whole == {"x", "y"}


def test_thresholds_of_one_need_no_work() -> None:
    labels, attributes = draw(1, 30, 3)
    groups = make_groups(attributes, 30, "pairs")
    plan = plan_of(labels, groups, Disclosure())
    assert all(of_attribute.counted.all() for of_attribute in plan.attributes.values())
    assert plan.told.rows == frozenset()
    assert plan.is_complete
    assert plan.num_told == 30


def test_no_image_gives_an_empty_plan() -> None:
    plan = plan_of(np.zeros(0, np.int64), {"site": ()}, LIMITS)
    assert plan.num_told == 0
    assert plan.attributes["site"].whole == frozenset()
