"""Real research images, where they are at hand."""

import csv
from collections import defaultdict

import pytest

from fedmed.config import ClassFolderData, ImageTableData, NpzData, PartitionConfig
from fedmed.data import load_site, make_eval_transform, make_train_transform, prepare_data

POOLED = PartitionConfig(kind="pooled")
DIRICHLET = PartitionConfig(kind="dirichlet", alpha=1.0)


def check_site(config, sites, folder, name, grey=False):
    """Load a site, look at some images, and return the part of every group."""
    site = load_site(config, sites, 0, folder, name, cache_mib=4)
    for part in (site.train, site.validation, site.test):
        images = part.images(range(min(4, len(part))))
        assert all(image.shape[0] == 3 and image.float().std() > 1 for image in images)
        assert not grey or all((image[0].int() - image[2].int()).abs().max() < 3 for image in images)
        for make in (make_train_transform, make_eval_transform):
            assert make("adsr", 32)(images).isfinite().all()


def check_groups(folder, prepared):
    parts = defaultdict(set)
    for site in prepared.sites:
        with (folder / f"{site}.csv").open() as stream:
            for row in csv.DictReader(stream):
                parts[row["group"]].add(row["part"])
    assert max(map(len, parts.values())) == 1
    return parts


def count(prepared, part):
    return sum(sum(counts[part]) for counts in prepared.composition.values())


def test_ham10000(real_data, tmp_path):
    config = ImageTableData(
        source="image_table",
        root=str(real_data / "ham10000"),
        site_column="site",
        group_column="lesion_id",
        attribute_columns=["sex", "age_group"],
    )
    prepared = prepare_data(config, None, 0, tmp_path)
    assert prepared.classes == ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
    assert prepared.num_bad_rows == 0
    totals = {site: sum(map(sum, counts.values())) for site, counts in prepared.composition.items()}
    assert totals == {"rosendahl": 1694, "vidir_modern": 2522, "vidir_molemax": 2965, "vienna_dias": 329}
    for site, counts in prepared.composition.items():
        shares = [sum(counts[part]) / totals[site] for part in ("train", "validation", "test")]
        assert shares == pytest.approx([0.65, 0.15, 0.2], abs=0.01)
        for k, images in enumerate(zip(*counts.values(), strict=True)):
            if sum(images) >= 20:
                assert [n / sum(images) for n in images] == pytest.approx([0.65, 0.15, 0.2], abs=0.04), (site, k)
    assert len(check_groups(tmp_path, prepared)) == 5602
    check_site(config, None, tmp_path, "vienna_dias")


def test_ham10000_in_a_long_tail(real_data, tmp_path):
    """At most 2,000 images: 1076 * 100 ** (-r / 6) for ranks 0 to 6, together 1,999; with 1,077 they would be 2,001."""
    config = ImageTableData(
        source="image_table",
        root=str(real_data / "ham10000"),
        site_column="site",
        group_column="lesion_id",
        long_tail=100,
        max_train_images=2000,
    )
    prepared = prepare_data(config, None, 0, tmp_path)
    sizes = [sum(column) for column in zip(*(parts["train"] for parts in prepared.composition.values()), strict=True)]
    assert dict(zip(prepared.classes, sizes, strict=True)) == {
        "nv": 1076, "mel": 499, "bkl": 232, "bcc": 108, "akiec": 50, "vasc": 23, "df": 11
    }  # fmt: skip
    check_groups(tmp_path, prepared)


def test_covid_ct(real_data, tmp_path):
    config = ImageTableData(
        source="image_table",
        root=str(real_data / "covid_ct"),
        site_column="site",
        group_column="patient_or_run",
        classes=["NonCOVID", "COVID"],
    )
    prepared = prepare_data(config, None, 0, tmp_path)
    assert prepared.sites == ("literature_ucsd", "sao_paulo_hospitals")
    assert count(prepared, "test") / 1007 == pytest.approx(0.2, abs=0.03)
    check_groups(tmp_path, prepared)
    for site in prepared.sites:
        check_site(config, None, tmp_path, site, grey=True)


def test_brain_tumour_mri(real_data, tmp_path):
    settings = {"root": str(real_data / "brain_tumour_mri"), "partition": DIRICHLET}
    config = ImageTableData(source="image_table", group_column="run", **settings)
    prepared = prepare_data(config, 2, 0, tmp_path)
    assert sum(map(len, check_groups(tmp_path, prepared).values())) > 50
    check_site(config, 2, tmp_path, "site_01", grey=True)


def test_brain_tumour_folders(real_data, tmp_path):
    root = real_data / "brain_tumour_mri" / "images"
    config = ClassFolderData(source="class_folders", root=str(root), partition=POOLED)
    prepared = prepare_data(config, None, 0, tmp_path)
    assert prepared.classes == ("glioma", "meningioma", "notumor", "pituitary")
    assert (count(prepared, "train"), count(prepared, "test")) == pytest.approx((877, 270), abs=4)
    check_site(config, None, tmp_path, "pooled", grey=True)


def test_pneumonia_mnist(real_data, tmp_path):
    path = real_data / "pneumonia_mnist" / "data.npz"
    config = NpzData(source="npz", file=str(path), partition=DIRICHLET)
    prepared = prepare_data(config, 5, 0, tmp_path)
    assert prepared.classes == ("normal", "pneumonia")
    assert sum(count(prepared, part) for part in ("train", "validation", "test")) == 4392
    check_site(config, 5, tmp_path, "site_03", grey=True)
