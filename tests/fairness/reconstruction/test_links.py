"""Which rows of different attributes a reader may take for the same images."""

import numpy as np
import pytest
import torch

from fedmed.fairness.disclosure.rows import plan_disclosure
from fedmed.fairness.disclosure.tables import Disclosure, disclose_tables
from fedmed.fairness.reconstruction.links import Mark, find_links
from fedmed.fairness.reconstruction.read_tables import read_told
from fedmed.fairness.reconstruction.statement import Answers, Row, ToldPart, combine_told
from fedmed.metrics.packing import pack_site_tables, unpack_site_tables
from fedmed.metrics.site_tables import FEDERATED

OLD, WOMEN = Row("age", "old", 0), Row("sex", "f", 0)


@pytest.mark.parametrize(
    ("first", "second", "linked"),
    [
        (Mark((8, 5), (1.23,), is_telling=True), Mark((8, 5), (1.23,), is_telling=True), True),
        (Mark((8, 5), (1.23,), is_telling=True), Mark((8, 5), (1.24,), is_telling=True), True),
        (Mark((8, 5), (1.23,), is_telling=True), Mark((8, 5), (1.25,), is_telling=True), False),
        (Mark((8, 5), (123.0,), is_telling=True), Mark((8, 5), (124.0,), is_telling=True), True),
        (Mark((8, 5), (0.0,), is_telling=True), Mark((8, 5), (0.01,), is_telling=True), False),
        (Mark((8, 5), (1.23,), is_telling=True), Mark((8, 4), (1.23,), is_telling=True), False),
        (Mark((8, 5), (1.23,)), Mark((8, 5), (1.23,)), False),
        (Mark((8, 5), (), (8.0, 1.51)), Mark((8, 5), (), (8.0, 1.52)), True),
        (Mark((8, 5), (), (8.0, 1.51)), Mark((8, 5), (), (9.0, 1.51)), False),
        (Mark((8, 5), (), (8.0, 1.51)), Mark((8, 5), (), (8.0, 1.59)), False),
    ],
)
def test_equal_and_nearly_equal_sums_link_rows(first: Mark, second: Mark, linked: bool) -> None:
    """One in the last of three digits is rounding; two are not. Counts alone may agree by chance."""
    assert find_links({WOMEN: first, OLD: second}) == (frozenset({(OLD, WOMEN)}) if linked else frozenset())


def test_rows_of_one_attribute_the_site_and_crossings_are_no_links() -> None:
    mark = Mark((8,), (1.23,), is_telling=True)
    rows = [Row("sex", "f", 0), Row("sex", "m", 0), Row("site", "north", 0), Row("sex x age", "f, old", 0)]
    assert find_links(dict.fromkeys([*rows, Row("age", "old", 1)], mark)) == frozenset()


@pytest.mark.parametrize("group_histograms", [True, False])
def test_tables_of_the_same_women_and_old_patients_link_them(group_histograms: bool) -> None:
    """Ten patients of two images each are all women and all old; how their answers vary gives it away, or areas do."""
    rng = np.random.default_rng(1)
    labels = torch.tensor([0] * 60 + [1] * 20)
    patients = [f"p{place // 2}" if place < 20 else f"q{place}" for place in range(80)]
    groups = {
        "site": ["north"] * 80,
        "sex": ["f" if place < 20 or place % 2 else "m" for place in range(80)],
        "age": ["old" if place < 20 or place % 2 else "young" for place in range(80)],
        "skin": ["dark" if place % 2 else "light" for place in range(80)],
    }
    limits = Disclosure(k=10, k_row=5, k_bin=5, group_histograms=group_histograms)
    plan = plan_disclosure(labels, groups, [str(place) for place in range(80)], limits, patients=patients)
    logits = torch.from_numpy(rng.normal(size=(80, 2)))
    tables = disclose_tables({FEDERATED: logits}, labels, groups, plan, limits, patients)
    told = read_told(unpack_site_tables(pack_site_tables(tables)))
    linked = {(first.attribute, second.attribute) for first, second in told.same}
    assert linked == {("age", "sex")}


def test_a_later_model_that_tells_rows_apart_takes_the_link_away() -> None:
    groups = {"site": ("north",), "sex": ("f", "m"), "age": ("old", "young")}
    images = {Row("site", "north", 0): 60, WOMEN: 30, OLD: 30}

    def tell(name: str, women: int) -> ToldPart:
        rows = {Row("site", "north", 0): (40, 0, 20), WOMEN: (women, 0, 30 - women), OLD: (20, 0, 10)}
        return ToldPart(groups, 2, images, models={name: Answers(rows)}, same=frozenset({(OLD, WOMEN)}))

    assert combine_told([tell("first", 20), tell("second", 20)])[0].same
    assert not combine_told([tell("first", 20), tell("second", 21)])[0].same
