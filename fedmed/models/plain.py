"""Plain networks to compare with."""

import torchvision
from torch import nn


def build_resnet18(num_classes: int) -> nn.Module:
    """Build torchvision's ResNet-18 without pretrained weights."""
    model: nn.Module = torchvision.models.resnet18(weights=None, num_classes=num_classes)
    return model


def build_mobilenet_v2(num_classes: int) -> nn.Module:
    """Build torchvision's MobileNetV2 without pretrained weights."""
    model: nn.Module = torchvision.models.mobilenet_v2(weights=None, num_classes=num_classes)
    return model
