"""What a site holds back: afterwards every hidden row keeps its values, as trying all populations shows."""

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmed.config import FairnessConfig
from fedmed.fairness.disclosure.rows import Disclosure, DisclosurePlan, plan_disclosure
from fedmed.fairness.figures.groups import assign_groups
from fedmed.fairness.reconstruction.exchange import view_class
from fedmed.fairness.reconstruction.exposure import find_exposed, list_questions
from fedmed.fairness.reconstruction.held import Held, hold_rows
from fedmed.fairness.reconstruction.hold import find_held
from fedmed.fairness.reconstruction.statement import Row, ToldPart, state_plan
from fedmed.fairness.reconstruction.statement_file import decode_held, decode_told, encode_held, encode_told
from fedmed.seeding import make_rng

Groups = Mapping[str, tuple[str, ...]]


def state(  # noqa: PLR0917
    labels: np.ndarray,
    groups: Groups,
    answers: Mapping[str, np.ndarray],
    limits: Disclosure,
    num_classes: int,
    patients: Sequence[str] | None = None,
) -> tuple[DisclosurePlan, ToldPart]:
    items = [f"i{number:04d}" for number in range(len(labels))]
    plan = plan_disclosure(torch.from_numpy(labels), groups, items, limits, patients=patients)
    return plan, state_plan(plan, labels, groups, answers, patients, num_classes, limits.k_row)


def hold(  # noqa: PLR0917
    labels: np.ndarray,
    groups: Groups,
    answers: Mapping[str, np.ndarray],
    limits: Disclosure,
    num_classes: int,
    patients: Sequence[str] | None = None,
) -> tuple[ToldPart, Held]:
    """Return what a site tells, and what it holds back."""
    plan, now = state(labels, groups, answers, limits, num_classes, patients)
    owners = np.arange(len(labels)) if patients is None else np.unique(patients, return_inverse=True)[1]
    counted = {name: of.counted for name, of in plan.attributes.items()}
    columns = np.column_stack([*answers.values()])

    def view(told: ToldPart, label: int, is_folded: bool):
        return view_class(told, label, labels, groups, columns, owners, counted, is_folded=is_folded)

    held = find_held(now, [], limits.k_row, view)
    after = state_plan(
        hold_rows(plan, labels.tolist(), groups, held), labels, groups, answers, patients, num_classes, limits.k_row
    )
    told = now.without(held.rows)
    assert after.images == told.images
    assert after.rare == told.rare
    return told.fold(held.folded).unpair(held.unpaired), held


def list_exposed(told: ToldPart, k_row: int) -> list[object]:
    return [
        one for question in list_questions(told) for one in find_exposed(told, question, k_row, time.monotonic() + 100)
    ]


def list_tables(told: ToldPart, label: int, most: int) -> Iterator[np.ndarray]:
    """Yield all tables (2,2) of images of a class that agree with what was told, by trying all."""
    site = told.images[Row("site", "north", label)]
    for cells in itertools.product(range(most + 1), repeat=3):
        rest = site - sum(cells)
        if 0 <= rest <= most:
            table = np.array([*cells, rest]).reshape(2, 2)
            if _agrees(told, table, label, told.images) and all(
                _has_answers(told, table, label, model) for model in told.models
            ):
                yield table


def _agrees(told: ToldPart, table: np.ndarray, label: int, numbers: Mapping[Row, int]) -> bool:
    for axis, attribute in enumerate(("sex", "age")):
        for place, group in enumerate(told.groups[attribute]):
            expected = numbers.get(Row(attribute, group, label))
            if expected is not None and table.take(place, axis=axis).sum() != expected:
                return False
    for (i, sex), (j, age) in itertools.product(enumerate(told.groups["sex"]), enumerate(told.groups["age"])):
        expected = numbers.get(Row("sex x age", f"{sex}, {age}", label))
        if expected is not None and table[i, j] != expected:
            return False
    return True


def _has_answers(told: ToldPart, table: np.ndarray, label: int, model: str) -> bool:
    """Return whether right answers can be dealt out to the cells."""
    right = {row: values[row.label] for row, values in told.models[model].rows.items()}
    total = right[Row("site", "north", label)]
    return any(
        sum(cells) == total and _agrees(told, np.array(cells).reshape(2, 2), label, right)
        for cells in itertools.product(*(range(n + 1) for n in table.ravel()))
    )


@st.composite
def populations(draw: st.DrawFn) -> tuple[np.ndarray, dict[str, list[str]], dict[str, np.ndarray]]:
    number = draw(st.integers(4, 9))
    labels = np.zeros(number, np.int64)
    attributes = {
        name: draw(st.lists(st.sampled_from(values), min_size=number, max_size=number))
        for name, values in (("sex", ["f", "m"]), ("age", ["old", "young"]))
    }
    answers = {
        model: np.array(draw(st.lists(st.integers(0, 1), min_size=number, max_size=number)), np.int64)
        for model in ("federated", "local")
    }
    return labels, attributes, answers


@settings(max_examples=25, deadline=None)
@given(populations())
def test_every_hidden_cell_has_each_value_in_some_population(
    population: tuple[np.ndarray, dict[str, list[str]], dict[str, np.ndarray]],
) -> None:
    labels, attributes, answers = population
    groups = assign_groups("north", attributes, FairnessConfig(), len(labels))
    told, _ = hold(labels, groups, answers, Disclosure(k=4, k_row=2), 2)
    if Row("site", "north", 0) not in told.images or any(len(told.groups[name]) < 2 for name in ("sex", "age")):
        return
    tables = list(list_tables(told, 0, len(labels)))
    assert tables
    for axis, attribute in enumerate(("sex", "age")):
        for place, group in enumerate(told.groups[attribute]):
            if Row(attribute, group, 0) not in told.images:
                _assert_kept({int(table.take(place, axis=axis).sum()) for table in tables})
    for (i, sex), (j, age) in itertools.product(enumerate(told.groups["sex"]), enumerate(told.groups["age"])):
        if Row("sex x age", f"{sex}, {age}", 0) not in told.images:
            _assert_kept({int(table[i, j]) for table in tables})


def _assert_kept(values: set[int]) -> None:
    assert {0, 1} <= values or min(values) >= 2


def draw_site(seed: int, number: int) -> tuple[np.ndarray, Groups, dict[str, np.ndarray]]:
    rng = make_rng(seed, "site")
    labels = rng.choice(3, number, p=[0.6, 0.3, 0.1])
    attributes = {
        "sex": rng.choice(["f", "m", "unknown"], number, p=[0.47, 0.5, 0.03]).tolist(),
        "age": rng.choice(["0-29", "30-59", "60+"], number, p=[0.1, 0.5, 0.4]).tolist(),
    }
    base = np.where(rng.random(number) < 0.75, labels, rng.integers(0, 3, number))
    answers = {"federated": base, "local": np.where(rng.random(number) < 0.8, base, rng.integers(0, 3, number))}
    return labels, assign_groups("north", attributes, FairnessConfig(), number), answers


@pytest.mark.parametrize("seed", [1, 2])
def test_site_of_real_size_gives_nothing_away_and_still_tells_its_groups(seed: int) -> None:
    labels, groups, answers = draw_site(seed, 300)
    limits = Disclosure(k=10, k_row=5)
    _, now = state(labels, groups, answers, limits, 3)
    assert list_exposed(now, 5)  # the linear rule alone leaves some
    told, _ = hold(labels, groups, answers, limits, 3)
    assert list_exposed(told, 5) == []
    singles = [row for row in now.images if row.attribute in ("sex", "age")]
    assert sum(row in told.images for row in singles) >= 0.5 * len(singles)
    assert {row for row in told.images if row.attribute == "site"} == {
        row for row in now.images if row.attribute == "site"
    }


def test_patients_are_the_unit() -> None:
    """Twelve images of four patients are a row too small, the same of twelve patients are not."""
    labels = np.zeros(60, np.int64)
    groups = assign_groups("north", {"sex": ["f"] * 12 + ["m"] * 48}, FairnessConfig(), 60)
    answers = {"federated": labels}
    few = [f"p{i // 3}" if i < 12 else f"q{i}" for i in range(60)]
    _, told = state(labels, groups, answers, Disclosure(10, 5), 2, few)
    assert Row("sex", "f", 0) not in told.images
    _, told = state(labels, groups, answers, Disclosure(10, 5), 2, [f"q{i}" for i in range(60)])
    assert Row("sex", "f", 0) in told.images


def test_what_is_held_comes_back_from_json() -> None:
    labels, groups, answers = draw_site(3, 120)
    told, held = hold(labels, groups, answers, Disclosure(10, 5), 3)
    assert decode_told(encode_told(told)) == told
    assert decode_held(encode_held(held)) == held
