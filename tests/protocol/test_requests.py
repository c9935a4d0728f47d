"""What the server asks for: what travels, what is left out, and what a text in it can do."""

import json
import math
from typing import Any

import pytest
from pydantic import ValidationError

from fedmed.config import Plan
from fedmed.errors import FederationError, WireError
from fedmed.protocol.reading import explained
from fedmed.protocol.requests import DistilSettings, OtherModel, Request

PLAN = Plan.model_validate(
    {
        "seed": 3,
        "rounds": 4,
        "classes": ["a", "b"],
        "image_size": 16,
        "augmentation": "flips",
        "model": {"name": "tiny"},
        "loss": {"ce": 1.0},
        "training": {"batch_size": 8},
        "batch_norm": "average",
    }
)
SHA256 = "0" * 64


def test_only_what_is_asked_for_travels_and_a_plan_in_full() -> None:
    """The site may have other defaults than the server, so a plan leaves nothing out."""
    plan = PLAN.model_dump(mode="json")
    assert Request(plan=PLAN).to_values() == {"plan": plan}
    asked = Request(plan=PLAN, round=0, part="test", best_round=None, compare=["local"], temperature=2.0)
    assert asked.to_values() == {
        "plan": plan,
        "round": 0,
        "part": "test",
        "compare": ["local"],
        "temperature": 2.0,
    }
    other = OtherModel(name="student", plan=PLAN, sha256=SHA256)
    assert Request(plan=PLAN, other=other).to_values()["other"] == {"name": "student", "plan": plan, "sha256": SHA256}
    assert plan["training"]["optimizer"]["momentum"] == 0.9


def test_what_was_written_is_read() -> None:
    asked = Request(
        plan=PLAN,
        round=2,
        best_round=1,
        model_sha256=SHA256,
        remember=True,
        group_weights={"f": 0.5},
        other=OtherModel(name="teacher", plan=PLAN, sha256=SHA256),
        distil=DistilSettings(temperature=2.0, feature_weight=1.0),
    )
    assert Request.read(json.loads(json.dumps(asked.to_values()))) == asked


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"plan": None}, "The server's plan cannot be read here. Server and site must run the same version of fedmed."),
        ({"plan": PLAN.model_dump() | {"benefit": "perhaps"}}, "The server's plan cannot be read here."),
        ({"round": 1.0}, "The request's 'round' is 1.0. Allowed: a whole number from 0."),
        ({"remember": 1}, "The request's 'remember' is 1. Allowed: true or false."),
        ({"temperature": math.nan}, "The request's 'temperature' is nan. Allowed: 0.05 to 20."),
        ({"model_sha256": "A" * 64}, "Allowed: 64 hexadecimal digits."),
        ({"model_sha256": SHA256 + "\n"}, "Allowed: 64 hexadecimal digits."),
        ({"group_weights": {"f": True}}, "The request's 'group_weights.f' is True. Allowed: at most 200 groups"),
        ({"group_weights": {str(n): 1.0 for n in range(201)}}, "Allowed: at most 200 groups"),
        (
            {"distil": {"temperature": 0.0, "feature_weight": 1.0}},
            "'distil.temperature' is 0.0. Allowed: above 0",
        ),
        ({"distil": 3}, "The request's 'distil' cannot be read. Needed: temperature and feature_"),
        ({"other": {}}, "The request's 'other' is not what was agreed: name, plan and sha256 of a model."),
        ({"compare": [["local"]]}, "The request's 'compare.0' is ['local']. Allowed: a list of batch_norm, fine_tuned"),
        ({"x\x1b" * 500: 1}, "The request holds 'x?x?x?x?"),
        ({"part": "\x1b" * 500}, "The request's 'part' is '\\x1b\\x1b"),
    ],
)
def test_what_does_not_fit_is_one_short_sentence(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(WireError) as caught:
        Request.read({"plan": PLAN.model_dump(mode="json")} | changes)
    text = str(caught.value)
    assert words in text
    assert len(text) < 300
    assert text.isprintable()


def test_own_side_is_told_in_the_same_words() -> None:
    words = r"'temperature' is 100\.0\. Allowed: 0\.05 to 20\."
    with pytest.raises(FederationError, match=words), explained(Request, FederationError):
        Request(plan=PLAN, temperature=100.0)
    with pytest.raises(ValidationError):
        Request(plan=PLAN, temperature=100.0)
