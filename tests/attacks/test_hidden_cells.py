"""An honest but curious server cannot work hidden rows out of what a site tells in ordinary rounds.

It links the groups of two attributes by right and wrong answers, round after round. The attack's own solver
(:mod:`tests.attacks.support.cells`) gets intervals of the cells of sex x age; where both ends are one number, the cell
is solved. The integer programs of :mod:`fedmed.fairness.reconstruction` find more, and are asked as well.
"""

import csv
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedmed.config import FairnessConfig
from fedmed.fairness.disclosure.rows import Disclosure, plan_disclosure
from fedmed.fairness.figures.groups import assign_groups
from fedmed.fairness.reconstruction.exposure import find_exposed, list_questions
from fedmed.fairness.reconstruction.hold import find_held
from fedmed.fairness.reconstruction.read_tables import read_told
from fedmed.fairness.reconstruction.statement import ToldPart, combine_told, state_plan
from fedmed.protocol.messages import read_model, read_tables
from fedmed.seeding import make_rng
from tests.attacks.support.cells import count_solved
from tests.attacks.support.hospital import IMAGES, AttackedHospital, make_network, needs_images

LIMITS = Disclosure(k=10, k_row=5)
CLASSES = 3


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
    assert count_solved(told, ("sex", "age"), labels, groups, LIMITS.k_row)[1:] == (0, 0)


PLAN = {
    "rounds": 3,
    "loss": {"balanced_softmax": 1.0},
    "model": {"name": "resnet18"},
    "training": {"optimizer": {"lr": 0.02}, "batch_size": 32, "epochs_per_round": 2},
    "choice": "tables",
}


@pytest.mark.ci
@needs_images
@pytest.mark.parametrize(("name", "most"), [("vienna_dias", 329), ("rosendahl", 700)])
def test_hidden_cells_of_real_sites_stay_hidden(tmp_path: Path, name: str, most: int) -> None:
    """Three ordinary rounds and the test of a site of HAM10000 that lets tables of every round leave."""
    with (IMAGES / "labels.csv").open() as table:
        own = [row["image_id"] for row in csv.DictReader(table) if row["site"] == name]
    chosen = set(random.Random(1).sample(own, most))
    policy = {"validation_tables": True}
    hospital = AttackedHospital(tmp_path, IMAGES, name, lambda row: row["image_id"] in chosen, policy)
    model = make_network(PLAN).pack()
    answers: dict[str, list[ToldPart]] = {"validation": [], "test": []}
    for number in (1, 2, 3):
        model = read_model(hospital.ask("train", model, PLAN, round=number))
        for part in ("validation", "test") if number == 3 else ("validation",):
            tables = read_tables(hospital.ask("evaluate", model, PLAN, round=number, part=part))
            answers[part].append(read_told(tables, f"{number}/"))
    site, hidden = hospital.site(), 0
    for part, of_part in answers.items():
        (told,) = combine_told(of_part)
        groups, images = site.count_part(part, FairnessConfig()).groups, getattr(site.data, part)
        # The reader also knows the names of groups of which nothing is told, as from other sites.
        told = replace(told, groups={name: tuple(sorted(set(of_images))) for name, of_images in groups.items()})
        number, *solved = count_solved(told, ("sex", "age_group"), images.labels.numpy(), groups, LIMITS.k_row)
        assert solved == [0, 0], part
        hidden += number
        deadline = time.monotonic() + 120
        questions = list_questions(told)
        assert [one for asked in questions for one in find_exposed(told, asked, LIMITS.k_row, deadline)] == [], part
    assert hidden, "there was something to find"
