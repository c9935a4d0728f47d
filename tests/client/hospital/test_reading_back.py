"""What a hospital packs into its answers, read as an auditor reads it: no hidden row gives anything away.

The whole way: images that may be counted, rows that are held back, tables, the last look, bytes, and back.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.hospital.held_rows import hold_part, read_held
from client.hospital.told_rows import count_part
from fedmed.config import FairnessConfig
from fedmed.data import ImagePart
from fedmed.fairness.disclosure.tables import Disclosure, disclose_tables, find_breach
from fedmed.fairness.reconstruction.exposure import Exposed, find_exposed, list_questions
from fedmed.fairness.reconstruction.read_tables import read_told
from fedmed.fairness.reconstruction.statement import ToldPart, combine_told
from fedmed.fairness.reconstruction.structure import add_others
from fedmed.metrics.packing import pack_site_tables, unpack_site_tables
from fedmed.metrics.site_tables import FEDERATED, FINE_TUNED, LOCAL
from fedmed.seeding import make_rng

LIMITS = Disclosure(k=10, k_row=5, k_bin=5)
K = 3
SHARES = {"sex": {"f": 0.45, "m": 0.5, "unknown": 0.05}, "age": {"30": 0.1, "60": 0.5, "90": 0.4}}


def draw_part(seed: int, number: int, images_a_patient: float) -> ImagePart:
    """Return images whose patients have one sex and age each, and one disease."""
    rng = make_rng(seed, "part")
    owner = np.sort(rng.integers(0, max(1, round(number / images_a_patient)), number))
    people = int(owner.max(initial=0)) + 1
    own = {name: rng.choice([*of], people, p=[*of.values()])[owner].tolist() for name, of in SHARES.items()}
    labels = rng.choice(K, people, p=[0.6, 0.3, 0.1])[owner].tolist()
    items = [f"i{place}" for place in range(number)]
    patients = items if images_a_patient == 1 else [f"p{one}" for one in owner]
    return ImagePart(items, labels, own, None, patients)  # type: ignore[arg-type]  # nothing is read


def answer(part: ImagePart, seed: int, skill: float, models: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return logits of models that agree more often than chance."""
    rng = make_rng(seed, "answers")
    one_hot, base = np.eye(K)[part.labels.numpy()], rng.normal(size=(len(part), K))
    return {name: torch.from_numpy(skill * one_hot + base + 0.5 * rng.normal(size=(len(part), K))) for name in models}


def tell(
    part: ImagePart, rounds: Sequence[Mapping[str, torch.Tensor]], folder: Path, fairness: FairnessConfig
) -> tuple[list[bytes], list[ToldPart]]:
    """Return a hospital's answers to some rounds, and what it has noted of them."""
    owners = dict(zip(part.items, part.patients, strict=True))
    counted = count_part(part, "north", fairness, LIMITS, folder / "test.json", owners)
    patients = None if counted.unit == "images" else counted.patients
    answers = []
    for logits in rounds:
        held = hold_part(counted, part, logits, LIMITS, folder / "test.told.json")
        tables = disclose_tables(logits, part.labels, held.groups, held.plan, LIMITS, patients)
        assert find_breach(tables, LIMITS, "north") is None
        answers.append(pack_site_tables(tables))
    return answers, read_held(folder / "test.told.json")[1]


def read(answers: Sequence[bytes]) -> ToldPart:
    parts = [read_told(unpack_site_tables(packed), f"{number}/") for number, packed in enumerate(answers)]
    told = combine_told([part for part in parts if part.images] or parts[:1])
    assert len(told) == 1
    return add_others(told[0])


def list_exposed(told: ToldPart, seconds: float = 60) -> list[Exposed]:
    deadline = time.monotonic() + seconds
    return [one for question in list_questions(told) for one in find_exposed(told, question, LIMITS.k_row, deadline)]


@given(
    seed=st.integers(0, 10**6),
    number=st.integers(0, 90),
    images_a_patient=st.sampled_from([1, 1.5, 4]),
    skill=st.sampled_from([0.0, 1.0, 3.0]),
    models=st.sampled_from([(FEDERATED, LOCAL), (FEDERATED, LOCAL, FINE_TUNED)]),
    rounds=st.integers(1, 2),
    crossed=st.booleans(),
)
def test_no_hidden_row_follows_from_what_was_sent(  # noqa: PLR0917
    seed: int,
    number: int,
    images_a_patient: float,
    skill: float,
    models: Sequence[str],
    rounds: int,
    crossed: bool,
) -> None:
    part = draw_part(seed, number, images_a_patient)
    logits = [answer(part, seed + place, skill, models) for place in range(rounds)]
    fairness = FairnessConfig(intersections="pairs" if crossed else "none")
    with TemporaryDirectory() as folder:
        answers, noted = tell(part, logits, Path(folder), fairness)
    if not number:
        return
    found = read(answers)
    own = next((part for part in noted if part.images), noted[0])
    assert found.images == own.images
    assert found.rare == own.rare
    assert found.patients in ({}, own.patients)
    rows = [sorted(sorted(model.rows.items()) for model in part.models.values()) for part in (found, own)]
    assert rows[0] == rows[1]
    pairs = [sorted(sorted(both.items()) for both in part.pairs.values()) for part in (found, own)]
    assert pairs[0] == pairs[1]
    assert list_exposed(found) == []


@pytest.mark.parametrize("images_a_patient", [1, 2])
def test_without_holding_rows_back_some_follow(tmp_path: Path, images_a_patient: float) -> None:
    """The same populations give hidden rows away where only the linear rule has looked at them."""
    part = draw_part(1, 200, images_a_patient)
    logits = answer(part, 1, 1.0, (FEDERATED, LOCAL))
    owners = dict(zip(part.items, part.patients, strict=True))
    counted = count_part(part, "north", FairnessConfig(), LIMITS, tmp_path / "test.json", owners)
    tables = disclose_tables(logits, part.labels, counted.groups, counted.plan, LIMITS, counted.patients)
    assert list_exposed(read([pack_site_tables(tables)])) != []
    answers, _ = tell(part, [logits], tmp_path, FairnessConfig())
    assert list_exposed(read(answers)) == []
