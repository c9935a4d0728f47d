"""The artefact of a run whose sites distil: without a trace of that, and its card says how it was trained."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from safetensors.torch import load_file

from fedmed.distillation.teachers import cache as known_teachers
from fedmed.export.model_card import _describe_distillation
from fedmed.export.run import export_run
from server import federation as federation_app
from tests.support.federation import Federation
from tests.support.fopro import make_fopro


@pytest.mark.parametrize(("fopro", "expected"), [(None, "disabled"), ({"teacher": "none"}, "disabled")])
def test_the_record_of_a_run_says_that_nothing_is_distilled(
    make_federation: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch, fopro: object, expected: str
) -> None:
    monkeypatch.setattr(federation_app, "write_final_report", lambda *_: None)
    federation = make_federation(rounds=1, fopro=fopro, calibrate=False)
    federation.go()
    told = {"fopro": expected, "teacher": None}
    assert federation.run.read_distillation() == told
    manifest = json.loads((federation.run.model / "manifest.json").read_text())
    assert {key: manifest[key] for key in told} == told


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"fopro": "disabled", "teacher": None}, ["`fopro: disabled`", "labels alone"]),
        ({"fopro": "self", "teacher": None}, ["`fopro: self`", "This is not FoPro-KD"]),
        (
            {"fopro": "client", "teacher": {"name": "resnet50", "source": "file", "sha256": "ab" * 32}},
            ["`fopro: client`", "resnet50 (file; SHA-256 `abab", "is a reconstruction"],
        ),
        ({}, []),
    ],
)
def test_the_card_says_what_the_sites_learned_from(told: dict[str, Any], expected: list[str]) -> None:
    paragraphs = _describe_distillation(told, None)
    assert len(paragraphs) == bool(expected)
    assert all(words in paragraphs[0] for words in expected)


def test_artefact_needs_no_teacher_and_names_it(
    make_federation: Callable[..., Federation], tmp_path: Path, monkeypatch
) -> None:
    federation = make_federation(rounds=1, fopro=make_fopro())
    federation.go()

    def refuse(plan: object) -> None:
        raise AssertionError("an export loads no teacher")

    monkeypatch.setattr(known_teachers, "_load", refuse)
    manifest = export_run(federation.run, tmp_path / "model")
    assert manifest["plan"]["fopro"] is None
    names = list(load_file(tmp_path / "model/model.safetensors"))
    names += [tensor.name for tensor in onnx.load(tmp_path / "model/model.onnx").graph.initializer]
    assert not [name for name in names if any(word in name for word in ("projector", "aux", "teacher", "fpg"))]
    teacher = federation.run.read_environment()["teacher"]
    assert isinstance(teacher, dict)
    assert (teacher["name"], len(teacher["sha256"])) == ("test_resnet", 64)
    assert manifest["fopro"] == federation.run.read_environment()["fopro"] == "client"
    assert manifest["teacher"] == teacher
    card = (tmp_path / "model/model_card.md").read_text()
    assert "`fopro: client`" in card
    assert teacher["sha256"] in card
    assert "frozen public network, test_resnet" in card.replace("\\", "")
    assert "is a reconstruction" in card
