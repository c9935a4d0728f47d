import numpy as np
import pytest
import torch
from PIL import Image

from fedmed.config import NpzData, PartitionConfig, PhantomData
from fedmed.data import count_classes, load_site, prepare_data
from fedmed.data.phantom.cohort import generate_site
from fedmed.data.sources.readers import MIB, FileReader
from fedmed.errors import DataError, RunFolderError
from tests.data.conftest import simple_rows, write_image

COLUMNS = {"site_column": "site", "group_column": "patient", "attribute_columns": ["sex"]}


@pytest.fixture
def table_site(make_table, tmp_path):
    """Return settings, rows and the folder of splits."""
    rows = simple_rows(40)
    config = make_table(rows, **COLUMNS)
    prepare_data(config, None, 0, tmp_path / "splits")
    return config, {str(row["file"]): row for row in rows}, tmp_path / "splits"


def test_parts(table_site):
    config, rows, folder = table_site
    site = load_site(config, None, 0, folder, "hospital1", cache_mib=8)
    assert (site.name, site.classes) == ("hospital1", ("a", "b"))
    seen = []
    for part in (site.train, site.validation, site.test):
        assert part.labels.dtype == torch.int64
        assert len(part) == len(part.labels) == len(part.attributes["sex"]) > 0
        images = part.images(range(len(part)))
        for item, label, sex, image in zip(part.items, part.labels, part.attributes["sex"], images, strict=True):
            row = rows[item]
            assert (row["label"], row["sex"] or "unknown", row["site"]) == ("ab"[label], sex, "hospital1")
            assert image.dtype == torch.uint8
            expected = np.asarray(Image.open(f"{config.root}/{item}"))
            assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)
        seen += part.items
    assert len(seen) == len(set(seen)) == 20


def test_count_classes(table_site):
    config, _, folder = table_site
    prepared = prepare_data(config, None, 0, folder)
    site = load_site(config, None, 0, folder, "hospital0", cache_mib=0)
    assert count_classes(site.train, 2) == prepared.composition["hospital0"]["train"]
    assert count_classes(site.train, 4) == [*prepared.composition["hospital0"]["train"], 0, 0]


def test_only_the_sites_own_files_are_read(table_site, tmp_path):
    config, rows, folder = table_site
    (folder / "hospital0.csv").unlink()
    for file, row in rows.items():
        if row["site"] == "hospital0":
            (tmp_path / "images" / file).unlink()
    (tmp_path / "images/labels.csv").unlink()
    site = load_site(config, None, 0, folder, "hospital1", cache_mib=0)
    assert len(site.train.images(range(len(site.train)))) == len(site.train)


def test_file_that_vanished(table_site, tmp_path):
    config, _, folder = table_site
    site = load_site(config, None, 0, folder, "hospital1", cache_mib=0)
    (tmp_path / "images" / site.test.items[0]).unlink()
    with pytest.raises(DataError, match=rf"{site.test.items[0]}' cannot be read: the file does not exist"):
        site.test.images([0])


def test_unknown_site(table_site):
    config, _, folder = table_site
    with pytest.raises(RunFolderError, match=r"no site 'hospital2'.*Did you mean 'hospital1'\?.*hospital0, hospital1"):
        load_site(config, None, 0, folder, "hospital2", cache_mib=0)


def test_folder_without_split_or_with_another(table_site, tmp_path):
    config, _, folder = table_site
    with pytest.raises(RunFolderError, match=r"no split in .*nowhere'"):
        load_site(config, None, 0, tmp_path / "nowhere", "hospital1", cache_mib=0)
    with pytest.raises(RunFolderError, match="seed = 0; now it is 3"):
        load_site(config, None, 3, folder, "hospital1", cache_mib=0)


def test_changed_split_file(table_site):
    config, _, folder = table_site
    path = folder / "hospital1.csv"
    path.write_text(path.read_text().replace("train", "test", 1))
    with pytest.raises(RunFolderError, match=r"hospital1.csv' is not the one that was written"):
        load_site(config, None, 0, folder, "hospital1", cache_mib=0)
    path.unlink()
    with pytest.raises(RunFolderError, match=r"hospital1.csv' cannot be read \(No such file"):
        load_site(config, None, 0, folder, "hospital1", cache_mib=0)


class TestCache:
    NUM_BYTES = 24 * 20 * 3

    @pytest.fixture
    def reader(self, tmp_path):
        for number in range(4):
            write_image(tmp_path / f"{number}.png", number, size=(24, 20))
        return lambda num_bytes: FileReader(tmp_path, num_bytes / MIB)

    def kept(self, reader):
        """Return which of the four images are the same object when they are read again."""
        first = [reader.read(f"{number}.png") for number in range(4)]
        second = [reader.read(f"{number}.png") for number in range(4)]
        assert all(map(torch.equal, first, second))
        return [one is two for one, two in zip(first, second, strict=True)]

    @pytest.mark.parametrize(("budget", "num_kept"), [(0, 0), (1, 1), (2.5, 2), (4, 4)])
    def test_first_come_stays(self, reader, budget, num_kept):
        reader = reader(round(budget * self.NUM_BYTES))
        assert self.kept(reader) == [number < num_kept for number in range(4)]
        assert reader.free_bytes == round(budget * self.NUM_BYTES) - num_kept * self.NUM_BYTES

    def test_small_image_fits_where_a_large_one_does_not(self, tmp_path):
        write_image(tmp_path / "large.png", size=(50, 50))
        write_image(tmp_path / "small.png", size=(5, 5))
        reader = FileReader(tmp_path, 100 / MIB)
        reader.read("large.png")
        reader.read("small.png")
        assert reader.free_bytes == 25

    def test_is_shared_by_the_parts_of_a_site(self, table_site):
        config, _, folder = table_site
        budget = 1.5 * self.NUM_BYTES / MIB
        site = load_site(config, None, 0, folder, "hospital1", cache_mib=budget)
        assert site.train.images([0])[0] is site.train.images([0])[0]
        assert site.test.images([0])[0] is not site.test.images([0])[0]


def test_npz(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (60, 5, 4), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(60) % 2, class_names=np.array(["no", "yes"]))
    partition = PartitionConfig(kind="dirichlet", alpha=10)
    config = NpzData(source="npz", file=str(tmp_path / "x.npz"), partition=partition)
    prepared = prepare_data(config, 2, 0, tmp_path / "splits")
    num = 0
    for name in prepared.sites:
        site = load_site(config, 2, 0, tmp_path / "splits", name, cache_mib=0)
        for part in (site.train, site.validation, site.test):
            for item, label, image in zip(part.items, part.labels, part.images(range(len(part))), strict=True):
                assert np.array_equal(image.numpy(), np.repeat(images[int(item)][None], 3, axis=0))
                assert label == int(item) % 2
                num += 1
    assert num == 60


@pytest.mark.parametrize("kind", ["column", "pooled"])
def test_phantom(tmp_path, kind):
    config = PhantomData(image_size=16, images_per_site=30, partition=PartitionConfig(kind=kind))
    prepared = prepare_data(config, 2, 3, tmp_path)
    drawn = {f"site_{index + 1:02d}": generate_site(config, index, 3) for index in range(2)}
    num = 0
    for name in prepared.sites:
        site = load_site(config, 2, 3, tmp_path, name, cache_mib=0)
        assert site.train.attributes.keys() == {"sex", "age_band"}
        for part in (site.train, site.validation, site.test):
            for item, label, image in zip(part.items, part.labels, part.images(range(len(part))), strict=True):
                origin, _, index = item.partition("/")
                assert kind == "pooled" or origin == name
                assert torch.equal(image, drawn[origin].images[int(index)])
                assert label == drawn[origin].labels[int(index)]
                num += 1
    assert num == 60
