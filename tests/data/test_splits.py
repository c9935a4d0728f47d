import numpy as np
import pytest

from fedmed.config import SplitConfig
from fedmed.data.partition import Item
from fedmed.data.splits import TEST, TRAIN, VALIDATION, allocate_groups, split_sites
from fedmed.errors import DataError

SPLIT = SplitConfig(validation=0.15, test=0.2)


def one_site(labels, groups=None, site="s"):
    groups = range(len(labels)) if groups is None else groups
    items = [
        Item(f"{site}/{number:05d}", int(label), f"p{group}")
        for number, (label, group) in enumerate(zip(labels, groups, strict=True))
    ]
    return {site: items}


def table(by_site, parts, num_classes, site="s"):
    """Count (3, K)."""
    counts = np.zeros((3, num_classes), int)
    for item, part in zip(by_site[site], parts[site], strict=True):
        counts[part, item.label] += 1
    return counts


def test_shares_are_exact_where_they_can_be():
    by_site = one_site([0] * 100 + [1] * 40 + [2] * 20)
    counts = table(by_site, split_sites(by_site, 3, SPLIT, seed=0), 3)
    assert counts.tolist() == [[65, 26, 13], [15, 6, 3], [20, 8, 4]]


@pytest.mark.parametrize(
    ("num", "expected"),
    [
        (1, (1, 0, 0)),
        (2, (1, 0, 1)),
        (3, (1, 1, 1)),
        (4, (2, 1, 1)),
        (5, (3, 1, 1)),
    ],
)
def test_tiny_sites(num, expected):
    by_site = one_site([0] * num)
    parts = split_sites(by_site, 1, SPLIT, seed=0)["s"]
    assert tuple(parts.count(part) for part in (TRAIN, VALIDATION, TEST)) == expected


def test_three_groups_fill_all_parts_even_if_each_has_its_own_class():
    by_site = one_site([0, 1, 2])
    assert sorted(split_sites(by_site, 3, SPLIT, seed=0)["s"]) == [TRAIN, VALIDATION, TEST]


def test_every_class_with_three_groups_is_in_every_part():
    labels = [0] * 300 + [1] * 3 + [2] * 4 + [3] * 5
    by_site = one_site(labels)
    assert table(by_site, split_sites(by_site, 4, SPLIT, seed=3), 4).min() == 1


def test_groups_stay_together_and_shares_hold():
    rng = np.random.default_rng(0)
    groups = np.sort(rng.integers(0, 300, 900))
    group_label = rng.choice(4, size=300, p=[0.7, 0.2, 0.07, 0.03])
    by_site = one_site(group_label[groups], groups)
    parts = split_sites(by_site, 4, SPLIT, seed=0)
    found = {}
    for item, part in zip(by_site["s"], parts["s"], strict=True):
        assert found.setdefault(item.group, part) == part
    counts = table(by_site, parts, 4)
    assert counts.sum(axis=1) / 900 == pytest.approx([0.65, 0.15, 0.2], abs=0.01)
    assert counts / counts.sum(axis=0) == pytest.approx(np.tile([[0.65], [0.15], [0.2]], 4), abs=0.08)


def test_groups_of_several_classes():
    """Patients with two images each of classes 0 and 1, and some of class 2: all three classes are shared out alike."""
    labels = [0, 0, 1, 1] * 40 + [2] * 40
    groups = [number // 4 for number in range(160)] + list(range(100, 140))
    by_site = one_site(labels, groups)
    counts = table(by_site, split_sites(by_site, 3, SPLIT, seed=0), 3)
    assert counts.tolist() == [[52, 52, 26], [12, 12, 6], [16, 16, 8]]


def test_one_huge_group_is_trained_on():
    """The group of 50 is more than any share of the small parts; putting it elsewhere would cost most."""
    by_site = one_site([0] * 60, [0] * 50 + list(range(1, 11)))
    parts = split_sites(by_site, 1, SPLIT, seed=0)["s"]
    assert set(parts[:50]) == {TRAIN}
    assert {VALIDATION, TEST} <= set(parts[50:])


def test_independent_of_row_order_and_other_sites_but_not_of_seed():
    items = one_site(np.arange(60) % 3, np.arange(60) // 2)["s"]

    def parts_by_key(by_site, seed):
        parts = split_sites(by_site, 3, SPLIT, seed)["s"]
        return {item.key: part for item, part in zip(by_site["s"], parts, strict=True)}

    expected = parts_by_key({"s": items}, 0)
    shuffled = [items[i] for i in np.random.default_rng(1).permutation(60)]
    other = [Item(f"t/{n}", n % 3, f"q{n}") for n in range(30)]
    assert parts_by_key({"s": shuffled, "a": other}, 0) == expected
    assert parts_by_key({"s": items}, 1) != expected


def test_group_at_several_sites_is_in_one_part():
    by_site = {
        site: [Item(f"{site}/{n}", n % 2, f"shared{n}" if n < 10 else f"{site}{n}") for n in range(40)]
        for site in "abc"
    }
    parts = split_sites(by_site, 2, SPLIT, seed=0)
    for n in range(10):
        assert len({parts[site][n] for site in "abc"}) == 1
    for site in "abc":
        assert set(parts[site]) == {TRAIN, VALIDATION, TEST}


def test_site_without_training_image():
    shared = [Item(f"a/{n}", 0, f"p{n}") for n in range(20)]
    parts = split_sites({"a": shared}, 1, SPLIT, seed=0)["a"]
    tested = shared[parts.index(TEST)]
    by_site = {"a": shared, "b": [Item("b/0", 0, tested.group)]}
    with pytest.raises(DataError, match=r"site 'b' has 1 images and none of them for training.*data.group_column"):
        split_sites(by_site, 1, SPLIT, seed=0)


def test_fixed_groups_are_counted():
    counts = {f"p{n:02d}": np.array([1.0]) for n in range(20)}
    fixed = {f"p{n:02d}": TEST for n in range(4)}  # the whole share of test
    parts = allocate_groups(counts, SPLIT, np.random.default_rng(0), fixed | {"elsewhere": TRAIN})
    assert sum(part == TEST for part in parts.values()) == 4
    assert "elsewhere" not in parts
