import numpy as np
import pytest

from fedmed.config import PartitionConfig
from fedmed.data.partition import Item, clean_site_names, partition_items
from fedmed.errors import ConfigError, DataError

DIRICHLET = PartitionConfig(kind="dirichlet", alpha=0.5, min_images=10)


def make_items(num=600, num_classes=3, per_group=3, site=""):
    return [
        Item(f"{number:05d}", number // per_group % num_classes, f"p{number // per_group}", site)
        for number in range(num)
    ]


def test_column():
    items = [Item("1", 0, "g", "Zürich (old)"), Item("2", 1, "h", "Bern"), Item("3", 1, "i", "Bern")]
    by_site = partition_items(PartitionConfig(kind="column"), items, None, 0)
    assert {site: [item.key for item in found] for site, found in by_site.items()} == {
        "Bern": ["2", "3"],
        "Zurich_old": ["1"],
    }
    assert list(by_site) == ["Bern", "Zurich_old"]


def test_column_without_sites_explains_the_alternatives():
    with pytest.raises(ConfigError, match=r"names no sites. Set data.site_column.*'dirichlet'.*'sites'.*'pooled'"):
        partition_items(PartitionConfig(kind="column"), make_items(), None, 0)


def test_column_with_another_number_of_sites():
    with pytest.raises(ConfigError, match=r"'sites' is 3, but the data names 1: north. Set sites: null"):
        partition_items(PartitionConfig(kind="column"), make_items(site="north"), 3, 0)


def test_pooled():
    items = make_items()
    assert partition_items(PartitionConfig(kind="pooled"), items, None, 0) == {"pooled": items}


def test_dirichlet_keeps_groups_together_and_loses_nothing():
    items = make_items()
    by_site = partition_items(DIRICHLET, items, 5, seed=1)
    assert list(by_site) == [f"site_{number:02d}" for number in range(1, 6)]
    assert sorted(item.key for found in by_site.values() for item in found) == [item.key for item in items]
    groups = [{item.group for item in found} for found in by_site.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 200
    assert min(map(len, by_site.values())) >= 10


def test_dirichlet_depends_on_the_seed_only():
    items = make_items()
    first = partition_items(DIRICHLET, items, 5, seed=1)
    shuffled = [items[i] for i in np.random.default_rng(0).permutation(len(items))]
    again = partition_items(DIRICHLET, shuffled, 5, seed=1)
    assert {site: {i.key for i in found} for site, found in first.items()} == {
        site: {i.key for i in found} for site, found in again.items()
    }
    assert partition_items(DIRICHLET, items, 5, seed=2) != first


def test_dirichlet_shares_follow_alpha():
    """The variance of a site's share of a class is (1/S) (1 - 1/S) / (S alpha + 1)."""

    def spread(alpha):
        config = PartitionConfig(kind="dirichlet", alpha=alpha, min_images=1)
        shares = []
        for seed in range(20):
            for found in partition_items(config, make_items(1200), 4, seed).values():
                shares.append(np.bincount([item.label for item in found], minlength=3) / 400)
        return np.var(shares)

    assert spread(1.0) == pytest.approx(0.1875 / 5, rel=0.25)
    assert spread(100.0) == pytest.approx(0.1875 / 401, rel=0.25)


def test_dirichlet_needs_enough_images():
    with pytest.raises(ConfigError, match=r"61 sites with at least 10 images.*need 610 images; there are 600"):
        partition_items(DIRICHLET, make_items(), 61, 0)
    with pytest.raises(ConfigError, match="set the key 'sites'"):
        partition_items(DIRICHLET, make_items(), None, 0)


def test_dirichlet_gives_up_after_a_bounded_number_of_draws(monkeypatch):
    monkeypatch.setattr("fedmed.data.partition.MAX_DRAWS", 20)
    config = PartitionConfig(kind="dirichlet", alpha=0.01, min_images=10)
    with pytest.raises(DataError, match=r"20 draws with data.partition.alpha 0.01.*50 sites.*Take a larger alpha"):
        partition_items(config, make_items(), 50, 0)


def test_many_sites_sort_by_number():
    config = PartitionConfig(kind="dirichlet", alpha=100, min_images=1)
    names = list(partition_items(config, make_items(), 100, 0))
    assert names[0] == "site_001"
    assert names == sorted(names)


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [("vidir_modern", "vidir_modern"), ("St. Mary's / 2", "St._Mary_s_2"), ("../x", "x"), ("Hôpital", "Hopital")],
)
def test_site_names_become_file_names(name, cleaned):
    assert clean_site_names([name]) == {name: cleaned}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a b", "a/b"], "'a/b' becomes the file name 'a_b', which is the same as that of 'a b'"),
        (["North", "north"], "the same as that of 'North'"),
        (["病院"], "cannot be a file name"),
        (["x" * 61], "at most 60 characters"),
        (["skipped_rows"], "skipped_rows.csv"),
    ],
)
def test_unusable_site_names(names, message):
    with pytest.raises(DataError, match=message):
        clean_site_names(names)
