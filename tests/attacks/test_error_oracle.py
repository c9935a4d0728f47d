"""A model whose outputs overflow for one image alone makes an error of it: the error is an answer, and counts as one.

Otherwise a server asks one question about single images after the other, each with another model in the same round.
"""

from collections import Counter
from pathlib import Path

import pytest

from fedmed.errors import FedmedError
from fedmed.protocol.kinds import KINDS
from fedmed.protocol.tensors import pack_tensors, unpack_tensors
from tests.client.support.hospital import POLICY, HospitalSite

QUESTIONS = 5
FIGURE = {"choice": "figure", "student": None}
KINDS_ASKED = {
    "train": ("train", {"round": 1}),
    "figure": (KINDS["figure"].flower, {"round": 1, "part": "validation"}),
    "calibrate": ("evaluate.calibrate", {"round": 1}),
    "test": ("evaluate", {"round": 1, "part": "test"}),
}


def overflowing(model: bytes, number: int) -> bytes:
    """Return a model that is finite itself, and gives infinite outputs; another one for each number."""
    tensors = unpack_tensors(model)
    tensors["0.weight"].mul_(1e6)
    tensors["5.weight"].fill_(3e38)
    tensors["5.bias"].fill_(1.0 + number)
    return pack_tensors(tensors)


@pytest.mark.parametrize("name", KINDS_ASKED)
def test_an_error_of_a_model_is_counted_like_an_answer(tmp_path: Path, name: str) -> None:
    site = HospitalSite(tmp_path, policy=POLICY | {"suppression": {"k": 3, "k_row": 3}})
    kind, values = KINDS_ASKED[name]
    if name in {"calibrate", "test"}:
        site.ask("train", site.model, FIGURE, round=1)
    texts = Counter[str]()
    for number in range(QUESTIONS):
        with pytest.raises(FedmedError) as refused:
            site.ask(kind, overflowing(site.model, number), FIGURE, **values)
        texts[type(refused.value).__name__] += 1
    assert texts == {"TrainingError": 1, "PolicyError": QUESTIONS - 1}


def test_the_error_of_a_training_tells_no_kind_of_infinity(tmp_path: Path) -> None:
    """An infinite loss and an undefined one would be told apart by a single image."""
    site = HospitalSite(tmp_path, policy=POLICY | {"suppression": {"k": 3, "k_row": 3}})
    with pytest.raises(FedmedError) as refused:
        site.ask("train", overflowing(site.model, 0), FIGURE, round=1)
    assert "nan" not in str(refused.value)
    assert "inf" not in str(refused.value).replace("infinite", "")
