"""The fast form of the bag in train mode against the sum of its branches: the same numbers, and the same state."""

import copy
import io

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedmed.models import create_model
from fedmed.models.bags import bag as bag_module
from fedmed.models.bags.bag import HeterogeneousPyramidConv2d as Bag
from fedmed.native import VARIABLE
from tests.models.bags.test_bag import by_branches, disturb

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


@pytest.fixture(params=["0", "1"], ids=["torch", "native"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run with and without the native kernels; where none are built, the pure form runs twice."""
    monkeypatch.setenv(VARIABLE, request.param)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the evaluations in the fast form."""
    seen = []

    def fast(*args: object, **options: object) -> object:
        seen.append(1)
        return fast_bag(*args, **options)

    fast_bag = bag_module.fast_bag
    monkeypatch.setattr(bag_module, "fast_bag", fast)
    return seen


def step(bag: Bag, x: Tensor) -> dict[str, Tensor]:
    """Return output and gradients of one batch."""
    x = x.clone().requires_grad_()
    y = bag(x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    (y * weights).sum().backward()
    gradients = {key: parameter.grad for key, parameter in bag.named_parameters()}
    return {"y": y.detach(), "x": x.grad, **gradients}


def check_equal(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        # BatchNorm makes scale and shift of a kernel immaterial, so that some gradients are 0 but for rounding.
        error, scale = (found[key] - value).abs().max(), value.abs().max()
        assert error <= tolerance * max(scale, 0.1), f"{key}: {error} of {scale}"


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("levels", "shape"),
    [
        ((3, 5, 7), (3, 5, 8, 8)),
        ((3, 5, 7), (2, 17, 15, 14)),
        ((3, 5, 7), (4, 3, 3, 6)),
        ((3, 5, 7), (8, 4, 1, 1)),
        ((3, 5, 7), (2, 2, 33, 21)),
        ((3,), (2, 6, 9, 7)),
        ((5,), (2, 3, 9, 7)),
        ((3, 7), (2, 3, 11, 12)),
        ((3, 5, 7, 9), (2, 3, 10, 13)),
        ((3, 5, 7, 9, 11), (2, 3, 14, 11)),
    ],
)
@pytest.mark.usefixtures("kernels")
def test_one_layer(
    levels: tuple[int, ...], shape: tuple[int, ...], stride: int, dtype: torch.dtype, runs: list[int]
) -> None:
    channels = shape[1]
    fast = disturb(Bag(channels, channels, levels, stride, form="fast", bn_momentum=0.1).to(dtype))
    reference = Bag(channels, channels, levels, stride, form="reference", bn_momentum=0.1).to(dtype)
    reference.load_state_dict(fast.state_dict())
    x = functional.relu6(2 * torch.randn(shape, dtype=dtype))
    check_equal(step(fast, x), step(reference, x), TOLERANCE[dtype])
    assert len(runs) == 1
    states = fast.state_dict(), reference.state_dict()
    assert list(states[0]) == list(states[1])
    check_equal(*({key: value.double() for key, value in state.items()} for state in states), TOLERANCE[dtype])


@pytest.mark.parametrize("families", [["strip"], ["rect"], ["square"]])
def test_single_families(families: list[str], runs: list[int]) -> None:
    fast = disturb(Bag(4, 4, families=families, form="fast").double())
    reference = copy.deepcopy(fast)
    reference.form = "reference"
    x = torch.randn(2, 4, 9, 9).double()
    check_equal(step(fast, x), step(reference, x), 1e-9)
    assert len(runs) == 1


def test_channels_last_and_strided_inputs(runs: list[int]) -> None:
    reference = disturb(Bag(6, 6, form="reference").double())
    x = torch.randn(4, 12, 9, 9).double()[:, ::2]
    for view in (x, x.contiguous(), x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3)):
        fast, other = copy.deepcopy(reference), copy.deepcopy(reference)
        fast.form = "fast"
        check_equal(step(fast, view), step(other, view), 1e-9)
    assert len(runs) == 4


def test_cumulative_statistics(runs: list[int]) -> None:
    fast = Bag(3, 3, (3, 5), form="fast").double()
    for branch in fast.branches:
        branch.norm.momentum = None
    reference = copy.deepcopy(fast)
    reference.form = "reference"
    with torch.no_grad():
        for _ in range(3):
            x = torch.randn(2, 3, 6, 6).double()
            fast(x)
            reference(x)
    assert len(runs) == 3
    for key, value in reference.state_dict().items():
        torch.testing.assert_close(fast.state_dict()[key], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((4, 8), {}),
        ((4, 4, (3,), 1, 2), {}),
        ((4, 4, (3,), 3), {}),
        ((4, 4, (3, 13)), {}),
        ((4, 4), {"form": "reference"}),
    ],
)
def test_elsewhere_the_branches_are_evaluated(
    arguments: tuple[int, ...], options: dict[str, str], runs: list[int]
) -> None:
    bag = disturb(Bag(*arguments, **{"form": "fast", **options}))
    x = torch.randn(2, 4, 9, 9)
    torch.testing.assert_close(bag(x), by_branches(bag, x))
    assert not runs


@pytest.mark.parametrize("change", ["derived", "eps", "frozen", "statistics"])
def test_unusual_norms_are_evaluated_as_they_stand(change: str, runs: list[int]) -> None:
    bag = disturb(Bag(4, 4, (3,), form="fast"))
    norm = bag.branches[1].norm
    if change == "derived":
        bag.branches[1].norm = type("Derived", (nn.BatchNorm2d,), {})(4)
    elif change == "eps":
        norm.eps = 1e-3
    elif change == "frozen":
        norm.eval()
    else:
        bag.branches[1].norm = nn.BatchNorm2d(4, track_running_stats=False)
    x = torch.randn(2, 4, 9, 9)
    torch.testing.assert_close(bag(x), by_branches(bag, x))
    assert not runs


@pytest.mark.parametrize("first", ["fast", "reference"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast(first: str, dtype: torch.dtype) -> None:
    """Autocast changes neither what comes out, up to its own precision, nor the statistics of the fast form."""
    bag = disturb(Bag(8, 8, form=first))
    twin, x = copy.deepcopy(bag), torch.randn(4, 8, 12, 12).to(dtype)
    expected = by_branches(twin, x.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = bag(x)
        frozen = copy.deepcopy(bag).eval()(x)
    assert y.dtype == frozen.dtype == torch.bfloat16
    assert (y - expected).norm() < 0.02 * expected.norm()
    if first == "fast":
        for key, value in twin.state_dict().items():
            torch.testing.assert_close(bag.state_dict()[key], value, rtol=1e-5, atol=1e-5)
    y.float().square().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in bag.parameters())


def test_copies_and_checkpoints_of_a_trained_bag() -> None:
    bag, x = Bag(4, 4, form="fast"), torch.randn(2, 4, 8, 8)
    bag(x).sum().backward()
    file = io.BytesIO()
    torch.save(bag, file)
    file.seek(0)
    other = Bag(4, 4, form="reference")
    other.load_state_dict(bag.state_dict())
    for twin in (copy.deepcopy(bag), torch.load(file, weights_only=False), other):
        torch.testing.assert_close(twin.eval()(x), by_branches(copy.deepcopy(bag).eval(), x), rtol=1e-5, atol=1e-5)


def test_images_without_gradient() -> None:
    bags = [Bag(4, 4, form=form) for form in ("fast", "reference")]
    bags[1].load_state_dict(bags[0].state_dict())
    x = torch.randn(2, 4, 8, 8)
    for bag in bags:
        bag.branches[0].requires_grad_(False)
        bag(x).square().sum().backward()
        assert bag.branches[0].conv.weight.grad is None
    gradients = [bag.branches[14].conv.weight.grad for bag in bags]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-3)


def step_of_a_network(dtype: torch.dtype, width_mult: float, side: int) -> dict[str, list[Tensor]]:
    """Return loss, all gradients and state of one batch, fast and branch by branch."""
    options = {"width_mult": width_mult, "bn_momentum": 0.1}
    models = [create_model("mobilenet_v2_erohprf", 5, form=form, **options).to(dtype) for form in ("fast", "reference")]
    models[1].load_state_dict(models[0].state_dict())
    x, target = torch.randn(8, 3, side, side, dtype=dtype), torch.arange(8) % 5
    found: dict[str, list[Tensor]] = {"loss": [], "gradient": [], "state": []}
    for model in models:
        loss = functional.cross_entropy(model(x), target)
        loss.backward()
        found["loss"].append(loss.detach())
        found["gradient"].append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        found["state"].append(torch.cat([value.flatten() for value in model.state_dict().values()]))
    return found


def test_one_step_of_a_whole_network_in_float64(runs: list[int]) -> None:
    for fast, reference in step_of_a_network(torch.float64, 0.1, 32).values():
        assert (fast - reference).norm() <= 1e-9 * reference.norm()
    assert len(runs) == 17


@pytest.mark.usefixtures("kernels")
def test_one_step_of_a_whole_network_in_float32(runs: list[int]) -> None:
    """Gradients may differ where rounding moves a value across a kink of ReLU6, as between any two computations."""
    found = step_of_a_network(torch.float32, 0.25, 64)
    assert len(runs) == 17
    for key, tolerance in {"loss": 1e-4, "gradient": 0.05, "state": 1e-4}.items():
        fast, reference = found[key]
        assert (fast - reference).norm() <= tolerance * reference.norm(), key


@pytest.mark.slow
def test_one_step_of_the_full_network(runs: list[int]) -> None:
    for fast, reference in step_of_a_network(torch.float64, 1.0, 32).values():
        assert (fast - reference).norm() <= 1e-9 * reference.norm()
    assert len(runs) == 17
