"""The benchmark of a teacher's cost says what was measured, and its variants differ in what they say they differ in."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

import tests.support.federation  # noqa: F401  (registers the network "tiny")
from fedmed.distillation import Teacher
from simulations.benchmarks import distillation
from simulations.benchmarks.distillation import Contender, Setting, list_variants, measure

SETTING = Setting("tiny", 16, 4, images=8, epochs=2, teacher="efficientnet_lite0", teacher_size=32, source="random")


def test_ratios_are_to_the_student_alone_and_the_first_turn_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of the fastest turn in the order of the table; the others are slower by 1 and 2 s, the first by 100."""
    base = dict(zip([variant.name for variant in list_variants(3)], (2.0, 4.0, 3.0, 2.2, 5.0, 11.0, 9.0), strict=True))
    order: list[str] = []

    def run(self: Contender, turn: int) -> float:
        order.append(self.variant.name)
        return base[self.variant.name] + (100, 1, 0, 2)[turn]

    monkeypatch.setattr(Contender, "__init__", lambda self, variant, *_: setattr(self, "variant", variant))
    monkeypatch.setattr(Contender, "run", run)
    rows = measure(SETTING, 3, 3, torch.device("cpu"))
    assert order == [*base] * 4
    assert [row["seconds"] for row in rows] == [*base.values(), 6.0]  # 11 with the prompt's steps, 5 without
    assert [row["ratio"] for row in rows] == [1.0, 2.0, 1.5, 1.1, 2.5, 5.5, 4.5, 3.0]


def test_variants_ask_the_teacher_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 images in batches of 4, 2 epochs: 4 steps. 3 steps of the prompt see 4 images each, too."""
    seen: Counter[str] = Counter()
    forward, name = Teacher.forward, ""

    def count(self: Teacher, images: torch.Tensor) -> torch.Tensor:
        seen[name] += len(images)
        return forward(self, images)

    monkeypatch.setattr(Teacher, "forward", count)
    labels = [0, 1] * 4
    part = distillation.ImagePart([str(i) for i in range(8)], labels, {}, distillation.RandomImages(8, 16))
    for variant in list_variants(3):
        contender = Contender(variant, SETTING, part, torch.device("cpu"))
        contender.run(0)
        name = variant.name
        contender.run(1)
        name = ""
    del seen[""]
    assert seen == {
        "teacher, no prompt": 16,
        "teacher, no prompt, cached: first round": 8,
        "teacher, prompt without its steps": 16,
        "teacher, prompt": 16 + 12,
        "teacher, prompt, cached": 8 + 12,
    }


@pytest.mark.slow
def test_benchmark_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, threads = tmp_path / "figures.json", torch.get_num_threads()
    arguments = ["--students", "shufflenet_v2_x0_5_erohprf", "--size", "32x4", "--teacher-sizes", "32", "--images", "8"]
    arguments += ["--random-teacher", "--prompt-steps", "1", "--turns", "1", "--json", str(file)]
    assert distillation.main(arguments) == 0
    torch.set_num_threads(threads)
    rows = json.loads(file.read_text())
    assert [row["variant"] for row in rows] == [*(v.name for v in list_variants(1)), "the prompt's steps of these"]
    assert rows[0]["ratio"] == 1.0
    assert "| teacher, prompt, cached |" in capsys.readouterr().out


def test_missing_teacher_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert distillation.main(["--students", "resnet18", "--teacher", "efficientnet_lite9", "--images", "2"]) == 1
    assert "efficientnet_lite9" in capsys.readouterr().err
