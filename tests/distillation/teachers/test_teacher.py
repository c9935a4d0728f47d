"""Where teachers come from, and that they stay as they are (tests of faithfulness 11 and 20)."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from fedmed.distillation import TeacherSettings, TeacherUnavailableError, check_same_teacher, load_teacher
from fedmed.distillation.pixels import held_still, normalize, restore_pixels
from fedmed.distillation.small_network.distil import copy_matching
from fedmed.distillation.teachers.files import hash_file, map_by_position, map_lite_keys, read_weights, strip_moco_keys
from fedmed.distillation.teachers.teacher import read_mobilenet_features
from fedmed.errors import ConfigError, FederationError
from fedmed.models import create_model
from tests.distillation.support.helpers import STATISTICS, hash_state, make_teacher, real_teacher

PACKAGED = ["efficientnet_lite0", "efficientnet_lite2", "mobilenet_v2"]


@pytest.fixture
def resnet_file(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    file = tmp_path / "resnet18.pth"
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), file)
    return file


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_teachers_load_strictly(name: str) -> None:
    teacher = real_teacher(name, image_size=64)
    with torch.no_grad():
        features = teacher(torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(0)))
    assert features.shape == (2, teacher.num_features) == (2, 1280)
    assert features.isfinite().all()
    wanted = (0.5, 0.5, 0.5) if "lite" in name else (0.485, 0.456, 0.406)
    assert teacher.mean == pytest.approx(wanted)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_the_native_sizes_are_the_networks_own() -> None:
    assert real_teacher("efficientnet_lite0").image_size == 224
    assert real_teacher("efficientnet_lite2").image_size == 260


def test_lite_keys_agree_with_timms_by_position() -> None:
    import timm

    from fedmed.distillation.teachers.files import PACKAGED as FILES
    from fedmed.distillation.teachers.files import find_packaged

    real_teacher("efficientnet_lite0", image_size=64)
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    state, _ = read_weights(find_packaged("efficientnet_lite0"), FILES["efficientnet_lite0"].sha256)
    mapped = map_lite_keys(state, [len(stage) for stage in network.blocks])
    assert list(mapped) == list(network.state_dict())


@pytest.mark.slow
def test_a_flower_is_a_daisy_and_a_temple_a_palace() -> None:
    """ImageNet's classes 985 and 698; with another normalisation or mapping the answer is lost."""
    from sklearn.datasets import load_sample_images

    from fedmed.distillation.teachers.files import PACKAGED as FILES
    from fedmed.distillation.teachers.files import find_packaged

    teacher = real_teacher("efficientnet_lite0")
    state, _ = read_weights(find_packaged("efficientnet_lite0"), FILES["efficientnet_lite0"].sha256)
    head = nn.Linear(1280, 1000)
    head.load_state_dict({"weight": state["_fc.weight"], "bias": state["_fc.bias"]})
    china, flower = (
        torch.from_numpy(image.copy()).permute(2, 0, 1)[None] / 255 for image in load_sample_images().images
    )
    found = [int(head(teacher(image[..., :427, 100:527])).argmax()) for image in (china, flower)]
    assert found == [698, 985]


def test_a_missing_package_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in PACKAGED:
        with pytest.raises(TeacherUnavailableError, match=r"pip install .*teachers.*teacher: none"):
            load_teacher(name)


def test_a_missing_file_names_the_remedy(tmp_path: Path) -> None:
    settings = TeacherSettings("resnet18", "file", path=str(tmp_path / "none.pth"))
    with pytest.raises(TeacherUnavailableError, match=r"none\.pth.*teachers.*teacher: none"):
        load_teacher(settings)


def test_no_network_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("Temporary failure in name resolution")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(TeacherUnavailableError, match=r"name resolution.*teacher: none"):
        load_teacher({"name": "resnet18", "source": "torchvision"})


def test_a_downloaded_file_that_is_not_what_its_name_says_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resnet_file: Path
) -> None:
    name = Path(torchvision.models.ResNet18_Weights.DEFAULT.url).name
    (tmp_path / "checkpoints").mkdir()
    resnet_file.rename(tmp_path / "checkpoints" / name)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(TeacherUnavailableError, match="SHA-256"):
        load_teacher({"name": "resnet18", "source": "torchvision"})


def test_a_file_gives_the_features_before_its_classifier(resnet_file: Path) -> None:
    teacher = load_teacher({"name": "resnet18", "source": "file", "path": str(resnet_file), "image_size": 64})
    whole = torchvision.models.resnet18(weights=None).eval()
    whole.load_state_dict(torch.load(resnet_file, weights_only=True))
    features: list[torch.Tensor] = []
    whole.fc.register_forward_pre_hook(lambda _, args: features.append(args[0]))
    images = torch.rand(2, 3, 64, 64)
    whole(normalize(images, STATISTICS))
    torch.testing.assert_close(teacher(images), features[0])
    assert teacher.describe()["sha256"] == hash_file(resnet_file)


def test_moco_keys_lose_their_prefix_and_head(tmp_path: Path, resnet_file: Path) -> None:
    state = torch.load(resnet_file, weights_only=True)
    body = {f"module.encoder_q.{key}": value for key, value in state.items() if not key.startswith("fc.")}
    head = {"module.encoder_q.fc.0.weight": torch.ones(2), "module.encoder_q.fc.2.bias": torch.ones(2)}
    others = {"module.encoder_k.conv1.weight": torch.ones(1), "module.queue": torch.ones(1)}
    file = tmp_path / "moco.pth.tar"
    torch.save({"epoch": 800, "state_dict": {**body, **head, **others}}, file)
    options = {"name": "resnet18", "source": "file", "image_size": 64}
    moco = load_teacher({**options, "path": str(file), "layout": "moco_v2"})
    plain = load_teacher({**options, "path": str(resnet_file)})
    assert hash_state(moco) == hash_state(plain)
    with pytest.raises(TeacherUnavailableError, match="not of MoCo"):
        strip_moco_keys(state)


def test_a_timm_file_loads_by_timms_names(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    network = timm.create_model("mobilenetv2_050", pretrained=False, num_classes=3)
    file = tmp_path / "timm.pth"
    torch.save(network.state_dict(), file)
    settings = TeacherSettings("mobilenetv2_050", "file", str(file), layout="timm", image_size=64)
    teacher, images = load_teacher(settings), torch.rand(2, 3, 64, 64)
    expected = network.eval().forward_head(network.forward_features(normalize(images, STATISTICS)), pre_logits=True)
    torch.testing.assert_close(teacher(images), expected)


def test_another_hash_is_refused_before_loading(resnet_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: Any, **__: Any) -> None:
        raise AssertionError("opened before its hash was checked")

    monkeypatch.setattr(torch, "load", explode)
    with pytest.raises(TeacherUnavailableError, match="SHA-256"):
        load_teacher({"name": "resnet18", "source": "file", "path": str(resnet_file), "sha256": "ab" * 32})


def test_wrong_keys_are_refused_with_the_first_five(resnet_file: Path, tmp_path: Path) -> None:
    with pytest.raises(TeacherUnavailableError, match=r"missing \((\S+, ){4}\S+\)"):
        load_teacher({"name": "resnet34", "source": "file", "path": str(resnet_file)})
    state = torch.load(resnet_file, weights_only=True)
    state["extra"] = torch.ones(1)
    torch.save(state, tmp_path / "more.pth")
    with pytest.raises(TeacherUnavailableError, match=r"1 unexpected \(extra\)"):
        load_teacher({"name": "resnet18", "source": "file", "path": str(tmp_path / "more.pth")})
    with pytest.raises(TeacherUnavailableError, match="EfficientNet-Lite"):
        map_lite_keys({"layer1.weight": torch.ones(1)}, [1])
    with pytest.raises(TeacherUnavailableError, match="1 tensors where 2"):
        map_by_position({"a": torch.ones(1)}, {"b": torch.ones(1), "c": torch.ones(1)})


def test_a_file_that_runs_code_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "code.pth"
    torch.save({"model": print}, file)
    with pytest.raises(TeacherUnavailableError, match="cannot be read as weights"):
        load_teacher({"name": "resnet18", "source": "file", "path": str(file)})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("efficientnet_lite9", "Did you mean"),
        ({"source": "cloud"}, "package, file, torchvision, random"),
        ({"name": "resnet18", "source": "file"}, "'path'"),
        ({"name": "resnet1", "source": "random"}, "torchvision has no network"),
        ({"colour": 3}, "'colour'"),
        ({"image_size": 4}, "image_size"),
    ],
)
def test_wrong_settings_are_refused(settings: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_teacher(settings)


def test_a_random_teacher_exists_by_that_name_alone() -> None:
    settings = {"name": "mobilenet_v2", "source": "random", "image_size": 32}
    first, again, other = load_teacher(settings), load_teacher(settings), load_teacher({**settings, "seed": 1})
    assert hash_state(first) == hash_state(again)
    assert hash_state(first) != hash_state(other)
    assert first.sha256 == again.sha256 != other.sha256
    norm = next(module for module in first.modules() if isinstance(module, nn.BatchNorm2d))
    assert norm.running_mean is not None
    assert (norm.running_mean != 0).all()  # calibrated
    with torch.no_grad():
        assert first(torch.rand(4, 3, 32, 32)).std() > 1e-3


def test_a_teacher_stays_frozen_in_a_training_container() -> None:
    teacher = make_teacher()
    container = nn.ModuleDict({"teacher": teacher, "student": nn.BatchNorm1d(8)})
    before = hash_state(teacher)
    container.train()
    assert container["student"].training
    assert not any(module.training for module in teacher.modules())
    container["student"](teacher(torch.rand(4, 3, 20, 20))).sum().backward()
    assert hash_state(teacher) == before
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_teacher_resizes_and_normalises_by_itself() -> None:
    teacher = make_teacher(image_size=16)
    images = torch.rand(2, 3, 24, 20)
    resized = torch.nn.functional.interpolate(images, (16, 16), mode="bicubic", antialias=True)
    torch.testing.assert_close(teacher(images), teacher.network((resized - 0.5) / 0.5), rtol=1e-4, atol=1e-5)


def test_pixels_come_back() -> None:
    images = torch.rand(2, 3, 5, 5)
    torch.testing.assert_close(restore_pixels(normalize(images, STATISTICS), STATISTICS), images)


def test_holding_still_restores_modes_and_wishes() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    network[0].bias.requires_grad_(False)
    network[1].eval()
    with held_still(network):
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())
    assert network.training
    assert not network[1].training
    assert network[0].weight.requires_grad
    assert not network[0].bias.requires_grad


def test_mobilenet_features_start_a_compact_student() -> None:
    real_teacher("mobilenet_v2", image_size=64)
    state = read_mobilenet_features()
    plain = create_model("mobilenet_v2", 4)
    assert copy_matching(plain, state) == ["classifier.1.bias", "classifier.1.weight"]
    student = create_model("mobilenet_v2_erohprf", 4)
    left = copy_matching(student, state)
    pointwise = "features.2.conv.0.0.weight"
    assert pointwise not in left
    assert torch.equal(student.state_dict()[pointwise], state[pointwise])
    assert any(".conv.0" in name or ".conv.1" in name for name in left)  # bags have no counterpart


def test_sites_with_different_teachers_are_named() -> None:
    own, other = make_teacher().describe(), make_teacher(image_size=32).describe()
    check_same_teacher({"a": own, "b": dict(own)})
    with pytest.raises(FederationError, match=r"'a'.*image_size 16.*'c'.*image_size 32"):
        check_same_teacher({"a": own, "b": own, "c": other})
