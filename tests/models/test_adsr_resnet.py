"""ADSR-Net against torchvision's ResNet, its pretrained weights, and ADSR in other hosts."""

import math
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from fedmed.errors import ConfigError
from fedmed.models import create_model, insert_adsr
from fedmed.models.adsr import ADSR
from fedmed.models.adsr_resnet import adsr_resnet, load_torchvision_weights

DEPTHS = (18, 34, 50, 101)


def make_torchvision(depth: int, num_classes: int = 7) -> nn.Module:
    model: nn.Module = getattr(torchvision.models, f"resnet{depth}")(weights=None, num_classes=num_classes)
    return model


def remove_adsr(model: nn.Module) -> None:
    for module in model.modules():
        if "adsr" in dict(module.named_children()):
            module.adsr = nn.Identity()


@pytest.mark.parametrize(
    ("depth", "plain", "dense", "depthwise", "num_modules"),
    [
        (18, 11_180_103, 11_938_135, 11_245_655, 8),
        pytest.param(34, 21_288_263, 22_667_111, 21_417_191, 16, marks=pytest.mark.slow),
        (50, 23_522_375, 44_125_799, 24_036_455, 16),
        pytest.param(101, 42_514_503, 81_501_353, 43_621_033, 33, marks=pytest.mark.slow),
    ],
)
def test_parameter_counts(depth: int, plain: int, dense: int, depthwise: int, num_modules: int) -> None:
    with torch.device("meta"):
        models = (make_torchvision(depth), adsr_resnet(depth, 7), adsr_resnet(depth, 7, gate="depthwise"))
    assert [sum(p.numel() for p in model.parameters()) for model in models] == [plain, dense, depthwise]
    assert sum(isinstance(module, ADSR) for module in models[1].modules()) == num_modules


def test_resnet18_has_224_more_tensors() -> None:
    with torch.device("meta"):
        assert len(adsr_resnet(18, 7).state_dict()) - len(make_torchvision(18).state_dict()) == 224


@pytest.mark.parametrize("depth", DEPTHS)
def test_backbone_has_torchvision_names_and_shapes(depth: int) -> None:
    with torch.device("meta"):
        model, reference = adsr_resnet(depth, 7), make_torchvision(depth)
    own = {name: value.shape for name, value in model.state_dict().items() if ".adsr." not in name}
    assert own == {name: value.shape for name, value in reference.state_dict().items()}
    load_torchvision_weights(model, make_torchvision(depth, num_classes=1000).to("meta").state_dict())


@pytest.mark.parametrize("depth", [18, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize("train", [True, False])
def test_without_adsr_it_is_torchvisions_resnet(depth: int, train: bool) -> None:
    model, reference = adsr_resnet(depth, 7), make_torchvision(depth)
    load_torchvision_weights(model, reference.state_dict())
    model.fc.load_state_dict(reference.fc.state_dict())
    remove_adsr(model)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model.train(train)(x), reference.train(train)(x))


def test_pretrained_backbone_from_either_format(tmp_path: Path) -> None:
    reference = make_torchvision(18, num_classes=1000)
    torch.save(reference.state_dict(), tmp_path / "weights.pth")
    safetensors.torch.save_file(reference.state_dict(), tmp_path / "weights.safetensors")
    for name in ("weights.pth", "weights.safetensors"):
        model = create_model("adsr_resnet18", 7, pretrained_backbone=str(tmp_path / name))
        for key, value in reference.state_dict().items():
            if not key.startswith("fc."):
                assert torch.equal(model.state_dict()[key], value), key
        assert model.state_dict()["fc.weight"].shape == (7, 512)


def test_old_files_without_batch_counters_load() -> None:
    state = {k: v for k, v in make_torchvision(18).state_dict().items() if not k.endswith("num_batches_tracked")}
    model = adsr_resnet(18, 7)
    load_torchvision_weights(model, state)
    assert torch.equal(model.conv1.weight, state["conv1.weight"])


def test_weights_that_do_not_fit_are_explained() -> None:
    model = adsr_resnet(18, 7)
    before = model.conv1.weight.clone()
    state = make_torchvision(18).state_dict()
    del state["layer1.0.conv1.weight"], state["bn1.bias"]
    state["stem.weight"] = torch.zeros(1)
    state["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    with pytest.raises(ConfigError) as caught:
        load_torchvision_weights(model, state)
    message = str(caught.value)
    assert "2 missing (bn1.bias, layer1.0.conv1.weight)" in message
    assert "1 unexpected (stem.weight)" in message
    assert "1 of another shape (conv1.weight)" in message
    assert torch.equal(model.conv1.weight, before)


class Harmless:
    """Stands for any pickled object: ``weights_only`` must refuse it."""


def test_files_that_cannot_be_used_are_explained(tmp_path: Path) -> None:
    contents: dict[str, object] = {"object.pth": Harmless(), "nested.pth": {"state_dict": {}}, "list.pth": [1, 2]}
    for name, content in contents.items():
        torch.save(content, tmp_path / name)
    (tmp_path / "garbage.pth").write_bytes(b"not weights")
    (tmp_path / "garbage.safetensors").write_bytes(b"not weights")
    torch.save(make_torchvision(34).state_dict(), tmp_path / "deeper.pth")
    expected = {
        "absent.pth": "nothing is downloaded",
        "object.pth": "cannot be read",
        "nested.pth": "holds no state dict",
        "list.pth": "holds no state dict",
        "garbage.pth": "cannot be read",
        "garbage.safetensors": "cannot be read",
        "deeper.pth": "unexpected (layer1.2.conv1.weight",
    }
    for name, words in expected.items():
        with pytest.raises(ConfigError) as caught:
            adsr_resnet(18, 7, pretrained_backbone=str(tmp_path / name))
        assert words in str(caught.value)
        assert str(caught.value).startswith("pretrained_backbone '")


@pytest.mark.parametrize(("depth", "last_norm"), [(18, "bn2"), (50, "bn3")])
def test_adsr_sits_before_the_addition(depth: int, last_norm: str) -> None:
    """A residual branch that ends in 0 leaves relu(shortcut), whatever the gates are."""
    model = adsr_resnet(depth, 7, stages=[1])
    block = model.layer1[0]
    norm = getattr(block, last_norm)
    nn.init.zeros_(norm.weight)
    x = torch.randn(2, 64, 8, 8)
    torch.testing.assert_close(block(x), torch.relu(block.downsample(x)))
    seen: list[Tensor] = []
    norm.register_forward_hook(lambda _module, _input, output: seen.append(output))
    block.adsr.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    block(x)
    assert seen[0] is seen[1]


@pytest.mark.parametrize("stages", [[1], (2, 4), [4, 3]])
def test_stages(stages: list[int]) -> None:
    with torch.device("meta"):
        model = adsr_resnet(18, 7, stages=stages)
    found = {int(name[5]) for name, module in model.named_modules() if isinstance(module, ADSR)}
    assert found == set(stages)


def test_options_reach_every_module() -> None:
    with torch.device("meta"):
        model = adsr_resnet(18, 7, gate_gain=2, psf="three_scale", kernels=[3, 5], use_gsa=True)
    for module in model.modules():
        if isinstance(module, ADSR):
            assert module.gsa.gain == module.psf.gain == 2
            assert list(module.psf.branches) == ["1", "3", "5"]
            assert module.gsa.second.conv.kernel_size == (5, 5)


def test_initialisation() -> None:
    model = adsr_resnet(18, 7)
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.full_like(module.weight, 0.0 if ".psf." in name else 1.0)), name
        elif isinstance(module, nn.Conv2d) and ".adsr." not in name:
            channels, side = module.out_channels, module.kernel_size[0]
            if ".downsample." in name:  # Kaiming uniform, a = sqrt(5): bound 1 / sqrt(fan in)
                bound = 1 / math.sqrt(module.in_channels)
                assert bound * 0.98 < module.weight.abs().max().item() <= bound, name
            else:
                expected = math.sqrt(2 / (channels * side * side))
                assert module.weight.std().item() == pytest.approx(expected, rel=0.05), name
        bias = getattr(module, "bias", None)
        assert bias is None or torch.equal(bias, torch.zeros_like(bias)), name
    assert model.fc.weight.std().item() == pytest.approx(math.sqrt(2 / 512), rel=0.05)


def test_insertion_into_torchvision_gives_adsr_net() -> None:
    model = adsr_resnet(18, 7).eval()
    host = make_torchvision(18)
    load_torchvision_weights(model, host.state_dict())
    model.fc.load_state_dict(host.fc.state_dict())
    names = insert_adsr(host, lambda name, _module: name.endswith("bn2"))
    assert names == [f"layer{stage}.{block}.bn2" for stage in (1, 2, 3, 4) for block in (0, 1)]
    for name in names:
        block = name.removesuffix(".bn2")
        host.get_submodule(f"{name}.adsr").load_state_dict(model.get_submodule(f"{block}.adsr").state_dict())
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(host.eval()(x), model(x))


def test_insertion_into_mobilenet_with_options() -> None:
    host = torchvision.models.mobilenet_v2(weights=None, num_classes=3)
    names = insert_adsr(host, lambda name, _module: name.endswith("conv.3"), gate="depthwise", use_psf=False)
    assert len(names) == 16
    assert host(torch.randn(2, 3, 64, 64)).shape == (2, 3)


def test_insertion_handles_a_module_and_its_child() -> None:
    host = torchvision.ops.Conv2dNormActivation(3, 8)
    model = nn.Sequential(host)
    names = insert_adsr(model, lambda name, _module: name in ("0", "0.1"))
    assert names == ["0", "0.1"]
    assert sum(isinstance(module, ADSR) for module in model.modules()) == 2
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 8, 8, 8)


def test_insertion_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="chose no module"):
        insert_adsr(nn.Sequential(nn.ReLU()), lambda _name, _module: False)
    with pytest.raises(ValueError, match=r"'0' \(ReLU\) does not tell its channels"):
        insert_adsr(nn.Sequential(nn.ReLU()), lambda _name, _module: True)
    model = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU())
    with pytest.raises(ValueError, match="'1'"):
        insert_adsr(model, lambda _name, _module: True)
    assert isinstance(model[0], nn.BatchNorm2d)


def test_unknown_depth_and_path_that_is_no_path() -> None:
    with pytest.raises(ConfigError, match="Allowed: 18, 34, 50, 101"):
        adsr_resnet(20, 7)
    with pytest.raises(ConfigError, match="null, or the path of a file"):
        adsr_resnet(18, 7, pretrained_backbone=True)
