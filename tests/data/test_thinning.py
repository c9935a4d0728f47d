"""Which training images are left out: sizes of long tails by hand, whole lesions, and the same for the same seed."""

import json
from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from fedmed.config import PhantomData
from fedmed.data import describe_left_out, list_classes, prepare_data
from fedmed.data.partition import Item
from fedmed.data.split_files import SplitRow
from fedmed.data.thinning import long_tail_sizes, thin_training
from fedmed.errors import DataError
from tests.data.conftest import simple_rows
from tests.data.test_prepare import PHANTOM, read

CLASSES = ("a", "b", "c")


def make_rows(sizes, group_size=1, sites=("north", "south"), part="train"):
    """Images of each class in groups of a size, the groups by turns at the sites."""
    rows = {site: [] for site in sites}
    for label, size in enumerate(sizes):
        for number in range(size):
            group = number // group_size
            item = Item(f"{part}-{label}-{number}", label, f"{part}-{label}-{group}")
            rows[sites[group % len(sites)]].append(SplitRow(part, item))
    return rows


def tail(ratio, most=None):
    return PhantomData(long_tail=ratio, max_train_images=most)


def count(rows, part="train"):
    found = Counter(row.item.label for of_site in rows.values() for row in of_site if row.part == part)
    return [found[label] for label in range(len(CLASSES))]


def test_sizes_by_hand():
    """1:100 over three classes: each is a tenth of the one before. 1:16 over five: half of it."""
    assert long_tail_sizes([1000, 1000, 1000], 100) == [1000, 100, 10]
    assert long_tail_sizes([160, 160, 160, 160, 160], 16) == [160, 80, 40, 20, 10]
    assert long_tail_sizes([50, 40], 1) == [50, 40]
    assert long_tail_sizes([50], 100) == [50]


def test_there_are_never_more_than_there_are_nor_none():
    """Of the second class, a tenth would be 100, but there are 30; of the last, a hundredth of 40 is less than half."""
    assert long_tail_sizes([1000, 30, 20], 100) == [1000, 30, 10]
    assert long_tail_sizes([40, 40, 40], 100) == [40, 4, 1]


def test_a_smaller_tail_keeps_its_ratio():
    """At most 222 images: 200 + 20 + 2 = 222. One more in the first class would be 201 + 20 + 2 = 223."""
    assert long_tail_sizes([1000, 1000, 1000], 100, 222) == [200, 20, 2]
    assert long_tail_sizes([1000, 1000, 1000], 100, 5000) == [1000, 100, 10]
    assert sum(long_tail_sizes([3270, 543, 535, 250, 159, 70, 55], 100, 2000)) in range(1995, 2001)
    assert long_tail_sizes([9, 9, 9], 100, 1) == [1, 1, 1]


def test_sizes_are_of_all_sites_together():
    rows = make_rows([200, 200, 200])
    kept, left_out = thin_training(rows, CLASSES, tail(100), 0)
    assert count(kept) == [200, 20, 2]
    assert left_out == [0, 180, 198]
    assert list(kept) == ["north", "south"]


def test_ranks_follow_frequency_and_then_the_name():
    """c is the most frequent; a and b have as many, so b, with the later name, is the rarest."""
    kept, _ = thin_training(make_rows([100, 100, 200]), CLASSES, tail(4), 0)
    assert count(kept) == [100, 50, 200]
    renamed, _ = thin_training(make_rows([100, 100, 200]), ("z", "b", "c"), tail(4), 0)
    assert count(renamed) == [50, 100, 200]


def test_a_class_without_training_images_has_no_rank():
    kept, _ = thin_training(make_rows([100, 0, 100]), CLASSES, tail(10), 0)
    assert count(kept) == [100, 0, 10]


def test_whole_lesions_stay_or_go():
    """Lesions have 3 images: of the second class 20 are wanted, and 18 are the most that whole ones make."""
    rows = make_rows([198, 198, 198], group_size=3)
    kept, _ = thin_training(rows, CLASSES, tail(100), 0)
    assert count(kept) == [198, 18, 3]  # of the last class 2 are wanted; the smallest lesion stays all the same
    groups = Counter(row.item.group for of_site in kept.values() for row in of_site)
    assert set(groups.values()) == {3}


def test_a_lesion_of_several_classes_counts_for_all_of_them():
    """Each of 40 lesions has an image of the first and of the last class, of which 4 are wanted."""
    rows = {
        "north": [
            SplitRow("train", Item(f"{number}-{label}", label, str(number))) for number in range(40) for label in (0, 2)
        ]
    }
    kept, _ = thin_training(rows, CLASSES, tail(10), 0)
    assert count(kept) == [4, 0, 4]


def test_validation_and_test_are_as_they_were():
    rows = make_rows([50, 50, 50])
    for part in ("validation", "test"):
        for site, more in make_rows([9, 9, 9], part=part).items():
            rows[site] += more
    kept, _ = thin_training(rows, CLASSES, tail(100), 0)
    assert count(kept, "validation") == count(kept, "test") == [9, 9, 9]
    assert all([row for row in rows[site] if row in set(kept[site])] == kept[site] for site in rows)


def test_the_seed_alone_decides():
    rows = make_rows([200, 200, 200])
    one, same, other = (thin_training(rows, CLASSES, tail(100), seed)[0] for seed in (0, 0, 1))
    assert one == same
    assert one != other
    backwards = {site: list(reversed(of_site)) for site, of_site in reversed(rows.items())}
    again = thin_training(backwards, CLASSES, tail(100), 0)[0]
    assert {site: set(of_site) for site, of_site in again.items()} == {site: set(own) for site, own in one.items()}


def test_both_settings_hold():
    """At most 111 of 1:100: 100 + 10 + 1."""
    kept, left_out = thin_training(make_rows([500, 500, 500]), CLASSES, tail(100, 111), 0)
    assert count(kept) == [100, 10, 1]
    assert left_out == [400, 490, 499]


def test_a_site_left_without_training_images_is_explained():
    """One image of the second class stays, so the south or the west, which have no other, are left without any."""
    rows = make_rows([200, 0], sites=("north",)) | make_rows([0, 100], sites=("south", "west"))
    with pytest.raises(DataError, match=r"long_tail is 200, which leaves the site '(south|west)' without training"):
        thin_training(rows, ("a", "b"), tail(200), 0)


def test_prepared_data_say_what_is_left_out(tmp_path):
    full = prepare_data(PHANTOM, 3, 0, tmp_path / "full")
    config = PHANTOM.model_copy(update={"long_tail": 20.0})
    prepared = prepare_data(config, 3, 0, tmp_path / "tail")
    assert prepare_data(config, 3, 0, tmp_path / "tail") == prepared  # read back
    assert full.left_out == (0, 0, 0)
    before, after = (
        [sum(parts["train"][k] for parts in some.composition.values()) for k in range(3)] for some in (full, prepared)
    )
    assert prepared.left_out == tuple(had - has for had, has in zip(before, after, strict=True))
    told = describe_left_out(prepared, config)
    assert told.startswith(
        f"{sum(before) - sum(after)} of {sum(before)} training images are left out (data.long_tail): "
    )
    assert told.endswith(f"{prepared.classes[2]} {prepared.left_out[2]}.")
    for site in full.sites:
        tables = [read(tmp_path / name / f"{site}.csv") for name in ("full", "tail")]
        rest = [[row for row in table if row["part"] != "train"] for table in tables]
        assert rest[0] == rest[1]


def test_splits_made_before_there_was_the_setting_can_be_read(tmp_path):
    prepare_data(PHANTOM, 3, 0, tmp_path)
    index = json.loads((tmp_path / "splits.json").read_text())
    assert "data.long_tail" not in index["settings"]
    del index["left_out"]
    (tmp_path / "splits.json").write_text(json.dumps(index))
    assert prepare_data(PHANTOM, 3, 0, tmp_path).left_out == ()


@pytest.mark.parametrize("ratio", [0.5, 0, -1])
def test_ratios_below_one_are_refused(ratio):
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        PhantomData(long_tail=ratio)


def test_classes_are_listed_without_looking_at_images(make_table):
    config = make_table(simple_rows(8))
    for file in Path(config.root).glob("*.png"):
        file.unlink()
    assert list_classes(config) == ("a", "b")
    assert list_classes(config.model_copy(update={"classes": ["b", "a"]})) == ("b", "a")
    assert len(list_classes(PHANTOM)) == 3
