"""What integer programs find in told rows; the numbers are worked out by hand."""

import time
from collections.abc import Mapping

import pytest

from fedmed.fairness.reconstruction.bounds import find_bounded
from fedmed.fairness.reconstruction.exposure import Exposed, count_hidden, find_exposed, list_questions
from fedmed.fairness.reconstruction.statement import Answers, Rare, Row, ToldPart
from fedmed.fairness.reconstruction.structure import split_tables

GROUPS = {"site": ("north",), "sex": ("f", "m"), "age": ("old", "young")}


def tell(
    numbers: Mapping[str, tuple[int, int]],
    groups: Mapping[str, tuple[str, ...]] = GROUPS,
    rare: Mapping[Rare, int] | None = None,
    same: frozenset[tuple[Row, Row]] = frozenset(),
    patients: Mapping[str, int] | None = None,
) -> ToldPart:
    """Return rows of class 0, given as images and right answers by group."""
    place = {group: attribute for attribute, own in groups.items() for group in own}
    place |= {f"{a}, {b}": "sex x age" for a in groups["sex"] for b in groups["age"]}
    rows = {group: Row(place[group], group, 0) for group in numbers}
    answers = {rows[group]: (right, 0, n - right) for group, (n, right) in numbers.items()}
    images = {rows[group]: n for group, (n, _) in numbers.items()}
    counted = {rows[group]: n for group, n in (patients or {}).items()}
    return ToldPart(groups, 2, images, counted, rare or {}, {"federated": Answers(answers)}, same=same)


def look(told: ToldPart, k_row: int = 5) -> dict[tuple[str, ...], Exposed]:
    found = [
        one for question in list_questions(told) for one in find_exposed(told, question, k_row, time.monotonic() + 60)
    ]
    return {one.groups: one for one in found}


def test_cells_of_two_attributes_that_are_free() -> None:
    """Of 60, 30 are women and 30 old; each cell may hold 0 to 30, with right answers half of each."""
    told = tell({"north": (60, 30), "f": (30, 15), "m": (30, 15), "old": (30, 15), "young": (30, 15)})
    assert look(told) == {}
    assert count_hidden(told) == 2 * (1 + 2 + 2 + 4) - 5


def test_sums_of_a_total() -> None:
    """Of 20, 14 are women and 15 old: at least 9 are both, which is enough; of men and young ones at most 5."""
    told = tell({"north": (20, 10), "f": (14, 7), "m": (6, 3), "old": (15, 9), "young": (5, 1)})
    found = look(told)
    assert ("f", "old") not in found
    # Right answers: 7 of f and 9 of old among 10, so 6 at least; wrong: 7 and 6 among 10, so 3. Of m: 3 - 1 = 2 and 0.
    assert found["m", "old"].missing == (0, 1)
    assert (found["m", "old"].low, found["m", "old"].high) == (2, 6)
    assert find_bounded(told, 0, ("sex", "age"), 5) is not None


def test_wrong_answers_of_a_group_without_them_in_another() -> None:
    """60+ has 2 wrong answers and the women none, so at least 2 of the old are men."""
    told = tell({"north": (60, 58), "f": (30, 30), "m": (30, 28), "old": (30, 28), "young": (30, 30)})
    found = look(told)
    assert found["m", "old"].missing == (0, 1)
    assert found["m", "old"].low == 2
    without = ToldPart(told.groups, 2, told.images)
    assert look(without) == {}


def test_zero_that_follows_from_the_others() -> None:
    groups = {**GROUPS, "sex": ("f", "m", "unknown")}
    told = tell({"north": (60, 30), "f": (30, 15), "m": (30, 15)}, groups)
    assert look(told)["unknown",].missing == (1, 2, 3, 4)
    assert look(tell({"north": (60, 30), "f": (30, 15), "m": (24, 12)}, groups)) == {}  # 6 for certain
    assert look(tell({"north": (60, 30), "f": (30, 15), "m": (26, 13)}, groups))["unknown",].low == 4


def test_told_cell_of_a_crossing_gives_its_neighbours() -> None:
    """The 2 x 2 crossing with its totals has one free number; a single told cell settles the others."""
    numbers = {"north": (60, 30), "f": (30, 15), "m": (30, 15), "old": (30, 15), "young": (30, 15)}
    groups = {**GROUPS, "sex x age": ("f, old", "f, young", "m, old", "m, young")}
    found = look(tell({**numbers, "f, old": (28, 14)}, groups))
    assert {cell: (one.low, one.high) for cell, one in found.items()} == {("f", "young"): (2, 2), ("m", "old"): (2, 2)}


def test_rare_classes() -> None:
    """Two hidden classes of 6 images together may have any share; beside a told total of one they may not."""
    groups = {"site": ("north",), "sex": ("f", "m"), "age": ("old",)}
    rare = {Rare("site", "north"): 6}
    assert look(ToldPart(groups, 3, {Row("site", "north", 0): 40}, rare=rare)) == {}
    found = look(ToldPart(groups, 2, {Row("site", "north", 0): 40}, rare={Rare("site", "north"): 4}))
    assert found["north",].missing == (0, 1, 2, 3)
    assert found["north",].high == 4


def test_rows_that_are_the_same_images() -> None:
    """The 8 women are the 8 old: no woman is young."""
    numbers = {"north": (60, 30), "f": (8, 4), "m": (52, 26), "old": (8, 4), "young": (52, 26)}
    same = frozenset({(Row("sex", "f", 0), Row("age", "old", 0))})
    assert look(tell(numbers)) == {}
    found = look(tell(numbers, same=same))
    assert {("f", "young"), ("m", "old")} == set(found)
    assert found["f", "young"].high == 0


def test_patients_count_beside_images() -> None:
    """Of unknown sex are 12 images, but of 3 patients."""
    groups = {**GROUPS, "sex": ("f", "m", "unknown")}
    numbers = {"north": (60, 30), "f": (30, 15), "m": (18, 9)}
    assert look(tell(numbers, groups)) == {}
    found = look(tell(numbers, groups, patients={"north": 40, "f": 25, "m": 12}))
    assert found["unknown",].missing == (0, 1, 2, 4)


@pytest.mark.parametrize(
    ("asked", "links", "expected"),
    [
        (["a"], [], [("a",)]),
        (["a", "b"], [("a", "b")], [("a", "b")]),
        (["a", "b"], [("a", "b"), ("b", "c"), ("d", "e")], [("a", "b"), ("b", "c")]),
        (["a", "b"], [("a", "b"), ("b", "c"), ("a", "c")], [("a", "b", "c")]),
    ],
)
def test_tables_hang_together_like_a_tree(
    asked: list[str], links: list[tuple[str, ...]], expected: list[tuple[str, ...]]
) -> None:
    assert split_tables(asked, links) == expected


def test_time_that_is_over_is_no_proof() -> None:
    told = tell({"north": (60, 30), "f": (30, 15), "m": (30, 15), "old": (30, 15), "young": (30, 15)})
    (one,) = find_exposed(told, (("sex", "age"), 0), 5, time.monotonic() - 1)[:1]
    assert not one.is_proven
