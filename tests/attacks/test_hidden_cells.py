"""An honest but curious server cannot work hidden rows out of what a site tells in ordinary rounds.

It links the groups of two attributes by right and wrong answers, round after round. The attack's own solver gets
intervals of the cells of sex x age; where both ends are one number, the cell is solved.
"""

import time
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pytest
import torch

from fedmed.config import FairnessConfig
from fedmed.fairness.disclosure.rows import Disclosure, plan_disclosure
from fedmed.fairness.figures.groups import assign_groups
from fedmed.fairness.reconstruction.exposure import find_exposed, list_questions
from fedmed.fairness.reconstruction.hold import find_held
from fedmed.fairness.reconstruction.statement import Row, ToldPart, combine_told, state_plan
from fedmed.seeding import make_rng

LIMITS = Disclosure(k=10, k_row=5)
CLASSES = 3
Cell = tuple[str, str, int]


def make_site(seed: int, number: int = 240) -> tuple[np.ndarray, Mapping[str, tuple[str, ...]]]:
    rng = make_rng(seed, "patients")
    labels = rng.choice(CLASSES, number, p=[0.6, 0.3, 0.1])
    attributes = {
        "sex": rng.choice(["female", "male", "unknown"], number, p=[0.46, 0.5, 0.04]).tolist(),
        "age": rng.choice(["0-29", "30-59", "60+"], number, p=[0.1, 0.5, 0.4]).tolist(),
    }
    return labels, assign_groups("north", attributes, FairnessConfig(), number)


def answer(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return what a model in training takes the images for: hand-made logits of which the true class has a share."""
    rng = make_rng(seed, "model")
    logits = rng.normal(size=(len(labels), CLASSES))
    logits[np.arange(len(labels)), labels] += 1.5
    return logits.argmax(axis=1)


def tell(
    labels: np.ndarray,
    groups: Mapping[str, tuple[str, ...]],
    rounds: Sequence[Mapping[str, np.ndarray]],
    *,
    naive: bool,
) -> ToldPart:
    """Return all that the site has told after some rounds, with the linear rule alone or with all of them."""
    items = [str(place) for place in range(len(labels))]
    plan = plan_disclosure(torch.from_numpy(labels), groups, items, LIMITS)
    told: list[ToldPart] = []
    for number, answers in enumerate(rounds):
        now = state_plan(plan, labels, groups, answers, None, CLASSES, LIMITS.k_row, f"{number}/")
        if not naive:
            held = find_held(now, told, LIMITS.k_row)
            now = now.without(held.rows).fold(held.folded).unpair(held.unpaired)
        told = combine_told([*told, now])
    assert len(told) == 1
    return told[0]


def solve(told: ToldPart) -> dict[Cell, tuple[int, int]]:
    """Return the attack's interval of each hidden cell: margins of right and wrong answers, and sums over groups."""
    found = {}
    for label in range(told.num_classes):
        site = Row("site", "north", label)
        if site not in told.images:
            continue
        a, b = ([g for g in told.groups[name] if Row(name, g, label) in told.images] for name in ("sex", "age"))
        box = {}
        for sex, age in product(a, b):
            if Row("sex x age", f"{sex}, {age}", label) in told.images:
                continue
            low, high = 0, 10**9
            for model in told.models.values():
                rows = [model.rows.get(row) for row in (site, Row("sex", sex, label), Row("age", age, label))]
                if None in rows:
                    continue
                n, na, nb = (np.array([row[label], sum(row) - row[label]]) for row in rows if row is not None)
                low = max(low, int(np.maximum(0, na + nb - n).sum()))
                high = min(high, int(np.minimum(na, nb).sum()))
            box[sex, age] = [low, high]
        _add_up(told, label, a, b, box)
        found |= {(sex, age, label): (low, high) for (sex, age), (low, high) in box.items()}
    return found


def _add_up(
    told: ToldPart, label: int, a: Sequence[str], b: Sequence[str], box: dict[tuple[str, str], list[int]]
) -> None:
    """Narrow intervals by the sum of a group over the other attribute, where all of that one's groups are told."""
    total = told.images[Row("site", "north", label)]
    for _, (axis, own, others, name, other) in product(range(20), ((0, a, b, "sex", "age"), (1, b, a, "age", "sex"))):
        if sum(told.images[Row(other, group, label)] for group in others) != total:
            continue
        for group in own:
            cells = [(group, g) if axis == 0 else (g, group) for g in others]
            known = [told.images.get(Row("sex x age", ", ".join(cell), label), 0) for cell in cells]
            rest = told.images[Row(name, group, label)] - sum(known)
            for cell in (one for one in cells if one in box):
                beside = [box[one] for one in cells if one in box and one != cell]
                box[cell][0] = max(box[cell][0], rest - sum(high for _, high in beside))
                box[cell][1] = min(box[cell][1], rest - sum(low for low, _ in beside))


def count_solved(told: ToldPart, labels: np.ndarray, groups: Mapping[str, tuple[str, ...]]) -> tuple[int, int]:
    """Return how many cells are solved, and how many within one, and truly so."""
    sex, age = (np.array(groups[name]) for name in ("sex", "age"))
    found = solve(told)
    true = {cell: int(((sex == cell[0]) & (age == cell[1]) & (labels == cell[2])).sum()) for cell in found}
    exact = sum(low == high == true[cell] for cell, (low, high) in found.items())
    return exact, sum(high - low <= 2 and low <= true[cell] <= high for cell, (low, high) in found.items())


@pytest.mark.parametrize("seed", [1, 2])
def test_hidden_cells_stay_hidden(seed: int) -> None:
    """Two rounds with two models each; with the linear rule alone the program finds rows that give too much away."""
    labels, groups = make_site(seed)
    rounds = [{"federated": answer(labels, seed + 10 * r), "local": answer(labels, seed + 10 * r + 5)} for r in (1, 2)]
    naive, told = (tell(labels, groups, rounds, naive=naive) for naive in (True, False))
    exposed = [
        [
            one
            for question in list_questions(part)
            for one in find_exposed(part, question, LIMITS.k_row, time.monotonic() + 100)
        ]
        for part in (naive, told)
    ]
    assert exposed[0]
    assert exposed[1] == []
    assert count_solved(told, labels, groups) == (0, 0)
