"""The ERoHPRF networks: every count of the specification, their initial weights, and their deploy forms."""

import copy
import io
import math
from functools import cache

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from fedmed.errors import ConfigError
from fedmed.models import create_model, list_models
from fedmed.models.bags.bag import HeterogeneousPyramidConv2d as Bag
from fedmed.models.bags.parts import BagBranch
from fedmed.reparameterization import reparameterize
from tests.models.bags.test_bag import disturb

NAMES = [name for name in list_models() if name.endswith("_erohprf")]
BAGS = {"mobilenet_v2_erohprf": 17, "mixnet_s_erohprf": 43}  # ShuffleNetV2: 19


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def build_on_meta(name: str, **options: object) -> nn.Module:
    # Moved there at the end: drawing weights on the meta device is slower than on a CPU.
    return create_model(name, 7, **options).to("meta")


published = cache(build_on_meta)  # as published, for tests that do not change it


def count_multiply_adds(model: nn.Module, side: int = 224) -> float:
    """Return millions of multiply-adds of all convolutions. Hooks on branches make a bag evaluate them."""
    total = 0
    model = copy.deepcopy(model).eval()

    def add(convolution: nn.Conv2d, _inputs: object, y: Tensor) -> None:
        nonlocal total
        total += y.numel() * convolution.weight[0].numel()

    for module in list(model.modules()):
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(add)
        elif isinstance(module, BagBranch):
            module.norm = nn.Identity()  # On the meta device BatchNorm takes most of the time, and counts for nothing.
    model(torch.empty(1, 3, side, side, device="meta"))
    return total / 1e6


def bags_of(model: nn.Module) -> list[Bag]:
    return [module for module in model.modules() if isinstance(module, Bag)]


def test_names() -> None:
    sizes = [f"shufflenet_v2_{size}_erohprf" for size in ("x0_5", "x1_0", "x1_5", "x2_0")]
    assert sorted(NAMES) == sorted(["mobilenet_v2_erohprf", "mixnet_s_erohprf", *sizes])


@pytest.mark.parametrize(
    ("name", "options", "trained", "merged", "millions"),
    [
        ("mobilenet_v2", {}, 3_931_207, 2_511_143, (782.9, 391.6)),
        ("shufflenet_v2_x0_5", {}, 594_583, 389_215, (81.9, 47.5)),
        pytest.param(*("shufflenet_v2_x1_0", {}, 1_846_259, 1_356_719, (240.9, 162.4)), marks=pytest.mark.slow),
        pytest.param(*("shufflenet_v2_x1_5", {}, 3_371_159, 2_630_879, None), marks=pytest.mark.slow),
        pytest.param(*("shufflenet_v2_x2_0", {}, 6_542_823, 5_530_311, (754.7, 599.0)), marks=pytest.mark.slow),
        ("shufflenet_v2_x2_0", {"widths": "torchvision"}, 6_584_563, 5_560_111, None),
        ("mixnet_s", {}, 3_528_221, 2_601_797, (342.6, 237.6)),
        pytest.param(*("mobilenet_v2", {"levels": [3]}, 2_375_559, 2_225_703, (327.1, 299.5)), marks=pytest.mark.slow),
        pytest.param(*("mobilenet_v2", {"levels": [5]}, 2_689_543, 2_339_879, (428.4, 336.3)), marks=pytest.mark.slow),
        pytest.param(*("mobilenet_v2", {"levels": [7]}, 3_174_791, 2_511_143, (584.9, 391.6)), marks=pytest.mark.slow),
        pytest.param(
            *("mobilenet_v2", {"levels": [3, 5]}, 2_910_759, 2_339_879, (476.7, 336.3)), marks=pytest.mark.slow
        ),
        pytest.param(
            *("mobilenet_v2", {"levels": [3, 7]}, 3_396_007, 2_511_143, (633.3, 391.6)), marks=pytest.mark.slow
        ),
        pytest.param(
            *("mobilenet_v2", {"levels": [5, 7]}, 3_709_991, 2_511_143, (734.5, 391.6)), marks=pytest.mark.slow
        ),
        pytest.param(
            *("mobilenet_v2", {"levels": [3, 5, 7, 9]}, 5_608_167, 2_739_495, (1300.8, 465.2)), marks=pytest.mark.slow
        ),
    ],
)
def test_costs(
    name: str, options: dict[str, object], trained: int, merged: int, millions: tuple[float, float] | None
) -> None:
    name = f"{name}_erohprf"
    model = build_on_meta(name, **options) if options else published(name)
    deployed = reparameterize(model)
    assert (count(model), count(deployed)) == (trained, merged)
    assert len(bags_of(model)) == BAGS.get(name, 19)
    assert not bags_of(deployed)
    if millions is not None:
        assert (round(count_multiply_adds(model), 1), round(count_multiply_adds(deployed), 1)) == millions


def test_plain_hosts_for_comparison() -> None:
    with torch.device("meta"):
        hosts = [
            torchvision.models.mobilenet_v2(num_classes=7),
            *(getattr(torchvision.models, f"shufflenet_v2_{s}")(num_classes=7) for s in ("x0_5", "x1_0", "x1_5")),
            timm.create_model("mixnet_s", num_classes=7),
        ]
    assert [count(host) for host in hosts] == [2_232_839, 348_967, 1_260_779, 2_485_799, 2_608_365]


def test_numbers_that_travel() -> None:
    """Float entries of the state dict, without BatchNorm's counters."""
    model = published("mobilenet_v2_erohprf")
    sizes = [
        sum(value.numel() for value in form.state_dict().values() if value.is_floating_point())
        for form in (model, reparameterize(model))
    ]
    assert sizes == [4_165_127, 2_530_983]


def test_widths_and_strides_of_mobilenet() -> None:
    bags = bags_of(published("mobilenet_v2_erohprf"))
    widths = [32, 96, 144, 144, 192, 192, 192, *[384] * 4, 576, 576, 576, *[960] * 3]
    assert [bag.in_channels for bag in bags] == widths
    assert sum(widths) == 7136
    assert [index for index, bag in enumerate(bags) if bag.stride == 2] == [1, 3, 6, 13]
    narrow = bags_of(build_on_meta("mobilenet_v2_erohprf", width_mult=0.25))
    assert [bag.in_channels for bag in narrow][:3] == [8, 48, 48]


def test_levels_of_mixnet() -> None:
    bags = bags_of(published("mixnet_s_erohprf"))
    with torch.device("meta"):
        host = timm.create_model("mixnet_s")
    sides = [m.kernel_size[0] for m in host.modules() if isinstance(m, nn.Conv2d) and m.groups == m.in_channels]
    assert [bag.levels[-1] for bag in bags] == sides
    assert all(bag.levels == tuple(range(3, bag.levels[-1] + 1, 2)) for bag in bags)
    assert max(sides) == 11
    same = bags_of(build_on_meta("mixnet_s_erohprf", levels=[3, 5]))
    assert {bag.levels for bag in same} == {(3, 5)}


@pytest.mark.parametrize("name", ["mobilenet_v2_erohprf", "mixnet_s_erohprf"])
def test_initial_weights(name: str) -> None:
    model = create_model(name, 7, gamma_init=0.25)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            std = math.sqrt(2 / (math.prod(module.kernel_size) * module.out_channels))
            assert float(module.weight.detach().std()) == pytest.approx(std, rel=0.1)
        elif isinstance(module, nn.Linear):
            assert float(module.weight.detach().std()) == pytest.approx(0.01, rel=0.1)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            assert not module.bias.any()
    for bag in bags_of(model):
        assert all(float(branch.norm.weight.detach().unique()) == 0.25 for branch in bag.branches)
        assert not any(branch.norm.bias.any() for branch in bag.branches)


def test_dropout() -> None:
    rates = [
        create_model("mobilenet_v2_erohprf", 2, width_mult=0.1, **o).classifier[0].p for o in ({}, {"dropout": 0.3})
    ]
    assert rates == [0.0, 0.3]


@pytest.mark.parametrize("name", ["mobilenet_v2_erohprf", "shufflenet_v2_x0_5_erohprf"])
def test_keys_are_the_same_every_time(name: str) -> None:
    first, second = (list(model.state_dict()) for model in (published(name), build_on_meta(name)))
    assert first == second
    assert sum(".branches." in key for key in first) == 90 * len(bags_of(published(name)))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mobilenet_v2_erohprf", {"width_mult": 0.25}),
        ("shufflenet_v2_x0_5_erohprf", {}),
        ("mixnet_s_erohprf", {"norm": "affine"}),
        ("mobilenet_v2_erohprf", {"width_mult": 0.1, "levels": [3, 9], "families": ["square", "strip"]}),
    ],
)
def test_deploy_form_is_equal(name: str, options: dict[str, object]) -> None:
    model = disturb(create_model(name, 7, form="reference", **options)).eval()
    before = copy.deepcopy(model.state_dict())
    merged = reparameterize(model)
    x = torch.randn(2, 3, 33, 48)
    with torch.no_grad():
        torch.testing.assert_close(merged(x), model(x), rtol=1e-5, atol=1e-5 * max(1, float(model(x).abs().max())))
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        if name != "mobilenet_v2_erohprf":
            return
        exact = reparameterize(model.double())
        difference = (exact(x.double()) - model(x.double())).abs().max()
    assert difference <= 1e-12 * max(1, float(exact(x.double()).abs().max()))


def test_deploy_form_after_real_steps() -> None:
    model = create_model("mobilenet_v2_erohprf", 4, width_mult=0.25, bn_momentum=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        functional.cross_entropy(model(torch.randn(8, 3, 64, 64)), torch.arange(8) % 4).backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = create_model("mobilenet_v2_erohprf", 4, width_mult=0.25, form="reference")
    other.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = other.eval()(x)
        torch.testing.assert_close(reparameterize(model)(x), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.eval()(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_deploy_form_is_equal_at_full_size(name: str) -> None:
    model = disturb(create_model(name, 7, form="reference")).eval()
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(
            reparameterize(model)(x), expected, rtol=0, atol=1e-5 * max(1, float(expected.abs().max()))
        )


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("mobilenet_v2_erohprf", {"level": [3]}, "Did you mean 'levels'?"),
        ("mobilenet_v2_erohprf", {"groups": 1}, "has no option 'groups'"),
        ("mobilenet_v2_erohprf", {"levels": [4]}, "odd numbers from 3"),
        ("mobilenet_v2_erohprf", {"width_mult": 0}, "'width_mult' is 0"),
        ("mobilenet_v2_erohprf", {"dropout": 1}, "'dropout' is 1"),
        ("mobilenet_v2_erohprf", {"form": "slow"}, "auto, fast, reference"),
        ("shufflenet_v2_x2_0_erohprf", {"widths": "narrow"}, "official, torchvision"),
        ("shufflenet_v2_x1_0_erohprf", {"width_mult": 2}, "widths"),
        ("mixnet_s_erohprf", {"norm": "layer"}, "bn, affine"),
        ("adsr_resnet18", {"bag_levels": [2]}, "odd numbers from 3"),
        ("adsr_resnet18", {"bag_levels": [3], "pretrained_backbone": "file.pth"}, "one of the two"),
        ("adsr_resnet18", {"bag_level": [3]}, "Did you mean 'bag_levels'?"),
    ],
)
def test_bad_options(name: str, options: dict[str, object], words: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError) as caught:
        create_model(name, 5, **options)
    assert words in str(caught.value)


@pytest.mark.parametrize(("depth", "num_bags"), [(18, 16), (50, 16)])
def test_adsr_net_with_bags(depth: int, num_bags: int) -> None:
    """A 3x3 convolution and its BatchNorm, 9 IO + 2 O, become 21 IO + 10 O; merged, 9 IO + O."""
    with torch.device("meta"):
        plain, model = create_model(f"adsr_resnet{depth}", 7), create_model(f"adsr_resnet{depth}", 7, bag_levels=[3])
    bags = bags_of(model)
    assert len(bags) == num_bags
    assert {bag.groups for bag in bags} == {1}
    pairs = [(bag.in_channels, bag.out_channels) for bag in bags]
    assert count(model) - count(plain) == sum(12 * i * o + 8 * o for i, o in pairs)
    assert count(plain) - count(reparameterize(model)) == sum(o for _, o in pairs)


def test_adsr_net_with_bags_trains_and_deploys() -> None:
    options = {"bag_levels": [3, 5], "bag_families": ["strip", "square"], "bag_bn_momentum": 0.1}
    with torch.device("meta"):
        assert bags_of(create_model("adsr_resnet18", 3, **options))[0].branches[0].norm.momentum == 0.1
    model = create_model("adsr_resnet18", 3, bag_levels=[3], bag_families=["square"])
    bag = bags_of(model)[0]
    std = math.sqrt(2 / (9 * bag.out_channels))
    assert float(bag.branches[0].conv.weight.detach().std()) == pytest.approx(std, rel=0.05)
    functional.cross_entropy(model(torch.randn(2, 3, 32, 32)), torch.arange(2)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(reparameterize(model)(x), model.eval()(x), rtol=1e-4, atol=1e-4)
