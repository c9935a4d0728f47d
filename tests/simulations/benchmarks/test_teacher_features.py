"""The benchmark of a teacher's features: its training of one layer, and its table."""

import json
from pathlib import Path

import pytest
import torch

from fedmed.config import RunConfig, TeacherPlan
from simulations.benchmarks.teacher_features import Features, Learner, describe, main, measure, train_layer

CONFIG = RunConfig.model_validate(
    {
        "rounds": 12,
        "sites": 2,
        "classes": ["a", "b", "c"],
        "model": {"name": "resnet18"},
        "data": {"source": "phantom", "images_per_site": 60, "num_classes": 3, "image_size": 32},
        "training": {"optimizer": {"lr": 0.05}, "batch_size": 4},
        "fairness": {"attributes": []},
    }
)


def draw(seed: int, images: int, noise: float = 0.3) -> Features:
    """Return features that are their class's unit vector and noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % 3
    return Features(torch.eye(3)[labels] + noise * torch.randn(images, 3, generator=generator), labels)


def test_a_layer_learns_what_can_be_learned_pooled_and_averaged() -> None:
    parts = [draw(0, 30), draw(1, 60)]
    held_out = draw(2, 300), draw(3, 300)
    # Of the nearest unit vector: right where both differences of noise, each of deviation 0.3 sqrt(2), are below 1.
    assert train_layer([Features.pool(parts)], *held_out, CONFIG) > 0.95
    assert train_layer(parts, *held_out, CONFIG) > 0.95
    meaningless = Features(held_out[1].values, held_out[1].labels.roll(1))
    assert train_layer(parts, held_out[0], meaningless, CONFIG) < 0.05


def test_groups_of_equal_images_and_steps_average_to_their_own_weights() -> None:
    group = draw(0, 4)  # one batch, so that the order does not matter
    learners = [Learner(number, group, 3, CONFIG) for number in (0, 1)]
    start = torch.nn.Linear(3, 3)
    first, second = (learner.train(start, 1) for learner in learners)
    for name in first:
        torch.testing.assert_close(first[name], second[name])
        assert not torch.equal(first[name], dict(start.named_parameters())[name])
    held_out = draw(2, 30, noise=1.0), draw(3, 30, noise=1.0)
    assert train_layer([group, group], *held_out, CONFIG) == train_layer([group], *held_out, CONFIG)


def test_the_round_is_chosen_on_validation_images(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.2, 0.9, 0.5, 0.3, 0.4, *[0.1] * 9])  # validation, then test where validation has improved

    monkeypatch.setattr("simulations.benchmarks.teacher_features.score", lambda *_: next(scores))
    assert train_layer([draw(0, 9)], draw(1, 9), draw(2, 9), CONFIG) == 0.3


def test_measures_a_config_by_its_own_split() -> None:
    teachers = [TeacherPlan(source="random", image_size=size) for size in (32, 64)]
    found = list(measure(CONFIG, teachers))
    assert [set(one) for one in found] == [{"size", "pooled", "sites"}] * 2
    assert [one["size"] for one in found] == [32, 64]
    assert all(0.1 < one[name] <= 1 for one in found for name in ("pooled", "sites"))
    assert found[1:] == list(measure(CONFIG, teachers[1:]))


def test_table_by_hand() -> None:
    # Means 0.5 and 0.4, differences -0.08 and -0.12: t of one degree, 12.706, times 0.02 gives 0.254.
    found = [
        {"seed": 0, "size": 96, "pooled": 0.48, "sites": 0.40},
        {"seed": 1, "size": 96, "pooled": 0.52, "sites": 0.40},
    ]
    text = describe(found)
    assert "2 seeds" in text
    assert "96 px:  pooled 0.500 (0.246 to 0.754)   sites 0.400" in text
    assert "sites minus pooled -0.100 (-0.354 to 0.154)" in text
    assert "sites 0.400 (one seed)   sites minus pooled -0.080 (one seed)" in describe(found[:1])


def test_command_explains_a_setting_that_is_not_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["--set", "round=3", "--seeds", "1"]) == 1
    assert "round" in capsys.readouterr().err
    found = {"size": 96, "pooled": 0.5, "sites": 0.25}
    monkeypatch.setattr("simulations.benchmarks.teacher_features.measure", lambda *_: iter([found]))
    file = tmp_path / "figures.json"
    assert main(["--config", "configs/simulation.yaml", "--sizes", "96", "--seeds", "1", "--json", str(file)]) == 0
    assert json.loads(file.read_text()) == [{"seed": 0} | found]
