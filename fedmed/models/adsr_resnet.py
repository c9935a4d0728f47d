"""Whole networks: ADSR-Net (a ResNet with ADSR in its residual blocks), and plain ResNet-18 and MobileNetV2.

Sources: ADSR-Net as :mod:`fedmed.models.adsr`; He et al., "Deep Residual Learning for Image Recognition", CVPR 2016;
Sandler et al., "MobileNetV2", CVPR 2018. Tensor names of the ResNet are torchvision's, so its pretrained weights load
by name. Shape letters: B batch, C channels, H W space, K classes.
"""

import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from fedmed.errors import ConfigError, suggest_nearest
from fedmed.models.adsr import ADSR
from fedmed.models.bags.parts import FAMILIES
from fedmed.models.blocks.layers import check_subset, read_state_dict
from fedmed.models.erohprf import insert_dense_bags

ADSR_OPTIONS = tuple(inspect.signature(ADSR).parameters)[1:]
HOST_OPTIONS = ("pretrained_backbone", "stages", "bag_levels", "bag_families", "bag_bn_momentum")
CLASSIFIER = "fc."


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; for depths 18 and 34.

    Parameters
    ----------
    in_channels, width : int
        Channels of the input and of the stage.
    stride : int
        Of the first convolution and of the shortcut.
    adsr : bool
        Whether the residual branch is recalibrated before the addition.
    **options
        Options of :class:`ADSR`.
    """

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, adsr: bool, **options: Any) -> None:
        super().__init__()
        self.conv1 = make_convolution(in_channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = make_convolution(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = make_shortcut(in_channels, width, stride)
        self.adsr = ADSR(width, **options) if adsr else nn.Identity()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B, width, H / stride, W / stride)."""
        y_BCHW = functional.relu(
            self.bn1(self.conv1(x_BCHW)), inplace=True
        )  # (B,in,H,W) -> (B,width,H/stride,W/stride)
        y_BCHW = self.adsr(self.bn2(self.conv2(y_BCHW)))
        shortcut_BCHW = self.downsample(x_BCHW)  # (B,in,H,W) -> (B,width,H/stride,W/stride)
        return functional.relu(y_BCHW + shortcut_BCHW, inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, the last to four times the width; for depths 50 and 101.

    Parameters
    ----------
    in_channels, width, stride, adsr, **options
        As for :class:`BasicBlock`; the stride is that of the 3x3 convolution.
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, adsr: bool, **options: Any) -> None:
        super().__init__()
        out_channels = self.expansion * width
        self.conv1 = make_convolution(in_channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = make_convolution(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = make_convolution(width, out_channels, 1)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = make_shortcut(in_channels, out_channels, stride)
        self.adsr = ADSR(out_channels, **options) if adsr else nn.Identity()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B, 4 width, H / stride, W / stride)."""
        y_BCHW = functional.relu(self.bn1(self.conv1(x_BCHW)), inplace=True)  # (B,in,H,W) -> (B,width,H,W)
        y_BCHW = functional.relu(self.bn2(self.conv2(y_BCHW)), inplace=True)  # -> (B,width,H/stride,W/stride)
        y_BCHW = self.adsr(self.bn3(self.conv3(y_BCHW)))  # -> (B,4 width,H/stride,W/stride)
        shortcut_BCHW = self.downsample(x_BCHW)  # (B,in,H,W) -> (B,4 width,H/stride,W/stride)
        return functional.relu(y_BCHW + shortcut_BCHW, inplace=True)


def make_convolution(in_channels: int, out_channels: int, side: int, stride: int = 1) -> nn.Conv2d:
    """Return a padded convolution without bias, initialised by Kaiming normal, fan out, as the released code does."""
    convolution = nn.Conv2d(in_channels, out_channels, side, stride, padding=side // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution


def make_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Return the identity where shapes agree, else a strided 1x1 convolution with BatchNorm.

    The convolution stays as PyTorch initialises it (Kaiming uniform), as in the released code.
    """
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )


Block = type[BasicBlock] | type[Bottleneck]
ARCHITECTURES: dict[int, tuple[Block, tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}


class ADSRNet(nn.Module):
    """ResNet for images, with an ADSR at the end of the residual branches of chosen stages.

    Parameters
    ----------
    block : type
        :class:`BasicBlock` or :class:`Bottleneck`.
    depths : sequence of four int
        Blocks of each stage.
    num_classes : int
        K.
    stages : collection of int
        Stages, counted from 1, whose blocks are recalibrated.
    **options
        Options of :class:`ADSR`.
    """

    def __init__(
        self, block: Block, depths: Sequence[int], num_classes: int, stages: Sequence[int], **options: Any
    ) -> None:
        super().__init__()
        self.conv1 = make_convolution(3, 64, 7, stride=2)
        self.bn1 = nn.BatchNorm2d(64)
        channels = 64
        layers = []
        for stage, (width, depth) in enumerate(zip((64, 128, 256, 512), depths, strict=True), start=1):
            layer = nn.Sequential()
            for index in range(depth):
                stride = 2 if stage > 1 and index == 0 else 1
                layer.append(block(channels, width, stride, stage in stages, **options))
                channels = block.expansion * width
            layers.append(layer)
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.fc = nn.Linear(channels, num_classes)
        nn.init.kaiming_normal_(self.fc.weight, mode="fan_in", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return logits, (B,K), of normalised float32 images, (B,3,H,W)."""
        y_BCHW = functional.relu(self.bn1(self.conv1(x_BCHW)), inplace=True)  # (B,3,H,W) -> (B,64,H/2,W/2)
        y_BCHW = functional.max_pool2d(y_BCHW, 3, stride=2, padding=1)  # -> (B,64,H/4,W/4)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            y_BCHW = stage(y_BCHW)  # -> (B,C,H/4,W/4), then C doubles and H, W halve three times
        y_BC = y_BCHW.mean(dim=(2, 3))  # (B,C,H/32,W/32) -> (B,C)
        logits_BK: Tensor = self.fc(y_BC)  # (B,C) -> (B,K)
        return logits_BK


def adsr_resnet(
    depth: int,
    num_classes: int,
    *,
    pretrained_backbone: str | None = None,
    stages: Sequence[int] = (1, 2, 3, 4),
    bag_levels: Sequence[int] | None = None,
    bag_families: Sequence[str] = FAMILIES,
    bag_bn_momentum: float = 0.01,
    **options: Any,
) -> ADSRNet:
    """Build ADSR-Net.

    Parameters
    ----------
    depth : {18, 34, 50, 101}
        Depth of the ResNet.
    num_classes : int
        K.
    pretrained_backbone : str, optional
        File with the state dict of torchvision's ResNet of this depth, as ``torch.save`` or ``.safetensors`` wrote it.
        Nothing is downloaded. Its classifier is left out. Consider ``gate_gain=2`` with it.
    stages : sequence of int
        Which of the four stages have ADSR.
    bag_levels : sequence of int, optional
        Makes every 3x3 convolution of the four stages, with its BatchNorm, a dense bag of these levels (ERoHPRF), which
        is again one convolution when deployed. In place of 9 taps, levels 3, 5, 7 train 219, and level 3 alone 21. Not
        with ``pretrained_backbone``, whose 3x3 kernels would be lost.
    bag_families, bag_bn_momentum
        ``families`` and ``bn_momentum`` of :class:`fedmed.models.bags.bag.HeterogeneousPyramidConv2d`.
    **options
        Options of :class:`fedmed.models.adsr.ADSR`.

    Raises
    ------
    ConfigError
        If an option is unknown or has a value that is not allowed, or the file cannot be used.

    """
    if depth not in ARCHITECTURES:
        raise ConfigError(f"ADSR-Net of depth {depth!r}. Allowed: {', '.join(map(str, ARCHITECTURES))}.")
    for option in options:
        if option not in ADSR_OPTIONS:
            allowed = sorted((*ADSR_OPTIONS, *HOST_OPTIONS))
            raise ConfigError(
                f"ADSR-Net has no option '{option}'.{suggest_nearest(option, allowed)} Allowed: {', '.join(allowed)}."
            )
    block, depths = ARCHITECTURES[depth]
    model = ADSRNet(block, depths, num_classes, check_subset("stages", stages, (1, 2, 3, 4)), **options)
    if bag_levels is not None:
        if pretrained_backbone is not None:
            raise ConfigError(
                "'bag_levels' replaces the 3x3 kernels of 'pretrained_backbone'. Allowed: one of the two."
            )
        insert_dense_bags(model, bag_levels, families=bag_families, bn_momentum=bag_bn_momentum)
    if pretrained_backbone is not None:
        if not isinstance(pretrained_backbone, str):
            raise ConfigError(
                f"'pretrained_backbone' is {pretrained_backbone!r}. Allowed: null, or the path of a file."
            )
        try:
            load_torchvision_weights(model, read_state_dict(Path(pretrained_backbone)))
        except ConfigError as error:
            raise ConfigError(f"pretrained_backbone '{pretrained_backbone}': {error}") from error
    return model


def load_torchvision_weights(model: ADSRNet, state_dict: Mapping[str, Tensor]) -> None:
    """Load the weights of torchvision's ResNet of the same depth, except for its classifier.

    Classifier and ADSR modules stay as they are.

    Parameters
    ----------
    model : ADSRNet
        Changed in place.
    state_dict : mapping of str to Tensor
        As ``torchvision.models.resnet18().state_dict()``. BatchNorm's counters may be absent, as in older files.

    Raises
    ------
    ConfigError
        If a tensor of the backbone is missing, unexpected, or of another shape. The model is unchanged then.
    """
    state = model.state_dict()
    own = {name: state[name] for name in state if ".adsr." not in name and not name.startswith(CLASSIFIER)}
    given = {name: value for name, value in state_dict.items() if not name.startswith(CLASSIFIER)}
    missing = [name for name in own if name not in given and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in given if name not in own]
    misshaped = [name for name, value in given.items() if name in own and value.shape != own[name].shape]
    problems = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshaped))
        if names
    ]
    if problems:
        raise ConfigError(
            f"These weights do not fit the backbone: tensors {'; '.join(problems)}. "
            "Give the state dict of torchvision's ResNet of the same depth."
        )
    model.load_state_dict({**state, **given})


def insert_adsr(model: nn.Module, predicate: Callable[[str, nn.Module], bool], **options: Any) -> list[str]:
    """Put an :class:`ADSR` behind chosen modules of another residual network, in place.

    Parameters
    ----------
    model : nn.Module
        The host. Load its pretrained weights before: a chosen module's tensors move from ``NAME.*`` to ``NAME.host.*``.
    predicate : callable
        ``predicate(name, module)`` chooses; usually the last BatchNorm of each residual branch, before the addition.
    **options
        Options of :class:`ADSR`.

    Returns
    -------
    list of str
        Names of the chosen modules.

    Raises
    ------
    ValueError
        If nothing is chosen, or a chosen module has neither ``num_features`` nor ``out_channels``.

    Examples
    --------
    >>> names = insert_adsr(torchvision.models.resnet18(), lambda name, module: name.endswith("bn2"))
    """
    chosen = [(name, module) for name, module in model.named_modules() if name and predicate(name, module)]
    if not chosen:
        raise ValueError("The predicate chose no module of the model. Print model.named_modules() to see the names.")
    recalibrations = []
    for name, host in chosen:
        channels = getattr(host, "num_features", None) or getattr(host, "out_channels", None)
        if not isinstance(channels, int):
            kind = type(host).__name__
            raise ValueError(f"'{name}' ({kind}) does not tell its channels. Choose a BatchNorm or a convolution.")
        recalibrations.append(ADSR(channels, **options))
    # Inner modules first, while the path to them still holds.
    for (name, host), recalibration in reversed(list(zip(chosen, recalibrations, strict=True))):
        parent_name, _, own_name = name.rpartition(".")
        pair = nn.Sequential(OrderedDict(host=host, adsr=recalibration))
        setattr(model.get_submodule(parent_name), own_name, pair)
    return [name for name, _ in chosen]
