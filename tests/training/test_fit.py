"""Local training against loops written out here."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedmed.config import Plan
from fedmed.errors import TrainingError
from fedmed.metrics.tables import tables_from_logits
from fedmed.models import create_model
from fedmed.seeding import make_rng, seeded_torch
from fedmed.training.devices import select_device
from fedmed.training.evaluate import compute_logits, evaluate
from fedmed.training.fit import fit

CPU = torch.device("cpu")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
SIZE = 16


class Part:
    """Images in memory, with the interface of ImagePart."""

    def __init__(self, num_images: int, num_classes: int = 3, size: int = SIZE) -> None:
        rng = np.random.default_rng(0)
        self.pixels = torch.from_numpy(rng.integers(0, 256, (num_images, 3, size, size), dtype=np.uint8))
        self.labels = torch.from_numpy(rng.integers(0, num_classes, num_images))
        self.attributes: dict[str, tuple[str, ...]] = {}
        self.patients = tuple(f"patient {number // 2}" for number in range(num_images))
        """Two images each."""

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, indices: Sequence[int]) -> list[torch.Tensor]:
        return [self.pixels[index] for index in indices]

    def normalised(self, indices: Sequence[int]) -> torch.Tensor:
        """ImageNet normalisation, written out."""
        mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        return (self.pixels[list(indices)].float() / 255 - mean) / std


def make_plan(**training: Any) -> Plan:
    settings = {"optimizer": {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.0}, "batch_size": 8}
    return Plan.model_validate(
        {
            "seed": 3,
            "rounds": 4,
            "classes": ["a", "b", "c"],
            "image_size": SIZE,
            "augmentation": "none",
            "model": {"name": "resnet18"},
            "loss": {"ce": 1.0},
            "training": settings | {"schedule": {"name": "constant"}} | training,
            "batch_norm": "average",
        }
    )


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=4),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], atol: float = 0.0) -> None:
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=0, atol=atol)


def loop_by_hand(model: nn.Module, part: Part, plan: Plan, rounds: Sequence[int], mu: float = 0.0) -> None:
    """SGD with one optimiser over all rounds, the FedProx term in the loss itself."""
    settings = plan.training.optimizer
    optimizer = torch.optim.SGD(model.parameters(), settings.lr, settings.momentum, weight_decay=settings.weight_decay)
    model.train()
    for round_number in rounds:
        start = [parameter.detach().clone() for parameter in model.parameters()]
        order = make_rng(plan.seed, "site", round_number, 0, "order").permutation(len(part))
        for first in range(0, len(part), plan.training.batch_size):
            indices = order[first : first + plan.training.batch_size].tolist()
            loss = nn.functional.cross_entropy(model(part.normalised(indices)), part.labels[indices])
            distance = sum((p - p0).square().sum() for p, p0 in zip(model.parameters(), start, strict=True))
            optimizer.zero_grad()
            (loss + mu / 2 * distance).backward()
            optimizer.step()


def run_fit(model: nn.Module, part: Part, plan: Plan, round_number: int = 1, **options: Any) -> Any:
    return fit(model, part, plan, site="site", round_number=round_number, device=CPU, **options)  # type: ignore[arg-type]


def test_fit_equals_a_loop_by_hand() -> None:
    part, plan = Part(24), make_plan()
    ours, expected = make_model(), make_model()
    run_fit(ours, part, plan)
    loop_by_hand(expected, part, plan, [1])
    assert_same(state(ours), state(expected), atol=1e-6)


def test_fedprox_equals_the_term_in_the_loss() -> None:
    part, plan = Part(24), make_plan(proximal_mu=0.5)
    ours, expected = make_model(), make_model()
    run_fit(ours, part, plan)
    loop_by_hand(expected, part, plan, [1], mu=0.5)
    assert_same(state(ours), state(expected), atol=1e-6)
    plain = make_model()
    run_fit(plain, part, make_plan())
    assert not torch.equal(plain[0].weight, ours[0].weight)  # type: ignore[index]


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_kept_momentum_continues_one_optimiser_over_rounds(name: str) -> None:
    part = Part(24)
    plan = make_plan(keep_momentum=True, optimizer={"name": name, "lr": 0.01, "momentum": 0.9, "weight_decay": 0.0})
    model = make_model()
    result = run_fit(model, part, plan)
    run_fit(model, part, plan, 2, optimizer_state=result.optimizer_state)
    if name == "sgd":
        expected = make_model()
        loop_by_hand(expected, part, plan, [1, 2])
        assert_same(state(model), state(expected), atol=1e-6)
    forgetful = make_model()
    run_fit(forgetful, part, plan)
    run_fit(forgetful, part, plan, 2)
    assert not torch.equal(forgetful[0].weight, model[0].weight)  # type: ignore[index]


def test_optimiser_state_is_returned_only_where_it_is_kept() -> None:
    assert run_fit(make_model(), Part(8), make_plan()).optimizer_state == {}
    kept = run_fit(make_model(), Part(8), make_plan(keep_momentum=True)).optimizer_state
    assert set(kept) == {f"{name}/momentum_buffer" for name, _ in make_model().named_parameters()}


def test_result_does_not_depend_on_what_the_process_did_before() -> None:
    part, plan = Part(24), make_plan(epochs_per_round=2)
    first, second = make_model(), make_model()
    run_fit(first, part, plan)
    torch.manual_seed(99)
    torch.rand(100)
    run_fit(second, part, plan)
    assert_same(state(first), state(second))


def test_site_round_and_epoch_have_orders_of_their_own() -> None:
    part, plan = Part(24), make_plan()
    weights = []
    for site, round_number in (("site", 1), ("other", 1), ("site", 2)):
        model = make_model()
        fit(model, part, plan, site=site, round_number=round_number, device=CPU)  # type: ignore[arg-type]
        weights.append(model[0].weight.detach())  # type: ignore[index]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_one_epoch_a_round_follows_the_schedule_of_central_training() -> None:
    part = Part(8)
    schedule = {"name": "cosine", "final_share": 0.1}
    by_round = [run_fit(make_model(), part, make_plan(schedule=schedule), r).learning_rate for r in (1, 2, 3, 4)]
    central = make_plan(schedule=schedule, epochs_per_round=4).model_copy(update={"rounds": 1})
    assert by_round[-1] == run_fit(make_model(), part, central).learning_rate
    assert by_round == sorted(by_round, reverse=True)
    assert by_round[0] == 0.05


def test_gradient_clipping_limits_the_first_step() -> None:
    part = Part(8)
    plan = make_plan(clip_norm=1e-3, optimizer={"lr": 1.0, "momentum": 0.0, "weight_decay": 0.0})
    model = make_model()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    run_fit(model, part, plan)
    moved = torch.sqrt(sum((p - b).square().sum() for p, b in zip(model.parameters(), before, strict=True)))
    assert float(moved.detach()) == pytest.approx(1e-3, rel=1e-3)


def test_loss_is_the_mean_over_images_before_each_step() -> None:
    part, plan = Part(12), make_plan(optimizer={"lr": 1e-12, "momentum": 0.0, "weight_decay": 0.0}, batch_size=5)
    model = copy.deepcopy(make_model()).train()
    order = make_rng(plan.seed, "site", 1, 0, "order").permutation(12).tolist()
    total = sum(
        float(nn.functional.cross_entropy(model(part.normalised(b)), part.labels[b]).detach()) * len(b)
        for b in (order[:4], order[4:8], order[8:])  # three batches at least, of 5 at most: 4 each
    )
    assert run_fit(make_model(), part, plan).loss == pytest.approx(total / 12, abs=1e-6)


def test_loss_that_is_no_number_is_explained() -> None:
    model = make_model()
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))  # type: ignore[index]
    with pytest.raises(TrainingError, match=r"loss is no finite number in round 1\. Lower training\.optimizer\.lr"):
        run_fit(model, Part(8), make_plan())


@pytest.mark.parametrize("num_images", [1, 9])
def test_batch_of_one_is_handled(num_images: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, SIZE), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))
    result = run_fit(model, Part(num_images), make_plan())
    assert result.num_images == num_images
    assert np.isfinite(result.loss)


def cut(order: np.ndarray, batch_size: int) -> list[list[int]]:
    """Batches as they must not be: 32 images and a rest."""
    return [order[first : first + batch_size].tolist() for first in range(0, len(order), batch_size)]


def measure_update(num_images: int) -> float:
    """Length of the first update of a ResNet-18 whose last maps have one position."""
    plan = make_plan(batch_size=32).model_copy(update={"image_size": 32})
    with seeded_torch(0, "model"):
        model = create_model("resnet18", 3)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    run_fit(model, Part(num_images, size=32), plan)
    return math.sqrt(
        sum(float((p.detach() - b).square().sum()) for p, b in zip(model.parameters(), before, strict=True))
    )


def test_no_rest_of_an_epoch_makes_a_step_of_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps with momentum 0.9 are (1 + 1 + 0.9) times one; a rest of two images is the negative control."""
    one_step = measure_update(32)
    assert measure_update(34) < 10 * one_step
    monkeypatch.setattr("fedmed.training.fit.make_batches", cut)
    assert measure_update(34) > 100 * one_step


@pytest.mark.parametrize(("num_images", "is_frozen"), [(1, True), (5, True), (7, True), (8, False)])
def test_statistics_of_batch_norm_rest_with_few_images(num_images: int, is_frozen: bool) -> None:
    plan, model = make_plan(epochs_per_round=3), make_model()
    with torch.no_grad():
        model[1].running_mean.copy_(torch.tensor([0.5, -0.5, 0.0, 1.0]))  # type: ignore[union-attr]
        model[1].running_var.copy_(torch.tensor([0.5, 2.0, 1.0, 3.0]))  # type: ignore[union-attr]
    before = state(model)
    run_fit(model, Part(num_images), plan)
    changed = {name for name, tensor in state(model).items() if not tensor.equal(before[name])}
    trained = {"0.weight", "0.bias", "1.weight", "1.bias", "5.weight", "5.bias"}
    assert changed == trained | (set() if is_frozen else {f"1.{name}" for name in STATISTICS})


def test_few_images_are_normalised_by_the_running_statistics() -> None:
    """Five images, one step by hand: (x - m) / sqrt(v + eps) * g + b in BatchNorm, with m and v that came."""
    part, plan = Part(5), make_plan(optimizer={"lr": 0.05, "momentum": 0.0, "weight_decay": 0.0})
    model = make_model()
    mean, variance = torch.tensor([0.5, -0.5, 0.0, 1.0]), torch.tensor([0.5, 2.0, 1.0, 3.0])
    model[1].running_mean.copy_(mean)  # type: ignore[union-attr,operator]
    model[1].running_var.copy_(variance)  # type: ignore[union-attr,operator]
    expected = copy.deepcopy(model)
    conv, norm, *rest = expected.children()
    shape = (1, 4, 1, 1)
    y = (conv(part.normalised(range(5))) - mean.view(shape)) / (variance.view(shape) + 1e-5).sqrt()
    y = y * norm.weight.view(shape) + norm.bias.view(shape)  # type: ignore[union-attr,operator]
    loss = nn.functional.cross_entropy(nn.Sequential(*rest)(y), part.labels)
    loss.backward()  # type: ignore[no-untyped-call]
    result = run_fit(model, part, plan)
    assert result.loss == pytest.approx(float(loss.detach()), abs=1e-6)
    for (name, trained), start in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert start.grad is not None
        torch.testing.assert_close(trained, start - 0.05 * start.grad, msg=name, rtol=1e-4, atol=1e-6)


class Shrink:
    """An objective that is none of this package's: the mean square of the outputs, whatever the labels."""

    def __init__(
        self, model: nn.Module, part: Any, plan: Plan, *, site: str, round_number: int, device: torch.device
    ) -> None:
        self.model, self.part, self.calls = model, part, [f"{site} {round_number} {model.training}"]

    def begin(self) -> None:
        self.calls.append("begin")

    def load(self, images: Sequence[torch.Tensor], indices: Sequence[int]) -> tuple[torch.Tensor, list[int]]:
        self.calls.append(f"load {len(images)}")
        return self.part.normalised(indices), list(indices)

    def loss(
        self, x_BCHW: torch.Tensor, target_B: torch.Tensor, weights_B: torch.Tensor | None, keys: list[int] | None
    ) -> torch.Tensor:
        assert keys is not None
        assert target_B.equal(self.part.labels[keys])
        assert weights_B is not None
        assert weights_B.tolist() == keys
        return self.model(x_BCHW).square().mean()  # type: ignore[no-any-return]

    def report(self) -> dict[str, float]:
        return {"calls": float(len(self.calls))}


def test_any_objective_can_be_minimised() -> None:
    """A round of three batches of eight: one step each along its own gradient, against a loop written out here."""
    part, made = Part(24), []
    plan = make_plan(optimizer={"lr": 0.05, "momentum": 0.0, "weight_decay": 0.0})
    model, expected = make_model(), make_model().train()

    def make(*arguments: Any, **options: Any) -> Shrink:
        made.append(Shrink(*arguments, **options))
        return made[0]

    result = run_fit(model, part, plan, 2, objective=make, image_weights=torch.arange(24.0))
    order, losses = make_rng(plan.seed, "site", 2, 0, "order").permutation(24).tolist(), []
    for first in (0, 8, 16):
        expected.zero_grad()
        loss = expected(part.normalised(order[first : first + 8])).square().mean()
        loss.backward()
        losses.append(float(loss.detach()))
        with torch.no_grad():
            for parameter in expected.parameters():
                assert parameter.grad is not None
                parameter.add_(parameter.grad, alpha=-0.05)
    assert_same(state(model), state(expected), atol=1e-6)
    assert result.loss == pytest.approx(sum(losses) / 3, abs=1e-6)
    assert [objective.calls for objective in made] == [["site 2 True", "begin", "load 8", "load 8", "load 8"]]
    assert result.told["calls"] == 5


def test_evaluate_gives_the_tables_of_the_logits() -> None:
    part, plan, model = Part(10), make_plan(), make_model().eval()
    with torch.no_grad():
        logits = model(part.normalised(range(10)))
    found = evaluate(model.train(), part, plan, group="site", device=CPU, batch_size=4)  # type: ignore[arg-type]
    expected = tables_from_logits(logits, part.labels, ["site"] * 10)
    assert found.groups == ("site",)
    np.testing.assert_array_equal(found.counts, expected.counts)
    pairs = set(zip(part.patients, part.labels.tolist(), strict=True))
    assert found.patients[0, :, 0].tolist() == [sum(label == k for _, label in pairs) for k in range(3)]
    assert len(pairs) < 10, "some patient has both images in one class"
    np.testing.assert_allclose(found.brier, expected.brier, atol=1e-6)


def test_logits_are_the_models_whatever_the_batches() -> None:
    part, plan, model = Part(10), make_plan(), make_model().eval()
    with torch.no_grad():
        expected = model(part.normalised(range(10)))
    for batch_size in (4, 128):
        found = compute_logits(model.train(), part, plan, device=CPU, batch_size=batch_size)  # type: ignore[arg-type]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        assert not found.requires_grad
    assert compute_logits(model, Part(0), plan, device=CPU).shape == (0, 3)  # type: ignore[arg-type]


def test_evaluate_of_an_empty_part_gives_empty_tables() -> None:
    tables = evaluate(make_model(), Part(0), make_plan(), group="site", device=CPU)  # type: ignore[arg-type]
    assert tables.num_images == 0


def test_model_without_finite_outputs_is_explained() -> None:
    model = make_model()
    with torch.no_grad():
        model[5].bias.fill_(float("inf"))  # type: ignore[index]
    with pytest.raises(TrainingError, match="outputs are no longer finite"):
        evaluate(model, Part(3), make_plan(), group="site", device=CPU)  # type: ignore[arg-type]


def test_missing_gpu_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert select_device("auto") == CPU
    with pytest.raises(TrainingError, match="PyTorch sees no GPU"):
        select_device("cuda")


def test_weights_of_images_scale_their_gradients() -> None:
    """One step over one batch: the gradient of sum_i v_i l_i / B, against autograd."""
    part, model = Part(8), make_model()
    weights = torch.tensor([0.0, 2.0, 1.0, 0.5, 3.0, 1.0, 0.25, 1.0])
    plan = make_plan(optimizer={"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0})
    expected = copy.deepcopy(model).train()
    logits = expected(part.normalised(range(8)))
    losses = nn.functional.cross_entropy(logits, part.labels, reduction="none")
    (weights * losses).mean().backward()
    result = fit(model, part, plan, site="a", round_number=1, device=CPU, image_weights=weights)
    assert result.loss == pytest.approx((weights * losses).mean().item(), rel=1e-5)
    for (name, trained), start in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert start.grad is not None
        torch.testing.assert_close(trained, start - 0.1 * start.grad, msg=name, rtol=1e-4, atol=1e-6)
