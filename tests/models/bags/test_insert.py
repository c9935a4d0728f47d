"""Bags in networks of others: which convolutions are found, what stays, and that the rest is as before."""

import copy

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from fedmed.errors import ConfigError
from fedmed.models.bags.bag import HeterogeneousPyramidConv2d as Bag
from fedmed.models.bags.insert import ConvolutionPlace, convert_depthwise, find_places, levels_up_to_kernel
from fedmed.reparameterization import reparameterize
from tests.models.bags.test_bag import disturb


def bags_of(model: nn.Module) -> list[Bag]:
    return [module for module in model.modules() if isinstance(module, Bag)]


def is_spatial(_name: str, convolution: nn.Conv2d) -> bool:
    return convolution.kernel_size == (3, 3)


@pytest.mark.parametrize(
    ("library", "name", "num_places"),
    [
        ("torchvision", "mobilenet_v2", 17),
        ("torchvision", "mobilenet_v3_small", 11),
        ("torchvision", "efficientnet_b0", 16),
        ("torchvision", "mnasnet0_5", 17),
        ("torchvision", "shufflenet_v2_x1_0", 19),
        ("timm", "mobilenetv3_small_050", 11),
        ("timm", "ghostnet_050", 41),
        ("timm", "tf_mixnet_s", 43),  # pads as TensorFlow does, in a derived convolution
        ("timm", "lcnet_035", 13),
        ("timm", "repvit_m0_9", 26),
    ],
)
def test_depthwise_networks(library: str, name: str, num_places: int) -> None:
    with torch.device("meta"):
        if library == "timm":
            model = timm.create_model(name, num_classes=3)
        else:
            model = getattr(torchvision.models, name)(num_classes=3)
    convolutions = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    depthwise = {n for n, c in convolutions.items() if c.groups == c.in_channels > 1 and c.kernel_size != (1, 1)}
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    places, refused = find_places(model)
    assert not refused
    assert {name for place in places for name in place.convolutions} == depthwise
    assert len(depthwise) == num_places
    assert convert_depthwise(model, (3,)) is model
    bags = bags_of(model)
    assert [(bag.in_channels, bag.stride) for bag in bags] == [
        (convolution.in_channels, convolution.stride[0])
        for name, convolution in convolutions.items()
        if name in depthwise
    ]
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == norms - len(places) + 5 * len(bags)
    assert model.eval()(torch.empty(2, 3, 65, 97, device="meta")).shape == (2, 3)


def test_activation_inside_the_norm_stays() -> None:
    model = timm.create_model("mobilenetv2_035", num_classes=3)
    (place,) = [place for place in find_places(model)[0] if place.convolutions == ("blocks.1.0.conv_dw",)]
    assert place == ConvolutionPlace(("blocks.1.0.conv_dw",), "blocks.1.0.bn2")
    activation = model.blocks[1][0].bn2.act
    convert_depthwise(model, (3, 5))
    assert model.blocks[1][0].bn2 is activation
    assert isinstance(activation, nn.ReLU6)
    first = torchvision.models.mobilenet_v2()
    convert_depthwise(first, (3, 5))
    assert isinstance(first.features[2].conv[1][1], nn.Identity)
    assert isinstance(first.features[2].conv[1][2], nn.ReLU6)


def test_the_rest_of_the_network_is_as_before() -> None:
    """A bag whose only branch is the old kernel with the old BatchNorm gives the old network."""
    model = torchvision.models.mobilenet_v2(num_classes=3, width_mult=0.25)
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_mean.normal_(std=0.1)
        norm.running_var.uniform_(0.5, 1.5)
    model.eval()
    before = copy.deepcopy(model)
    places, _ = find_places(model)
    convert_depthwise(model, (3,), families=["square"])
    for place in places:
        (name,) = place.convolutions
        branch = model.get_submodule(name).branches[0]
        branch.conv.load_state_dict(before.get_submodule(name).state_dict())
        branch.norm.load_state_dict(before.get_submodule(place.norm).state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), before(x), rtol=1e-4, atol=1e-5)
    others = [key for key in model.state_dict() if ".branches." not in key]
    assert all(torch.equal(model.state_dict()[key], before.state_dict()[key]) for key in others)


def test_mixed_convolutions_follow_their_kernels() -> None:
    with torch.device("meta"):
        model = timm.create_model("mixnet_s")
    mixed = next(place for place in find_places(model)[0] if len(place.convolutions) == 5)
    assert mixed.convolutions == tuple(f"blocks.5.0.conv_dw.{index}" for index in range(5))
    convert_depthwise(model, levels_up_to_kernel)
    assert [bag.levels[-1] for bag in model.blocks[5][0].conv_dw.children()] == [3, 5, 7, 9, 11]


def test_dense_bags_in_resnet() -> None:
    """A 3x3 convolution with BatchNorm, 9 IO + 2 O, becomes 21 IO + 10 O."""
    with torch.device("meta"):
        model, plain = torchvision.models.resnet18(num_classes=7), torchvision.models.resnet18(num_classes=7)
    convert_depthwise(model, (3,), is_spatial)
    bags = bags_of(model)
    assert len(bags) == 16
    assert {bag.groups for bag in bags} == {1}
    pairs = [(bag.in_channels, bag.out_channels) for bag in bags]
    assert sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in plain.parameters()) == sum(
        12 * i * o + 8 * o for i, o in pairs
    )
    with torch.device("meta"):
        wide = convert_depthwise(torchvision.models.resnext50_32x4d(), (3,), is_spatial)
    assert {bag.groups for bag in bags_of(wide)} == {32}


def test_dense_resnet_deploys() -> None:
    model = torchvision.models.resnet18(num_classes=3)
    convert_depthwise(model, (3,), lambda name, c: is_spatial(name, c) and name.startswith("layer1"))
    disturb(model).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(reparameterize(model)(x), model(x), rtol=1e-4, atol=1e-4)


def test_bags_are_like_what_they_replace() -> None:
    model = torchvision.models.mobilenet_v2(width_mult=0.25).double().eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    find_places(model)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    convert_depthwise(model, (3,), norm="affine", gamma_init=0.5, form="reference")
    bag = bags_of(model)[0]
    assert bag.branches[0].conv.weight.dtype == torch.float64
    assert not bag.training
    assert float(bag.branches[0].norm.weight[0].detach()) == 0.5
    assert bag.form == "reference"


def test_converted_networks_are_left_alone() -> None:
    with torch.device("meta"):
        model = convert_depthwise(torchvision.models.mobilenet_v2(), (3,))
    with pytest.raises(ConfigError, match="none was chosen"):
        convert_depthwise(model)


class Network(nn.Module):
    """Convolutions that are easily mistaken, registered in another order than they run in."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.late = nn.BatchNorm2d(4)
        self.first = self.depthwise()
        self.twice = self.depthwise()
        self.twice_norm = nn.BatchNorm2d(4)
        self.bare = self.depthwise()
        self.shared_output = self.depthwise()
        self.shared_norm = nn.BatchNorm2d(4)
        self.layer_norm_behind = self.depthwise()
        self.instance = nn.InstanceNorm2d(4)
        self.unpadded = self.depthwise(padding=0)
        self.unpadded_norm = nn.BatchNorm2d(4)
        self.dilated = self.depthwise(padding=2, dilation=2)
        self.dilated_norm = nn.BatchNorm2d(4)
        self.circular = self.depthwise(padding_mode="circular")
        self.circular_norm = nn.BatchNorm2d(4)
        self.even = nn.Conv2d(4, 4, 2, groups=4)
        self.even_norm = nn.BatchNorm2d(4)
        self.uneven = self.depthwise(stride=(1, 2))
        self.uneven_norm = nn.BatchNorm2d(4)
        self.beside = self.depthwise()
        self.point = nn.Conv2d(4, 4, (1, 3), padding=(0, 1), groups=4)
        self.joint = nn.BatchNorm2d(8)
        self.unused = self.depthwise()

    @staticmethod
    def depthwise(**options: object) -> nn.Conv2d:
        return nn.Conv2d(4, 4, 3, groups=4, **{"padding": 1, **options})

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        x = self.twice_norm(self.twice(self.twice(x)))
        x = self.late(functional.relu(self.bare(x)))
        y = self.shared_output(x)
        x = self.shared_norm(y) + y
        x = self.instance(self.layer_norm_behind(x))
        x = self.unpadded_norm(self.unpadded(x))
        x = self.dilated_norm(self.dilated(x))
        x = self.circular_norm(self.circular(x))
        x = self.even_norm(self.even(x))
        x = self.uneven_norm(self.uneven(x))
        return self.joint(torch.cat([self.beside(x), self.point(x)], dim=1))


def test_what_cannot_be_replaced_is_refused() -> None:
    model = Network()
    places, refused = find_places(model, image_shape=(4, 16, 16))
    assert places == [ConvolutionPlace(("first",), "norm")]
    no_norm = "no BatchNorm alone takes its output"
    assert refused == {
        "twice": "it is evaluated 2 times",
        "bare": no_norm,
        "shared_output": no_norm,
        "layer_norm_behind": no_norm,
        "unpadded": "its padding is (0, 0), not half of its kernel",
        "dilated": "its dilation is (2, 2)",
        "circular": "its padding is 'circular'",
        "even": "its kernel is 2x2",
        "uneven": "its strides are (1, 2)",
        "beside": "its output is joined with one that stays",
        "point": "its kernel is 1x3",
        "unused": "it is evaluated 0 times",
    }
    convert_depthwise(model, image_shape=(4, 16, 16))
    assert isinstance(model.first, Bag)
    assert isinstance(model.norm, nn.Identity)
    assert len(bags_of(model)) == 1
    model(torch.randn(2, 4, 16, 16))


def test_every_name_of_a_module_is_replaced() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.BatchNorm2d(4), nn.Identity())
    model[2].again = model[0]
    convert_depthwise(model, (3,), image_shape=(4, 8, 8))
    assert isinstance(model[0], Bag)
    assert model[2].again is model[0]


def test_explicit_choices_must_be_possible() -> None:
    with pytest.raises(ConfigError, match=r"'bare': no BatchNorm alone takes its output"):
        convert_depthwise(Network(), predicate=lambda name, c: name in ("first", "bare"), image_shape=(4, 16, 16))
    with torch.device("meta"):
        convnext, resnet = torchvision.models.convnext_tiny(), torchvision.models.resnet18()
    with pytest.raises(ConfigError, match=r"these of the model's convolutions.*; …"):
        convert_depthwise(convnext)
    with pytest.raises(ConfigError, match="because none was chosen"):
        convert_depthwise(resnet)
    with pytest.raises(ConfigError, match="image_shape"):
        convert_depthwise(resnet, predicate=is_spatial, image_shape=(4, 64, 64))
    with pytest.raises(ConfigError, match="odd numbers from 3"):
        convert_depthwise(resnet, (2,), is_spatial)
    assert not bags_of(resnet)
