import csv
import json
from collections import defaultdict
from itertools import pairwise

import numpy as np
import pytest

from fedmed.config import ClassFolderData, NpzData, PartitionConfig, PhantomData, SplitConfig
from fedmed.data import prepare_data
from fedmed.data.phantom.cohort import generate_site
from fedmed.errors import ConfigError, DataError, RunFolderError
from tests.data.conftest import edit_table, simple_rows, write_image

COLUMNS = {"site_column": "site", "group_column": "patient", "attribute_columns": ["sex"]}
PHANTOM = PhantomData(image_size=16, images_per_site=40, num_classes=3)


def read(path):
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def change_partition(config, kind, **settings):
    return config.model_copy(update={"partition": PartitionConfig(kind=kind, **settings)})


def test_files(make_table, tmp_path):
    rows = simple_rows(120)
    prepared = prepare_data(make_table(rows, **COLUMNS), None, 0, tmp_path / "splits")
    assert prepared.classes == ("a", "b")
    assert prepared.sites == ("hospital0", "hospital1")
    assert prepared.num_bad_rows == 0
    by_file = {row["file"]: row for row in rows}
    for site in prepared.sites:
        found = read(tmp_path / f"splits/{site}.csv")
        assert list(found[0]) == ["part", "item", "label", "group", "attribute:sex"]
        for row in found:
            source = by_file.pop(row["item"])
            assert (row["label"], row["group"], site) == (source["label"], source["patient"], source["site"])
            assert row["attribute:sex"] == (source["sex"] or "unknown")
        for part, counts in prepared.composition[site].items():
            labels = [row["label"] for row in found if row["part"] == part]
            assert counts == [labels.count("a"), labels.count("b")]
    assert by_file == {}
    index = json.loads((tmp_path / "splits/splits.json").read_text())
    assert index["settings"]["seed"] == 0
    assert index["settings"]["data.split"] == {"validation": 0.15, "test": 0.2}
    assert index["composition"] == prepared.composition
    assert "root" not in json.dumps(index)
    assert sorted(path.name for path in (tmp_path / "splits").iterdir()) == [
        "hospital0.csv",
        "hospital1.csv",
        "splits.json",
    ]


def test_numbers_without_bands_are_cut_at_the_quartiles_of_all_training_images(make_table, tmp_path):
    rows = [row | {"age": str(20 + number % 60)} for number, row in enumerate(simple_rows(120))]
    rows[0]["age"] = "n/a"
    config = make_table(rows, **COLUMNS | {"attribute_columns": ["sex", "age"]})
    prepared = prepare_data(config, None, 0, tmp_path / "splits")
    found = [row for site in prepared.sites for row in read(tmp_path / f"splits/{site}.csv")]
    ages = {row["file"]: row["age"] for row in rows}
    trained = [float(ages[row["item"]]) for row in found if row["part"] == "train" and ages[row["item"]] != "n/a"]
    edges = np.quantile(trained, [0.25, 0.5, 0.75], method="inverted_cdf").tolist()
    assert prepared.quartiles == {"age": edges}
    for row in found:
        age = ages[row["item"]]
        place = None if age == "n/a" else sum(float(age) >= edge for edge in edges)
        names = [f"<{edges[0]:g}", *(f"{low:g}-{high - 1:g}" for low, high in pairwise(edges))]
        assert row["attribute:age"] == ("unknown" if place is None else [*names, f">={edges[2]:g}"][place])
        assert row["attribute:sex"] in {"f", "m", "unknown"}
    again = prepare_data(config, None, 0, tmp_path / "splits")
    assert again.quartiles == {"age": edges}
    at_hospital = prepare_data(config, None, 0, tmp_path / "hospital", cut_numbers=False)
    assert at_hospital.quartiles == {}
    assert {row["attribute:age"] for row in read(tmp_path / "hospital/hospital0.csv")} > {"21", "22", "25"}


def test_no_patient_is_in_two_parts(make_table, tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        {"file": f"{n}.png", "label": str(rng.integers(3)), "site": f"s{n % 4}", "patient": f"p{rng.integers(120)}"}
        for n in range(300)  # patients have several classes and visit several sites
    ]
    config = make_table(rows, site_column="site", group_column="patient")
    for partition in ("column", "pooled", "dirichlet"):
        folder = tmp_path / partition
        prepared = prepare_data(change_partition(config, partition), 3 if partition == "dirichlet" else None, 5, folder)
        parts, sites = defaultdict(set), defaultdict(set)
        for site in prepared.sites:
            for row in read(folder / f"{site}.csv"):
                parts[row["group"]].add(row["part"])
                sites[row["group"]].add(site)
        assert max(map(len, parts.values())) == 1
        assert max(map(len, sites.values())) == (4 if partition == "column" else 1)


def test_independent_of_row_order(make_table, tmp_path):
    rows = simple_rows(80)
    prepare_data(make_table(rows, **COLUMNS), None, 0, tmp_path / "one")
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(80)]
    prepare_data(make_table(shuffled, **COLUMNS), None, 0, tmp_path / "two")
    for site in ("hospital0", "hospital1"):
        assert (tmp_path / f"one/{site}.csv").read_bytes() == (tmp_path / f"two/{site}.csv").read_bytes()


def test_pooled_tests_on_the_same_images_as_the_sites_do(make_table, tmp_path):
    config = make_table(simple_rows(80), **COLUMNS)
    sites = prepare_data(config, None, 0, tmp_path / "sites").sites
    pooled = prepare_data(change_partition(config, "pooled"), None, 0, tmp_path / "pooled")
    assert pooled.sites == ("pooled",)
    apart = [row for site in sites for row in read(tmp_path / f"sites/{site}.csv")]
    together = read(tmp_path / "pooled/pooled.csv")
    assert sorted(map(str, apart)) == sorted(map(str, together))


def test_skipped_rows_are_counted(make_table, tmp_path):
    rows = simple_rows(100)
    rows[3]["label"] = "c"
    config = make_table(rows, classes=["b", "a"], **COLUMNS)
    prepared = prepare_data(config, None, 0, tmp_path / "splits")
    assert prepared.classes == ("b", "a")
    assert prepared.num_bad_rows == 1
    assert [row["item"] for row in read(tmp_path / "splits/skipped_rows.csv")] == ["003.png"]
    total = sum(sum(counts) for parts in prepared.composition.values() for counts in parts.values())
    assert total == 99
    with pytest.raises(DataError, match="1 of the 100 rows"):
        prepare_data(config.model_copy(update={"max_bad_share": 0.0}), None, 0, tmp_path / "strict")


class TestAgain:
    def test_the_word_for_ids_may_change(self, make_table, tmp_path):
        config = make_table(simple_rows(40), **COLUMNS)
        first = prepare_data(config, None, 0, tmp_path / "splits")
        again = prepare_data(config.model_copy(update={"unit": "lesion"}), None, 0, tmp_path / "splits")
        assert again.composition == first.composition

    def test_takes_what_is_there(self, make_table, tmp_path):
        config = make_table(simple_rows(40), **COLUMNS)
        first = prepare_data(config, None, 0, tmp_path / "splits")
        stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "splits").iterdir()}
        (tmp_path / "images/000.png").unlink()  # files are not checked again
        other = config.model_copy(update={"cache_mib": 1, "image_size": 32, "augmentation": "adsr"})
        assert prepare_data(other, None, 0, tmp_path / "splits") == first
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "splits").iterdir()} == stamps

    def test_data_may_have_moved(self, make_table, tmp_path):
        config = make_table(simple_rows(40), **COLUMNS)
        first = prepare_data(config, None, 0, tmp_path / "splits")
        (tmp_path / "images").rename(tmp_path / "moved")
        moved = config.model_copy(update={"root": str(tmp_path / "moved")})
        assert prepare_data(moved, None, 0, tmp_path / "splits") == first

    def test_unfinished_folder_is_written_anew(self, make_table, tmp_path):
        config = make_table(simple_rows(40), **COLUMNS)
        first = prepare_data(config, None, 0, tmp_path / "splits")
        (tmp_path / "splits/splits.json").unlink()
        (tmp_path / "splits/hospital0.csv").write_text("half a li")
        assert prepare_data(config, None, 0, tmp_path / "splits") == first
        assert len(read(tmp_path / "splits/hospital0.csv")) == 20

    @pytest.mark.parametrize(
        ("update", "seed", "message"),
        [
            ({}, 1, "made with seed = 0; now it is 1"),
            ({"split": SplitConfig(test=0.3)}, 0, r"data.split = .*\"test\": 0.2.*now it is .*\"test\": 0.3"),
            ({"group_column": None}, 0, 'data.group_column = "patient"; now it is null'),
            ({"partition": PartitionConfig(kind="pooled")}, 0, "data.partition"),
        ],
    )
    def test_other_settings(self, make_table, tmp_path, update, seed, message):
        config = make_table(simple_rows(40), **COLUMNS)
        prepare_data(config, None, 0, tmp_path / "splits")
        with pytest.raises(RunFolderError, match=message):
            prepare_data(config.model_copy(update=update), None, seed, tmp_path / "splits")

    def test_other_table(self, make_table, tmp_path):
        config = make_table(simple_rows(40), **COLUMNS)
        prepare_data(config, None, 0, tmp_path / "splits")
        edit_table(config, lambda text: text.replace(b"000.png,a", b"000.png,b"))
        with pytest.raises(RunFolderError, match=r"another version of the table .*labels.csv'.*start a new run"):
            prepare_data(config, None, 0, tmp_path / "splits")

    def test_damaged_index(self, make_table, tmp_path):
        config = make_table(simple_rows(40), **COLUMNS)
        prepare_data(config, None, 0, tmp_path / "splits")
        (tmp_path / "splits/splits.json").write_text("{")
        with pytest.raises(RunFolderError, match=r"splits.json' is damaged"):
            prepare_data(config, None, 0, tmp_path / "splits")


class TestOtherSources:
    def test_class_folders(self, tmp_path):
        for number in range(40):
            write_image(tmp_path / f"data/{'ab'[number % 2]}/{number}.png", number)
        (tmp_path / "data/a/notes.txt").write_text("not an image")
        config = ClassFolderData(source="class_folders", root=str(tmp_path / "data"), max_bad_share=0.03)
        with pytest.raises(ConfigError, match="names no sites"):
            prepare_data(config, None, 0, tmp_path / "splits")
        prepared = prepare_data(change_partition(config, "dirichlet", min_images=5), 3, 0, tmp_path / "splits")
        assert prepared.sites == ("site_01", "site_02", "site_03")
        assert prepared.num_bad_rows == 1
        assert "neither JPEG nor PNG" in (tmp_path / "splits/skipped_rows.csv").read_text()

    def test_folder_that_is_no_listed_class(self, tmp_path):
        for number in range(30):
            write_image(tmp_path / f"data/{'abc'[number % 3]}/{number}.png", number)
        config = ClassFolderData(source="class_folders", root=str(tmp_path / "data"), classes=["a", "b"])
        with pytest.raises(DataError, match=r"10 of the 30 rows.*label 'c' is not one of the classes a, b"):
            prepare_data(change_partition(config, "pooled"), None, 0, tmp_path / "splits")

    def test_npz(self, tmp_path):
        labels = np.arange(100) % 2
        np.savez(tmp_path / "x.npz", images=np.zeros((100, 4, 4), np.uint8), labels=labels)
        config = NpzData(source="npz", file=str(tmp_path / "x.npz"), class_names_key=None)
        with pytest.raises(ConfigError, match=r"'dirichlet'.*'pooled'"):
            prepare_data(config, None, 0, tmp_path / "splits")
        prepared = prepare_data(change_partition(config, "pooled"), None, 0, tmp_path / "splits")
        counts = prepared.composition["pooled"]
        assert {part: sum(images) for part, images in counts.items()} == {"train": 65, "validation": 15, "test": 20}
        assert counts["test"] == [10, 10]


class TestPhantom:
    def test_natural_sites(self, tmp_path):
        prepared = prepare_data(PHANTOM, 2, 7, tmp_path)
        assert prepared.sites == ("site_01", "site_02")
        for index, site in enumerate(prepared.sites):
            drawn = generate_site(PHANTOM, index, 7)
            rows = sorted(read(tmp_path / f"{site}.csv"), key=lambda row: row["item"])
            assert [row["item"] for row in rows] == [f"{site}/{number:05d}" for number in range(40)]
            assert [prepared.classes.index(row["label"]) for row in rows] == drawn.labels.tolist()
            assert [row["group"] for row in rows] == list(drawn.patient)
            for name, values in drawn.attributes.items():
                assert [row[f"attribute:{name}"] for row in rows] == list(values)

    def test_size_of_the_pictures_does_not_matter(self):
        """The split is made on the smallest pictures, which is right only if all else is equal."""
        small, large = generate_site(PHANTOM, 1, 0), generate_site(PHANTOM.model_copy(update={"image_size": 40}), 1, 0)
        assert small.labels.tolist() == large.labels.tolist()
        assert small.patient == large.patient
        assert small.attributes == large.attributes

    def test_pooled_is_the_sites_together(self, tmp_path):
        sites = prepare_data(PHANTOM, 3, 0, tmp_path / "sites")
        pooled = prepare_data(change_partition(PHANTOM, "pooled"), 3, 0, tmp_path / "pooled")
        for part in ("train", "validation", "test"):
            apart = np.sum([sites.composition[site][part] for site in sites.sites], axis=0)
            assert pooled.composition["pooled"][part] == apart.tolist()

    def test_dirichlet_is_explained(self, tmp_path):
        with pytest.raises(ConfigError, match=r"Allowed: 'column'.*'pooled'.*data.imbalance"):
            prepare_data(change_partition(PHANTOM, "dirichlet"), 3, 0, tmp_path)

    def test_number_of_sites_is_needed(self, tmp_path):
        with pytest.raises(ConfigError, match="set the key 'sites'"):
            prepare_data(PHANTOM, None, 0, tmp_path)


def test_fewer_training_images_keep_the_mix_of_classes_and_all_others(tmp_path):
    """A share of 60 of the training images; of every class at every site that share, rounded down, and at least one."""
    full = prepare_data(PHANTOM, 3, 0, tmp_path / "full").composition
    total = sum(sum(parts["train"]) for parts in full.values())
    few = prepare_data(PHANTOM.model_copy(update={"max_train_images": 60}), 3, 0, tmp_path / "few").composition
    again = prepare_data(PHANTOM.model_copy(update={"max_train_images": 60}), 3, 0, tmp_path / "again").composition
    assert few == again
    for site, parts in few.items():
        assert parts["train"] == [min(n, max(1, int(60 / total * n))) for n in full[site]["train"]]
        assert parts["validation"] == full[site]["validation"]
        assert parts["test"] == full[site]["test"]
        of_full = {row["item"] for row in read(tmp_path / f"full/{site}.csv") if row["part"] == "train"}
        assert {row["item"] for row in read(tmp_path / f"few/{site}.csv") if row["part"] == "train"} <= of_full
