"""Distillation at the server, a reconstruction: losses by hand, determinism, and that it is not skipped (24)."""

import copy
import math
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fedmed.distillation import (
    CoDistiller,
    CompactSettings,
    DistillationStudent,
    Ensemble,
    ProxyDataUnavailableError,
    ProxyImages,
    Targets,
    balance_predictions,
    compact_loss,
    compute_targets,
    describe_distance,
    distil_compact,
    make_prompt,
    open_proxy_folder,
)
from fedmed.distillation.at_sites.losses import temperature_terms
from fedmed.distillation.prompt.learning import PromptSettings
from fedmed.distillation.small_network.training import CompactTraining
from tests.distillation.support.helpers import SmallNet, hash_state

CLASSES, SIZE = 4, 16
CPU = torch.device("cpu")


def make_proxy(num: int = 96, seed: int = 0) -> ProxyImages:
    """Return images of one hue each, which a small network can learn to tell apart."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(0, 256, (num, 3, 1, 1), generator=generator)
    noise = torch.randint(-20, 20, (num, 3, SIZE, SIZE), generator=generator)
    images = (colours + noise).clamp(0, 255).byte()
    return ProxyImages(lambda index: images[index], num, recipe="none", image_size=SIZE)


def make_large(seed: int = 0, width: int = 12) -> nn.Module:
    """Return a network whose BatchNorms know the proxy images and whose classes are all in use."""
    torch.manual_seed(seed)
    network = SmallNet(width, CLASSES).train()
    x = next(iter(make_proxy().batches(96))) * 4 - 2
    for _ in range(20):
        network(x)
    with torch.no_grad():
        logits = network.eval()(x)
        network.fc.weight.mul_(4 / logits.std())  # type: ignore[union-attr]
        network.fc.bias.sub_(network(x).mean(0))  # type: ignore[union-attr]
    return network


def make_small() -> nn.Module:
    torch.manual_seed(3)
    return SmallNet(6, CLASSES)


FAST = CompactSettings(
    prompt=PromptSettings({"grid": 4}, first_steps=5),
    prompt_batch=16,
    batch_size=16,
    steps=160,
    evaluate_every=40,
    lr=1e-2,
    hidden=8,
)


def test_the_temperature_term_by_hand() -> None:
    # tau 2. Teacher (2 ln 3, 0) softens to (3/4, 1/4); student (0, 0) to (1/2, 1/2).
    # KL = 3/4 ln(3/2) + 1/4 ln(1/2), times 4.
    teacher = torch.tensor([[2 * math.log(3), 0.0]])
    expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert float(temperature_terms(torch.zeros(1, 2), teacher, 2.0)) == pytest.approx(expected)
    assert float(temperature_terms(teacher + 5, teacher, 2.0)) == pytest.approx(0, abs=1e-6)


def test_the_loss_weighs_answers_and_features_and_trusts_no_unsure_answer() -> None:
    # As above: 0.5232 for the first image; its feature at a right angle adds 2. The second's answer is (1/2, 1/2),
    # below the confidence of 0.6: it has its feature alone, opposite: 4. Weights 1/2 and 3/2.
    teacher = Targets(torch.tensor([[2 * math.log(3), 0.0], [1.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    answer = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    loss = compact_loss(
        torch.tensor([[0.0, 0.0], [3.0, -3.0]]),
        torch.tensor([[0.0, 5.0], [-2.0, 0.0]]),
        teacher,
        weight_B=torch.tensor([0.5, 1.5]),
        confidence=0.6,
    )
    assert float(loss) == pytest.approx((0.5 * (answer + 2) + 1.5 * 4) / 2)


def test_rare_predictions_weigh_more_but_not_without_end() -> None:
    # 3 of class 0 and 1 of class 1: inverse counts 1/3 and 1, scaled to mean 1: 4 / 2 = 2 times: 2/3 and 2.
    logits = torch.eye(3)[[0, 0, 0, 1]]
    torch.testing.assert_close(balance_predictions(logits), torch.tensor([2 / 3, 2 / 3, 2 / 3, 2.0]))
    # 99 and 1: 100/198 and 50 would be the weights; capped at 10 the others share 90: 90/99 each.
    many = torch.eye(3)[[0] * 99 + [1]]
    weights = balance_predictions(many)
    assert float(weights[-1]) == 10
    assert float(weights[0]) == pytest.approx(90 / 99)
    assert float(weights.mean()) == pytest.approx(1)


def test_distilling_makes_the_student_agree_and_doing_nothing_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: with the training step replaced by nothing, the same check fails."""

    def agreement() -> float:
        student = make_small()
        result = distil_compact(make_large(), student, make_proxy(), FAST, seed=1)
        targets = compute_targets(
            make_large(), result.prompt, make_proxy(seed=9), batch_size=16, device=torch.device("cpu")
        )
        logits = compute_targets(student, result.prompt, make_proxy(seed=9), batch_size=16, device=torch.device("cpu"))
        return float((targets.logits.argmax(1) == logits.logits.argmax(1)).float().mean())

    assert agreement() > 0.6
    monkeypatch.setattr(CompactTraining, "_train_step", lambda *_: 0.0)
    assert agreement() < 0.5


def test_a_distillation_is_told_repeated_and_leaves_the_teacher_alone() -> None:
    large, told = make_large(), []
    large.train()
    before = hash_state(large)
    students = [make_small(), make_small()]
    first, second = (
        distil_compact(large, student, make_proxy(), FAST, seed=1, progress=lambda step, figures: told.append(step))
        for student in students
    )
    assert hash_state(large) == before
    assert large.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in large.parameters())
    assert hash_state(students[0]) == hash_state(students[1])
    assert first.history == second.history
    assert told == [40, 80, 120, 160] * 2
    best = min(first.history, key=lambda row: row["held_out_loss"])
    assert first.best_step == best["step"]
    assert set(students[0].state_dict()) == set(make_small().state_dict())
    assert not students[0].training
    assert set(first.seconds) == {"explore", "targets", "train"}
    assert len(first.explored.losses) == 5
    assert first.notes == ()
    other = make_small()
    distil_compact(large, other, make_proxy(), FAST, seed=2)
    assert hash_state(other) != hash_state(students[0])


def test_targets_are_those_of_prompted_images() -> None:
    large, proxy = make_large(), make_proxy(6)
    prompt = make_prompt({"grid": 4})
    assert prompt.theta is not None
    nn.init.ones_(prompt.theta)
    seen: list[Tensor] = []
    large.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    targets = compute_targets(large, prompt, proxy, batch_size=4, device=torch.device("cpu"))
    assert targets.logits.shape == (6, CLASSES)
    assert targets.features is not None
    assert targets.features.shape == (6, 12)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in proxy.statistics)
    torch.testing.assert_close(seen[0], (2 ** math.tanh(1) * proxy.pixels(range(4)) - mean) / std, rtol=1e-4, atol=1e-4)


def test_an_ensemble_is_the_mean_of_its_members_answers_one_at_a_time() -> None:
    """Logits and features of two networks, written out here; with other widths there is no common feature."""
    members, proxy, alive = [make_large(0), make_large(1)], make_proxy(6), []

    def load(index: int) -> nn.Module:
        network = copy.deepcopy(members[index])
        assert not [other() for other in alive if other() is not None]
        alive.append(weakref.ref(network))
        return network

    prompt, options = make_prompt({"mode": "none"}), {"batch_size": 4, "device": torch.device("cpu")}
    found = compute_targets(Ensemble([partial(load, 0), partial(load, 1)]), prompt, proxy, **options)  # type: ignore[arg-type]
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in proxy.statistics)
    x, features = (proxy.pixels(range(6)) - mean) / std, []
    for member in members:
        member.eval().fc.register_forward_pre_hook(lambda _, args: features.append(args[0]))  # type: ignore[union-attr]
    with torch.no_grad():
        expected = (members[0](x) + members[1](x)) / 2
    torch.testing.assert_close(found.logits, expected)
    torch.testing.assert_close(found.features, (features[0] + features[1]) / 2)
    other = compute_targets(Ensemble([make_large, partial(make_large, 1, 5)]), prompt, proxy, **options)  # type: ignore[arg-type]
    assert other.features is None
    torch.testing.assert_close(other.logits[0], (members[0](x[:1])[0] + make_large(1, 5)(x[:1])[0]) / 2)


def test_an_ensemble_teaches_without_a_prompt() -> None:
    result = distil_compact(Ensemble([make_large, partial(make_large, 1)]), make_small(), make_proxy(), FAST, seed=1)
    assert result.prompt.mode == "none"
    assert "no BatchNorm statistics in common" in result.notes[0]
    assert result.history[-1]["held_out_loss"] < result.history[0]["train_loss"]


def test_a_teacher_without_batch_norm_is_taken_with_a_note() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.mean(dim=(2, 3)))

    torch.manual_seed(0)
    settings = CompactSettings(steps=4, evaluate_every=2, batch_size=8, hidden=4)
    result = distil_compact(Plain(), make_small(), make_proxy(12), settings, seed=0)
    assert result.prompt.mode == "none"
    assert len(result.notes) == 1


def test_training_stops_when_nothing_is_gained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CompactTraining, "_train_step", lambda *_: 0.0)
    settings = CompactSettings(
        PromptSettings({"mode": "none"}), steps=100, evaluate_every=10, patience=2, batch_size=8, hidden=4
    )
    student = make_small()
    before = hash_state(student)
    result = distil_compact(make_large(), student, make_proxy(12), settings, seed=0)
    assert [row["step"] for row in result.history] == [10, 20]
    assert result.best_step == 0
    assert hash_state(student) == before


@pytest.mark.parametrize(("num_images", "is_frozen"), [(9, True), (10, False)])
def test_statistics_of_batch_norm_rest_with_few_proxy_images(num_images: int, is_frozen: bool) -> None:
    """Two are held out, so that 7 and 8 are left to train on."""
    proxy, student = make_proxy(num_images), make_small()
    targets, seen = compute_targets(make_large(), make_prompt({"mode": "none"}), proxy, batch_size=16, device=CPU), []
    training = CompactTraining(
        student, make_prompt({"mode": "none"}), proxy, targets, settings=replace(FAST, steps=5), seed=0, device=CPU
    )
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    step = training._train_step

    def look(*arguments: Any) -> float:
        loss = step(*arguments)
        seen.append({name for name, tensor in student.state_dict().items() if not tensor.equal(before[name])})
        return loss

    training._train_step = look  # type: ignore[method-assign]
    training.run(None)
    assert len(training.trained) == num_images - 2
    statistics = {name for name in before if "running" in name or "tracked" in name}
    assert statistics
    assert seen[-1] & statistics == (set() if is_frozen else statistics)
    assert seen[-1] - statistics == {name for name, _ in student.named_parameters()}


def test_no_proxy_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ProxyDataUnavailableError, match=r"none.*fopro.proxy.*co_distillation.*skip"):
        open_proxy_folder(tmp_path / "none", recipe="none", image_size=SIZE)
    with pytest.raises(ProxyDataUnavailableError, match="has 0 images"):
        open_proxy_folder(tmp_path, recipe="none", image_size=SIZE)


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    Image.new("RGB", (20, 30), (255, 0, 0)).save(tmp_path / "b" / "one.png")
    Image.new("RGB", (20, 30), (0, 0, 255)).save(tmp_path / "a.PNG")
    (tmp_path / "notes.txt").write_text("no image")
    proxy = open_proxy_folder(tmp_path, recipe="none", image_size=8)
    assert len(proxy) == 2
    pixels = proxy.pixels([0, 1])
    assert pixels.shape == (2, 3, 8, 8)
    torch.testing.assert_close(pixels[:, :, 0, 0], torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]), rtol=0, atol=1e-6)


def test_a_distant_proxy_set_is_told() -> None:
    assert describe_distance(6.0, [1.0, 3.0]) is None
    warning = describe_distance(6.1, [1.0, 3.0])
    assert warning is not None
    assert "co_distillation" in warning


def test_co_distillation_adds_the_large_networks_answer_to_the_main_loss() -> None:
    large, student = make_large().train(), DistillationStudent(make_small(), 12, hidden=8, auxiliary=False).train()
    distiller = CoDistiller(student, large, nn.CrossEntropyLoss())
    x, target = torch.rand(6, 3, SIZE, SIZE) * 4 - 2, torch.arange(6) % CLASSES
    before, copied = hash_state(large), copy.deepcopy(student)
    parts = distiller(x, target)
    outputs = copied.run(x)
    features: list[Tensor] = []
    handle = large.fc.register_forward_pre_hook(lambda _, args: features.append(args[0]))  # type: ignore[union-attr]
    answer = large(x)
    handle.remove()
    expected = compact_loss(outputs.logits, outputs.projected, Targets(answer, features[0]))
    torch.testing.assert_close(parts.total, nn.functional.cross_entropy(outputs.logits, target) + expected)
    parts.total.backward()
    assert hash_state(large) == before
    assert all(parameter.grad is None for parameter in large.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert distiller(x[:1], target[:1]).total.isfinite()
