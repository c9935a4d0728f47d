"""ADSR-Net and its hosts, each at full width; ``test_every_model.py`` has what all networks have in common."""

import copy
import subprocess
import sys
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional

from fedmed.errors import ConfigError
from fedmed.models import create_model, list_models
from fedmed.seeding import seeded_torch

LARGE = ("adsr_resnet34", "adsr_resnet101")
NAMES = ["adsr_resnet18", "adsr_resnet50", "mobilenet_v2", "resnet18"]
NETWORKS = [*NAMES, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)]


@cache
def build(name: str) -> nn.Module:
    """Build once; every parameter is off its initial 0, and running statistics come from data."""
    with seeded_torch(0, name):
        model = create_model(name, 5)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.weight.uniform_(0.5, 1.5)
            model(torch.randn(4, 3, 64, 64))
    return model


def test_names() -> None:
    shufflenets = {f"shufflenet_v2_{width}_erohprf" for width in ("x0_5", "x1_0", "x1_5", "x2_0")}
    others = {"mobilenet_v2_erohprf", "mixnet_s_erohprf", "hemf", "came", "hifuse_tiny", "hifuse_small", "hifuse_base"}
    assert {*NAMES, *LARGE, *shufflenets, *others} <= set(list_models())
    assert sorted(list_models()) == list_models()


def test_names_do_not_depend_on_what_was_imported() -> None:
    """In a fresh interpreter, where no other test has imported anything."""
    program = (
        "import sys; from fedmed.models import list_models; before = list_models(); "
        "assert 'frozen_teacher' in before; assert 'fedmed.distillation' not in sys.modules; "
        "import fedmed.distillation; assert list_models() == before, list_models()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(32, 32), (64, 64), (47, 33)])
def test_logits_are_finite_for_small_images(name: str, size: tuple[int, int]) -> None:
    model = build(name).eval()
    with torch.no_grad():
        for batch in (1, 2):
            logits = model(torch.randn(batch, 3, *size))
            assert logits.shape == (batch, 5)
            assert logits.dtype == torch.float32
            assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("side", [32, 64])
def test_every_parameter_learns(name: str, side: int) -> None:
    model = copy.deepcopy(build(name)).train()
    functional.cross_entropy(model(torch.randn(4, 3, side, side)), torch.arange(4)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        assert side == 32 or parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", NETWORKS)
def test_images_do_not_see_each_other_in_eval(name: str) -> None:
    model = build(name).eval()
    x = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        together = model(x)
        alone = torch.cat([model(image[None]) for image in x])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_state_dict_and_deepcopy(name: str) -> None:
    model = build(name).eval()
    other = create_model(name, 5).eval()
    assert list(other.state_dict()) == list(model.state_dict())
    assert all(value.is_contiguous() for value in model.state_dict().values())
    other.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(other(x), model(x))
        assert torch.equal(copy.deepcopy(model)(x), model(x))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "adsr_resnet101"])  # built as 50 is, twice the size
def test_same_seed_same_weights(name: str) -> None:
    states = []
    for _ in range(2):
        with seeded_torch(3, "model"):
            states.append(create_model(name, 3).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("name", NETWORKS)
def test_autocast_and_channels_last(name: str) -> None:
    model = build(name).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        logits = model(x)
        strided = copy.deepcopy(model).to(memory_format=torch.channels_last)
        last = strided(x.contiguous(memory_format=torch.channels_last))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = model(x)
    torch.testing.assert_close(last, logits, rtol=1e-3, atol=1e-3)
    assert torch.isfinite(half).all()
    assert (half.float() - logits).norm() < 0.1 * logits.norm()


def test_autocast_trains() -> None:
    model = copy.deepcopy(build("adsr_resnet18")).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(torch.randn(4, 3, 32, 32))
    functional.cross_entropy(logits.float(), torch.arange(4)).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_export_with_any_batch_size() -> None:
    model = build("adsr_resnet18").eval()
    dynamic = ({0: torch.export.Dim("batch", min=1, max=64)},)
    program = torch.export.export(model, (torch.randn(2, 3, 64, 64),), dynamic_shapes=dynamic)
    x = torch.randn(5, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.parametrize("num_classes", [1, 0, -3, True, 2.0, "7"])
def test_too_few_classes(num_classes: object) -> None:
    with pytest.raises(ConfigError, match="Allowed: a whole number from 2"):
        create_model("resnet18", num_classes)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("adsr_resnet19", {}, "Did you mean 'adsr_resnet18'?"),
        ("resnet18", {"gate": "dense"}, "has no option 'gate'"),
        ("mobilenet_v2", {"pretrained": True}, "has no option 'pretrained'"),
        ("adsr_resnet18", {"gates": "dense"}, "Did you mean 'gate'?"),
        ("adsr_resnet18", {"channels": 3}, "has no option 'channels'"),
        ("adsr_resnet18", {"gate": "wide"}, "Allowed: dense, depthwise"),
        ("adsr_resnet18", {"stages": []}, "one or more of 1, 2, 3, 4"),
        ("adsr_resnet18", {"stages": [5]}, "one or more of 1, 2, 3, 4"),
        ("adsr_resnet18", {"stages": 2}, "one or more of 1, 2, 3, 4"),
    ],
)
def test_bad_options(name: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        create_model(name, 5, **options)
    assert words in str(caught.value)


def test_yaml_lists_are_accepted() -> None:
    options = {"kernels": [3, 5], "stages": [1, 2], "psf_stats": ["max", "mean"], "psf_branches": [1]}
    assert create_model("adsr_resnet18", 2, **options)(torch.randn(2, 3, 32, 32)).shape == (2, 2)
