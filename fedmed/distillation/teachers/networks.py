"""Networks of torchvision and timm without their classifier, ready to take a teacher's weights.

Letters: N images, S side.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedmed.distillation.teachers.classifier import find_classifier
from fedmed.distillation.teachers.files import SWITCH
from fedmed.errors import ConfigError, TeacherUnavailableError, suggest_nearest
from fedmed.seeding import derive_seed

Colour = tuple[float, float, float]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class BuiltNetwork:
    """A network without its classifier, and how it wants its images."""

    network: nn.Module
    num_features: int
    image_size: int
    mean: Colour
    std: Colour


def build_torchvision(name: str) -> BuiltNetwork:
    """Build a network whose classifier is the identity; its attribute ``classifier_name`` says which it was."""
    import torchvision  # noqa: PLC0415

    check_torchvision_name(name)
    network: Any = torchvision.models.get_model(name, weights=None)
    classifier_name, classifier = find_classifier(network)
    network.set_submodule(classifier_name, nn.Identity())
    network.classifier_name = classifier_name
    return BuiltNetwork(network, classifier.in_features, 224, IMAGENET_MEAN, IMAGENET_STD)


def build_timm(name: str) -> BuiltNetwork:
    """Build timm's network of that name, which then gives pooled features."""
    import timm  # noqa: PLC0415  (a second or more)

    if not timm.is_model(name):
        raise ConfigError(f"timm has no network '{name}'. See timm.list_models().")
    network: Any = timm.create_model(name, pretrained=False, num_classes=0)
    wish = network.pretrained_cfg
    return BuiltNetwork(network, network.num_features, wish["input_size"][-1], tuple(wish["mean"]), tuple(wish["std"]))


def list_timm_classifiers(network: Any) -> tuple[str, ...]:
    """Return how the keys of the classifier begin, which the network was built without."""
    names = network.pretrained_cfg.get("classifier") or ()
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))


def check_torchvision_name(name: str) -> None:
    """Raise ConfigError unless torchvision has a classifier of that name."""
    import torchvision  # noqa: PLC0415

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ConfigError(f"torchvision has no network '{name}'.{suggest_nearest(name, known)}")


def fill_network(built: BuiltNetwork, state: Mapping[str, Tensor]) -> BuiltNetwork:
    """Load strictly; only BatchNorm's counters, which older files lack, may be absent."""
    own = built.network.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    misshaped = [key for key in state if key in own and state[key].shape != own[key].shape]
    problems = [
        f"{len(keys)} {kind} ({', '.join(keys[:5])})"
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshaped))
        if keys
    ]
    if problems:
        raise TeacherUnavailableError(
            f"These weights do not fit the teacher's network: tensors {'; '.join(problems)}. Name the network that the "
            f"file was made from, and its layout (torchvision, timm, moco_v2); {SWITCH}."
        )
    built.network.load_state_dict({**own, **state})
    return built


def draw_natural_noise(num_images: int, size: int, seed: int) -> Tensor:
    """Return noise (N,3,S,S) in [0, 1] whose amplitudes fall as 1/f, as those of photographs do."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "calibration"))
    grey = torch.randn(num_images, 1, size, size, generator=generator)
    colour = torch.randn(num_images, 3, size, size, generator=generator)
    spectrum = torch.fft.rfft2(grey + 0.5 * colour)
    radius = torch.hypot(torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None, :])
    noise = torch.fft.irfft2(spectrum / radius.clamp(min=1 / size), s=(size, size))
    noise = noise - noise.mean(dim=(1, 2, 3), keepdim=True)
    images: Tensor = (0.5 + 0.2 * noise / noise.std(dim=(1, 2, 3), keepdim=True)).clamp(0, 1)
    return images
