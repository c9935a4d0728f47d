"""The artefact of a run whose sites distil: without a trace of that, and its card says how it was trained."""

from collections.abc import Callable
from pathlib import Path

import onnx
from safetensors.torch import load_file

from fedmed.distillation import known_teachers
from fedmed.export.run import export_run
from tests.federation import Federation
from tests.fopro import make_fopro


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
    card = (tmp_path / "model/model_card.md").read_text()
    assert "frozen public network, test_resnet" in card.replace("\\", "")
    assert "is a reconstruction" in card
