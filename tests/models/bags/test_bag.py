"""The bag against hand-counted figures, an independent merge in float64, and itself in its other forms."""

import copy
import io
import itertools
import math
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedmed.errors import ConfigError, ReparameterizationError
from fedmed.models.bags.bag import HeterogeneousPyramidConv2d as Bag
from fedmed.models.bags.parts import Affine, BagBranch
from fedmed.reparameterization import reparameterize

SIZES_357 = [
    *[(3, 1), (1, 3), (3, 1), (1, 3), (3, 3)],
    *[(5, 1), (1, 5), (5, 3), (3, 5), (5, 5)],
    *[(7, 1), (1, 7), (7, 5), (5, 7), (7, 7)],
]
COVERAGE = {
    (3,): [[1, 3, 1], [3, 5, 3], [1, 3, 1]],
    (3, 5): [[1, 2, 3, 2, 1], [2, 4, 7, 4, 2], [3, 7, 10, 7, 3], [2, 4, 7, 4, 2], [1, 2, 3, 2, 1]],
    (3, 5, 7): [
        [1, 2, 2, 3, 2, 2, 1],
        [2, 4, 5, 7, 5, 4, 2],
        [2, 5, 7, 11, 7, 5, 2],
        [3, 7, 11, 15, 11, 7, 3],
        [2, 5, 7, 11, 7, 5, 2],
        [2, 4, 5, 7, 5, 4, 2],
        [1, 2, 2, 3, 2, 2, 1],
    ],
}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def disturb(bag: nn.Module) -> nn.Module:
    """Give every norm what training may leave: the distribution of the specification's measurements."""
    for branch in bag.modules():
        if isinstance(branch, BagBranch):
            branch.norm.weight.uniform_(0.6, 1.4)
            branch.norm.bias.normal_(std=0.2)
            if isinstance(branch.norm, nn.BatchNorm2d):
                branch.norm.running_mean.normal_(std=0.3)
                branch.norm.running_var.uniform_(0.25, 1.75)
    return bag


def make(*args: object, double: bool = False, **options: object) -> Bag:
    bag = disturb(Bag(*args, **options)).eval()
    return bag.double() if double else bag


def by_branches(bag: Bag, x: Tensor) -> Tensor:
    """Evaluate without any of the bag's own ways."""
    return sum(branch.norm(branch.conv(x)) for branch in bag.branches)


@torch.no_grad()
def merge_by_hand(bag: Bag) -> tuple[Tensor, Tensor]:
    """Pad and add, one output channel and one branch at a time."""
    side = bag.levels[-1]
    weight = torch.zeros(bag.out_channels, bag.in_channels // bag.groups, side, side, dtype=torch.float64)
    bias = torch.zeros(bag.out_channels, dtype=torch.float64)
    for branch, channel in itertools.product(bag.branches, range(bag.out_channels)):
        kernel, norm = branch.conv.weight.detach().double()[channel], branch.norm
        a = float(norm.weight[channel]) / math.sqrt(float(norm.running_var[channel]) + norm.eps)
        height, width = kernel.shape[1:]
        top, left = (side - height) // 2, (side - width) // 2
        weight[channel, :, top : top + height, left : left + width] += a * kernel
        bias[channel] += float(norm.bias[channel]) - a * float(norm.running_mean[channel])
    return weight, bias


@pytest.mark.parametrize(
    ("levels", "trained", "merged"),
    [((3,), 31, 10), ((5,), 75, 26), ((7,), 143, 50), ((3, 5), 106, 26), ((3, 5, 7), 249, 50)],
)
def test_numbers_per_channel(levels: tuple[int, ...], trained: int, merged: int) -> None:
    bag = Bag(6, 6, levels)
    assert count(bag) == 6 * trained
    assert count(bag.to_merged()) == 6 * merged
    taps = sum(3 * k * k - 2 * k for k in levels)
    assert sum(row["taps"] for row in bag.branch_table()) == taps == trained - 2 * len(bag.branches)


def test_branches_and_their_order() -> None:
    bag = Bag(4, 8, (7, 3, 5), stride=2)
    assert bag.levels == (3, 5, 7)
    assert [branch.conv.kernel_size for branch in bag.branches] == SIZES_357
    assert [row["kernel"] for row in bag.branch_table()] == SIZES_357
    assert [row["level"] for row in bag.branch_table()] == [3] * 5 + [5] * 5 + [7] * 5
    for branch in bag.branches:
        assert branch.conv.padding == tuple(side // 2 for side in branch.conv.kernel_size)
        assert (branch.conv.stride, branch.conv.groups, branch.conv.bias) == ((2, 2), 4, None)
        assert (branch.norm.momentum, branch.norm.eps) == (0.01, 1e-5)
    assert "levels=(3, 5, 7)" in repr(bag)
    families = [branch.conv.kernel_size for branch in Bag(2, 2, (3, 5), families=["square", "strip"]).branches]
    assert families == [(3, 1), (1, 3), (3, 3), (5, 1), (1, 5), (5, 5)]


def test_state_dict_has_fixed_keys() -> None:
    keys = list(Bag(2, 2).state_dict())
    parts = ["conv.weight", *(f"norm.{n}" for n in ("weight", "bias", "running_mean", "running_var"))]
    assert keys == [f"branches.{i}.{part}" for i in range(15) for part in (*parts, "norm.num_batches_tracked")]
    assert list(Bag(2, 2, form="reference").state_dict()) == keys
    assert list(Bag(2, 2, (7, 5, 3)).state_dict()) == keys
    affine = list(Bag(2, 2, norm="affine").state_dict())
    assert affine == [f"branches.{i}.{part}" for i in range(15) for part in parts[:3]]


@pytest.mark.parametrize("levels", COVERAGE)
def test_coverage(levels: tuple[int, ...]) -> None:
    bag = Bag(3, 3, levels).eval()
    with torch.no_grad():
        for branch in bag.branches:
            branch.conv.weight.fill_(1)
            branch.norm.running_var.fill_(1 - branch.norm.eps)
    weight, bias = bag.equivalent_kernel()
    # float32 has no 1 - 1e-5, so that the scales are 1 up to 3e-8.
    torch.testing.assert_close(weight[0, 0], torch.tensor(COVERAGE[levels]).double(), rtol=1e-7, atol=0)
    assert torch.equal(weight.round(), torch.tensor(COVERAGE[levels]).double().expand(3, 1, -1, -1))
    assert int(weight[0].round().sum()) == {(3,): 21, (3, 5): 86, (3, 5, 7): 219}[levels]
    assert torch.equal(bias, torch.zeros(3).double())


@pytest.mark.parametrize("levels", COVERAGE)
@pytest.mark.parametrize("size", [(56, 56), (7, 7), (15, 14), (3, 3), (1, 1), (2, 5)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [None, 1])
def test_merged_equals_branches(
    groups: int | None, stride: int, size: tuple[int, int], levels: tuple[int, ...]
) -> None:
    for dtype, rtol, atol in ((torch.float32, 1e-5, 1e-4), (torch.float64, 0, 1e-12)):
        bag = make(6, 6, levels, stride, groups, double=dtype is torch.float64)
        x = torch.randn(2, 6, *size, dtype=dtype)
        with torch.no_grad():
            expected = by_branches(bag, x)
            assert expected.shape == (2, 6, math.ceil(size[0] / stride), math.ceil(size[1] / stride))
            torch.testing.assert_close(bag.to_merged()(x), expected, rtol=rtol, atol=atol)
            torch.testing.assert_close(bag(x), expected, rtol=rtol, atol=atol)
            last = bag(x.to(memory_format=torch.channels_last))
            torch.testing.assert_close(last, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize(("channels", "groups"), [((4, 8), 4), ((6, 9), 3), ((4, 6), 2), ((5, 3), 1)])
@pytest.mark.parametrize("families", [["strip"], ["rect"], ["square"], ["strip", "square"]])
@pytest.mark.parametrize("norm", ["bn", "affine"])
def test_other_groups_and_families(channels: tuple[int, int], groups: int, families: list[str], norm: str) -> None:
    bag = make(*channels, (3, 7), 2, groups, families=families, norm=norm, double=True)
    x = torch.randn(1, channels[0], 9, 10, dtype=torch.float64)
    merged = bag.to_merged()
    assert (merged.kernel_size, merged.padding, merged.stride, merged.groups) == ((7, 7), (3, 3), (2, 2), groups)
    torch.testing.assert_close(merged(x), by_branches(bag, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("arguments", [(4, 4), (4, 8, (3, 9)), (4, 6, (5, 7), 1, 2)])
def test_kernel_against_hand_made_merge(arguments: tuple[int, ...]) -> None:
    bag = make(*arguments)
    for found, expected in zip(bag.equivalent_kernel(), merge_by_hand(bag), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kept", range(15))
def test_one_branch_alone(kept: int) -> None:
    bag = make(2, 2)
    with torch.no_grad():
        for index, branch in enumerate(bag.branches):
            if index != kept:
                branch.norm.weight.zero_()
                branch.norm.bias.zero_()
    weight, bias = bag.equivalent_kernel()
    norm, kernel = bag.branches[kept].norm, bag.branches[kept].conv.weight.double()
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    height, width = SIZES_357[kept]
    inside = weight[:, :, 3 - height // 2 : 4 + height // 2, 3 - width // 2 : 4 + width // 2]
    torch.testing.assert_close(inside, scale[:, None, None, None] * kernel)
    assert weight.count_nonzero() == inside.count_nonzero()
    torch.testing.assert_close(bias, norm.bias.double() - scale * norm.running_mean.double())


def test_impulse_response() -> None:
    bag = make(3, 3, double=True)
    delta = torch.zeros(1, 3, 7, 7, dtype=torch.float64)
    delta[:, :, 3, 3] = 1
    weight, bias = bag.equivalent_kernel()
    response = by_branches(bag, delta)[0]
    torch.testing.assert_close(response, weight[:, 0].flip(1, 2) + bias[:, None, None], rtol=0, atol=1e-12)


def test_merging_is_gradient_true() -> None:
    bag = make(2, 2, (3, 5), double=True)
    x = torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    mix = torch.randn(2, 2, 5, 4, dtype=torch.float64)
    inputs = [x, *bag.parameters()]
    expected = torch.autograd.grad((by_branches(bag, x) * mix).sum(), inputs)
    found = torch.autograd.grad((bag(x) * mix).sum(), inputs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_merging_changes_nothing() -> None:
    bag = disturb(Bag(4, 4)).train()
    before = copy.deepcopy(bag.state_dict())
    state = torch.get_rng_state()
    merged = bag.to_merged()
    assert torch.equal(torch.get_rng_state(), state)
    assert bag.training
    assert all(parameter.requires_grad for parameter in bag.parameters())
    assert all(torch.equal(value, before[key]) for key, value in bag.state_dict().items())
    assert not merged.training
    assert not any(parameter.requires_grad for parameter in merged.parameters())
    assert all(parameter.is_leaf for parameter in merged.parameters())
    again = bag.to_merged()
    assert again is not merged
    assert torch.equal(again.weight, merged.weight)
    assert copy.deepcopy(bag).double().to_merged().weight.dtype == torch.float64
    assert Bag(2, 2).to("meta").to_merged().weight.is_meta


def test_after_real_steps_and_a_round_trip() -> None:
    bag = Bag(4, 4, form="reference", bn_momentum=0.1)
    optimizer = torch.optim.SGD(bag.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        functional.mse_loss(bag(1 + torch.randn(8, 4, 9, 9)), torch.ones(8, 4, 9, 9)).backward()
        optimizer.step()
    file = io.BytesIO()
    torch.save(bag.state_dict(), file)
    file.seek(0)
    other = Bag(4, 4)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(2, 4, 9, 9)
    with torch.no_grad():
        expected = by_branches(bag.eval(), x)
        torch.testing.assert_close(other.eval()(x), expected, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(reparameterize(other)(x), expected, rtol=1e-5, atol=1e-4)


def test_merging_and_averaging_do_not_commute() -> None:
    bags = [make(8, 8) for _ in range(2)]
    mean = Bag(8, 8)
    states = [bag.state_dict() for bag in bags]
    mean.load_state_dict({key: (states[0][key] + states[1][key]) / 2 for key in states[0]})
    right, wrong = mean.to_merged().weight, (bags[0].to_merged().weight + bags[1].to_merged().weight) / 2
    assert (right - wrong).norm() > 0.01 * wrong.norm()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"levels": (3, 4)}, "odd numbers from 3"),
        ({"levels": (1, 3)}, "odd numbers from 3"),
        ({"levels": ()}, "odd numbers from 3"),
        ({"levels": 3}, "odd numbers from 3"),
        ({"levels": "357"}, "odd numbers from 3"),
        ({"levels": (3.0,)}, "odd numbers from 3"),
        ({"levels": (3, 5, 3)}, "each level once"),
        ({"families": ["cross"]}, "strip, rect, square"),
        ({"families": []}, "strip, rect, square"),
        ({"norm": "group"}, "Allowed: bn, affine"),
        ({"form": "quick"}, "Allowed: auto, fast, reference"),
        ({"bn_momentum": 0}, "above 0"),
        ({"bn_momentum": 1.5}, "at most 1"),
        ({"bn_eps": -1}, "above 0"),
        ({"gamma_init": 0}, "above 0"),
        ({"stride": 0}, "'stride' is 0"),
        ({"stride": (1, 2)}, "'stride' is"),
        ({"groups": 3}, "a divisor of 'in_channels', 4"),
        ({"out_channels": 6}, "a divisor of 'out_channels', 6"),
        ({"allow_repeated": 1}, "true, false"),
    ],
)
def test_bad_settings(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Bag(**{"in_channels": 4, "out_channels": 4, **options})
    assert words in str(caught.value)


def test_repeated_levels_on_request() -> None:
    bag = make(2, 2, (3, 3), allow_repeated=True, double=True)
    assert len(bag.branches) == 10
    x = torch.randn(1, 2, 4, 4).double()
    torch.testing.assert_close(bag.to_merged()(x), by_branches(bag, x), rtol=0, atol=1e-12)


def test_merge_in_train_mode_is_refused_on_request() -> None:
    bag = Bag(2, 2)
    bag.to_merged()
    with pytest.raises(ReparameterizationError, match="train mode"):
        bag.to_merged(strict_eval=True)
    bag.eval().to_merged(strict_eval=True)


@pytest.mark.parametrize(
    "norm", [nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False)]
)
def test_norms_that_see_their_input_are_not_merged(norm: nn.Module) -> None:
    bag = make(4, 4, (3,))
    bag.branches[2].norm = norm.eval()
    with pytest.raises(ReparameterizationError, match="cannot be merged"):
        bag.to_merged()
    x = torch.randn(2, 4, 5, 5)
    for train in (False, True):
        bag.train(train)
        torch.testing.assert_close(bag(x), by_branches(bag, x))


def test_derived_batch_norms_are_not_merged() -> None:
    class Activated(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return functional.relu(super().forward(x))

    bag = make(4, 4, (3,))
    bag.branches[0].norm = Activated(4).eval()
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(bag(x), by_branches(bag, x))
    with pytest.raises(ReparameterizationError, match="Activated"):
        bag.to_merged()


@pytest.mark.parametrize("form", ["auto", "reference"])
@pytest.mark.parametrize("stride", [1, 2])
def test_one_position_has_no_statistics(form: str, stride: int) -> None:
    bag = Bag(4, 4, stride=stride, form=form)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        bag(torch.randn(1, 4, 1, 1))
    bag(torch.randn(2, 4, 1, 1))
    assert bag.eval()(torch.randn(1, 4, 1, 1)).shape == (1, 4, 1, 1)


@pytest.mark.parametrize(("gamma", "std"), [(1.0, math.sqrt(15)), (1 / math.sqrt(15), 1.0)])
def test_standard_deviation_at_the_start(gamma: float, std: float) -> None:
    y = Bag(64, 64, gamma_init=gamma)(torch.randn(4, 64, 24, 24))
    assert float(y.detach().std()) == pytest.approx(std, rel=0.1)


def test_affine_trains_as_branches_do() -> None:
    bag = make(4, 4, (3, 5), norm="affine", double=True).train()
    reference = copy.deepcopy(bag)
    x = torch.randn(1, 4, 3, 3).double()
    bag(x).square().sum().backward()
    by_branches(reference, x).square().sum().backward()
    for one, other in zip(bag.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-10, atol=1e-10)
    assert isinstance(bag.branches[0].norm, Affine)


def test_images_do_not_see_each_other_in_eval() -> None:
    bag, x = make(4, 4), torch.randn(3, 4, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(bag(x), torch.cat([bag(image[None]) for image in x]), rtol=1e-5, atol=1e-5)


class TestKeptKernel:
    """Evaluation keeps the merged kernel until something that it was made of changes."""

    @staticmethod
    def check(bag: Bag, x: Tensor) -> None:
        with torch.no_grad():
            torch.testing.assert_close(bag(x), by_branches(bag, x), rtol=1e-5, atol=1e-4)

    def test_it_is_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        bag, x = make(4, 4), torch.randn(1, 4, 6, 6)
        self.check(bag, x)
        monkeypatch.setattr(bag, "equivalent_kernel", None)
        self.check(bag, x)
        bag.requires_grad_(False)
        assert bag(x.requires_grad_()).requires_grad
        with torch.inference_mode():
            bag(torch.randn(1, 4, 6, 6))
        bag.requires_grad_(True)
        with pytest.raises(TypeError):
            bag(x)

    def test_changes_are_noticed(self) -> None:
        bag, x = make(4, 4), torch.randn(1, 4, 6, 6)
        self.check(bag, x)
        with torch.no_grad():
            bag.branches[3].conv.weight.mul_(2)
            self.check(bag, x)
            bag.branches[14].norm.running_mean += 1
            self.check(bag, x)
            bag.branches[0].norm.running_var = torch.full((4,), 9.0)
            self.check(bag, x)
            bag.branches[1].norm.bias = nn.Parameter(torch.ones(4))
            self.check(bag, x)
        bag.load_state_dict(make(4, 4).state_dict())
        self.check(bag, x)
        bag.load_state_dict(make(4, 4).state_dict(), assign=True)
        self.check(bag, x)
        for parameter in bag.parameters():
            parameter.data = torch.randn_like(parameter)
        self.check(bag, x)
        bag.double().half().float()
        self.check(bag, x)
        self.check(bag.double(), x.double())
        bag.float().train()
        bag(torch.randn(4, 4, 6, 6))
        self.check(bag.eval(), x)

    def test_optimizer_steps_in_eval_mode_are_noticed(self) -> None:
        bag, x = make(4, 4), torch.randn(1, 4, 6, 6)
        optimizer = torch.optim.SGD(bag.parameters(), lr=0.1)
        for _ in range(2):
            self.check(bag, x)
            optimizer.zero_grad()
            bag(x).square().sum().backward()
            optimizer.step()
        self.check(bag, x)

    def test_it_does_not_travel(self) -> None:
        bag, x = make(4, 4), torch.randn(1, 4, 6, 6)
        keys = list(bag.state_dict())
        size = len(pickle.dumps(bag))
        self.check(bag, x)
        assert list(bag.state_dict()) == keys
        assert len(pickle.dumps(bag)) == size
        twin = copy.deepcopy(bag)
        self.check(twin, x)
        with torch.no_grad():
            twin.branches[0].conv.weight.zero_()
        self.check(twin, x)
        self.check(bag, x)
        self.check(pickle.loads(pickle.dumps(bag)), x)

    def test_made_under_inference_mode_it_serves_gradients(self) -> None:
        bag = make(4, 4).requires_grad_(False)
        with torch.inference_mode():
            bag(torch.randn(1, 4, 6, 6))
        x = torch.randn(1, 4, 6, 6, requires_grad=True)
        bag(x).sum().backward()
        assert x.grad is not None
        with torch.inference_mode():
            inside = make(4, 4)
            self.check(inside, torch.randn(1, 4, 6, 6))


def test_norms_in_another_mode_are_evaluated_as_they_stand() -> None:
    x = torch.randn(4, 4, 6, 6)
    for train in (True, False):
        bag = disturb(Bag(4, 4).train(train))
        for branch in bag.branches:
            branch.norm.train(not train)
        twin = copy.deepcopy(bag)
        torch.testing.assert_close(bag(x), by_branches(twin, x), rtol=1e-5, atol=1e-4)
        for key, value in bag.state_dict().items():
            torch.testing.assert_close(value, twin.state_dict()[key])
        bag.branches[0].norm.train(train)
        torch.testing.assert_close(bag(x), by_branches(bag, x), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("train", [True, False])
def test_hooks_on_branches_are_called(train: bool) -> None:
    bag, seen = Bag(4, 4).train(train), []
    for branch in bag.branches:
        branch.conv.register_forward_hook(lambda module, inputs, output: seen.append(module))
    bag(torch.randn(2, 4, 6, 6))
    assert len(seen) == 15


def test_compiles_and_exports_in_both_forms() -> None:
    bag = make(4, 4, (3, 5))
    module = nn.Sequential(bag, nn.ReLU6(), bag.to_merged())
    x = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=9)},))
        torch.testing.assert_close(program.module()(x), module(x), rtol=1e-5, atol=1e-4)
        compiled = torch.compile(module, backend="eager")
        for _ in range(2):
            torch.testing.assert_close(compiled(x), module(x), rtol=1e-5, atol=1e-4)
            bag.branches[0].conv.weight.mul_(3)
