"""What is merged, what is left alone and why, and that the source is never touched."""

import copy
import time
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from fedmed.errors import ReparameterizationError
from fedmed.reparameterization import convert, find_places, reparameterize
from tests.reparameterization.support.networks import Bag, SmallNet, draw, randomize


def assert_equal_in_float64(model: nn.Module, fold_bn: bool, x: Tensor) -> nn.Module:
    model = randomize(model).double().eval()
    merged = reparameterize(model, fold_bn)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(merged(x), expected, rtol=0, atol=1e-11 * float(expected.abs().max()))
    return merged


def reasons(model: nn.Module, example: Tensor | None = None) -> dict[str, str]:
    return {place.name: place.reason for place in find_places(model, True, example=example) if not place.merged}


@pytest.mark.parametrize("fold_bn", [False, True])
def test_bags_are_merged_and_batch_norms_only_on_request(fold_bn: bool) -> None:
    model = SmallNet()
    merged = assert_equal_in_float64(model, fold_bn, draw(2, 3, 16, 16))
    assert type(merged.bag) is nn.Conv2d
    assert type(merged.bn1) is (nn.Identity if fold_bn else nn.BatchNorm2d)
    places = {place.name: place for place in find_places(model, fold_bn)}
    if fold_bn:
        assert {name: place.parts for name, place in places.items()} == {
            "bag": ("bag",),
            "conv1": ("conv1", "bn1"),
            "block.0": ("block.0", "block.1"),
        }
    else:
        assert [place.merged for place in places.values()] == [True, False, False]
        assert "fold_bn=True" in places["bn1"].reason


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fold_bn", [False, True])
def test_the_source_is_not_touched(training: bool, fold_bn: bool) -> None:
    model = randomize(SmallNet()).train(training)
    model.bn1.eval()
    model.fc.weight.requires_grad_(False)
    state = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    gradients = [parameter.requires_grad for parameter in model.parameters()]
    random = torch.get_rng_state()
    merged = reparameterize(model, fold_bn)
    assert all(value.equal(state[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == gradients
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in (*model.modules(), *merged.modules())
    )
    assert torch.get_rng_state().equal(random)
    own = {value.data_ptr() for value in model.state_dict().values()}
    assert not own & {value.data_ptr() for value in merged.state_dict().values()}


def test_deploy_form_is_for_inference_and_survives_train() -> None:
    merged = reparameterize(randomize(SmallNet()), True)
    assert not any(module.training for module in merged.modules())
    assert not any(parameter.requires_grad for parameter in merged.parameters())
    assert all(parameter.dtype == torch.float32 for parameter in merged.parameters())
    x = torch.randn(2, 3, 16, 16)
    expected = merged(x)
    assert merged.train()(x).equal(expected)


@pytest.mark.parametrize("fold_bn", [False, True])
def test_second_conversion_changes_nothing(fold_bn: bool) -> None:
    merged = reparameterize(randomize(SmallNet()), fold_bn)
    again = convert(merged, fold_bn)
    assert not any(place.merged for place in again.places) or not fold_bn
    state = again.model.state_dict()
    assert list(state) == list(merged.state_dict())
    assert all(value.equal(merged.state_dict()[name]) for name, value in state.items())


@pytest.mark.parametrize("fold_bn", [False, True])
@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, lambda net: nn.Sequential(nn.Sequential(net)), lambda net: net.half()]
)
def test_nesting_and_half_precision(fold_bn: bool, wrap: Callable[[nn.Module], nn.Module]) -> None:
    merged = reparameterize(wrap(randomize(SmallNet())), fold_bn)
    bag = next(module for name, module in merged.named_modules() if name.endswith("bag"))
    assert type(bag) is nn.Conv2d
    assert any(isinstance(module, nn.BatchNorm2d) for module in merged.modules()) is not fold_bn


def test_a_bag_alone_and_a_shared_bag() -> None:
    merged = assert_equal_in_float64(Bag(4), False, draw(1, 4, 5, 5))
    assert type(merged) is nn.Conv2d
    bag = Bag(4)
    merged = assert_equal_in_float64(nn.Sequential(bag, nn.ReLU(), bag), False, draw(1, 4, 5, 5))
    assert merged[0] is merged[2]


def test_a_bag_that_cannot_be_merged_stays() -> None:
    bag = Bag(4)
    bag.branches[1].norm = nn.GroupNorm(2, 4)
    (place, *_) = find_places(bag, True, example=torch.randn(1, 4, 5, 5))
    assert not place.merged
    assert "GroupNorm cannot be merged" in place.reason
    with pytest.raises(ReparameterizationError):
        bag.to_merged()


class Twice(nn.Module):
    """The convolution's output is used by the BatchNorm and once more."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> object:
        y = self.conv(x)
        if self.how == "changed in place":
            y.relu_()
        z = self.norm(y)
        ways = {
            "added": lambda: z + y,
            "returned": lambda: (z, y),
            "returned in a dict": lambda: {"a": [z, y]},
            "viewed": lambda: (z, y.flatten(1)),
            "norm twice": lambda: self.norm(z),
            "conv twice": lambda: (z, self.conv(x)),
            "weight read": lambda: z + self.conv.weight.sum(),
        }
        return ways.get(self.how, lambda: z)()


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("changed in place", "outside every watched layer"),
        ("added", "outside every watched layer"),
        ("viewed", "outside every watched layer"),
        ("returned", "the network's own result"),
        ("returned in a dict", "the network's own result"),
        ("norm twice", "ran more than once"),
        ("conv twice", "'conv' ran more than once"),
        ("weight read", "the parameters of 'conv' are read elsewhere too"),
    ],
)
def test_outputs_with_other_readers_stay(how: str, reason: str) -> None:
    model = randomize(Twice(how))
    assert reason in reasons(model)["norm"]
    merged = reparameterize(model, True)
    assert type(merged.norm) is nn.BatchNorm2d
    assert merged.conv.weight.equal(model.conv.weight)
    assert reasons(Twice("not at all")) == {}


KEPT = [
    ([nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)], 1, "GroupNorm normalises by statistics of its input"),
    ([nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4)], 1, "InstanceNorm2d normalises by"),
    ([nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)], 1, "no running statistics"),
    ([nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)], 2, "not the output of convolutions"),
    ([nn.ConvTranspose2d(3, 4, 1), nn.BatchNorm2d(4)], 1, "no seeded input"),
    ([nn.Conv2d(3, 3, 1), nn.ConvTranspose2d(3, 4, 1), nn.BatchNorm2d(4)], 2, "not the output of convolutions"),
    ([parametrizations.weight_norm(nn.Conv2d(3, 4, 1)), nn.BatchNorm2d(4)], 1, "is parametrized"),
    ([timm.layers.StdConv2d(3, 4, 1), nn.BatchNorm2d(4)], 1, "in a way of its own"),
    ([nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)], 0, "pads its output with zeros"),
    ([nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding="same")], 0, "pads its output with zeros"),
    ([timm.layers.BatchNormAct2d(3), nn.Conv2d(3, 4, 1)], 0, "an activation lies between"),
    ([nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)], 3, "not the output of convolutions"),
]


@pytest.mark.parametrize(("layers", "index", "reason"), KEPT)
def test_what_cannot_be_folded_stays(layers: list[nn.Module], index: int, reason: str) -> None:
    model = nn.Sequential(*layers)
    assert reason in reasons(model)[str(index)]
    assert type(reparameterize(model, True)[index]) is type(model[index])


def test_batch_norm_over_another_axis_than_the_layers_output_stays() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(3))
    assert "other dimensions" in reasons(model, torch.randn(2, 3, 3))["1"]


def test_shared_and_hooked_modules_stay() -> None:
    norm = nn.BatchNorm2d(3)
    shared = nn.Sequential(nn.Conv2d(3, 3, 1), norm, nn.Conv2d(3, 3, 1), norm)
    assert "ran more than once" in reasons(shared)["1"]
    tied = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 1))
    tied[3].weight = tied[0].weight
    assert "shares a tensor" in reasons(tied)["1"]
    hooked = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    hooked[0].register_forward_hook(lambda *_: None)
    assert "has hooks" in reasons(hooked)["1"]
    unused = nn.Sequential(nn.Conv2d(3, 3, 1))
    unused[0].extra = nn.BatchNorm2d(3)
    assert "did not run" in reasons(unused)["0.extra"]


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)), (5, 6)),
        (nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 4)), (5, 6)),
        (nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)), (2, 3, 9)),
        (nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6)), (2, 3, 9, 9)),
        (nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect")), (2, 3, 9, 9)),
        (nn.Sequential(timm.layers.create_conv2d(3, 4, 3, stride=2, padding="same"), nn.BatchNorm2d(4)), (2, 3, 9, 8)),
        (nn.Sequential(nn.Conv2d(3, 4, 1), timm.layers.BatchNormAct2d(4, act_layer=nn.GELU)), (2, 3, 9, 9)),
        (torchvision.ops.Conv2dNormActivation(3, 4), (2, 3, 9, 9)),
        (torchvision.models.shufflenet_v2_x0_5(num_classes=5), (2, 3, 32, 32)),
        (timm.create_model("mixnet_s", num_classes=5), (2, 3, 32, 32)),
    ],
)  # fmt: skip
def test_every_batch_norm_is_folded(model: nn.Module, shape: tuple[int, ...]) -> None:
    merged = assert_equal_in_float64(model, True, draw(*shape))
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in merged.modules())
    assert not any(isinstance(module, timm.layers.BatchNormAct2d) for module in merged.modules())


class Concatenated(nn.Module):
    """Two convolutions side by side under one BatchNorm."""

    def __init__(self, how: str = "") -> None:
        super().__init__()
        self.how = how
        self.a, self.b = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        y = torch.cat([a, b], dim=1)
        z = self.norm(y)
        if self.how == "part used":
            return z + a.sum()
        return z + y if self.how == "whole used" else z


def test_one_batch_norm_behind_several_convolutions() -> None:
    merged = assert_equal_in_float64(Concatenated(), True, draw(2, 3, 5, 5))
    assert type(merged.norm) is nn.Identity
    assert [place.channels for place in find_places(Concatenated(), True)] == [(0, 2), (2, 6)]
    for how in ("part used", "whole used"):
        assert "used elsewhere too" in reasons(Concatenated(how))["norm"]


def test_a_network_that_does_not_run_says_so() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            if x.shape[-1] != 20:
                raise ValueError("only 20 pixels")
            return self.norm(self.conv(x))

    assert "only 20 pixels" in reasons(Odd())["norm"]
    assert reasons(Odd(), torch.randn(1, 3, 20, 20)) == {}
    assert "no seeded input" in reasons(nn.Sequential(nn.BatchNorm2d(3)))["0"]


def test_conversion_is_fast() -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 1), *(Bag(64) for _ in range(100)))
    start = time.perf_counter()
    reparameterize(model)
    assert time.perf_counter() - start < 10.0  # "well under" a second per ten bags; a loaded machine is slow
