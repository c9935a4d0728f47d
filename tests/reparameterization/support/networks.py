"""Small networks with statistics as after training, and a bag that is written out."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedmed.reparameterization.algebra import fold_batch_norm, merge_parallel


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every BatchNorm the statistics of section 4 of the specification."""
    generator = torch.Generator().manual_seed(seed)
    for norm in model.modules():
        if not isinstance(norm, _BatchNorm):
            continue
        shape = (norm.num_features,)
        if norm.running_mean is not None:
            norm.running_mean.copy_(0.3 * torch.randn(shape, generator=generator))
            norm.running_var.copy_(0.25 + 1.5 * torch.rand(shape, generator=generator))
        if norm.weight is not None:
            norm.weight.data.copy_(0.6 + 0.8 * torch.rand(shape, generator=generator))
            norm.bias.data.copy_(0.2 * torch.randn(shape, generator=generator))
    return model


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Bag(nn.Module):
    """Three parallel depthwise convolutions with BatchNorm; as plain as can be."""

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.in_channels = channels
        self.stride = stride
        self.branches = nn.ModuleList()
        for height, width in ((3, 1), (1, 3), (3, 3)):
            branch = nn.Module()
            branch.conv = nn.Conv2d(
                channels,
                channels,
                (height, width),
                stride,
                padding=(height // 2, width // 2),
                groups=channels,
                bias=False,
            )
            branch.norm = nn.BatchNorm2d(channels)
            self.branches.append(branch)

    def forward(self, x: Tensor) -> Tensor:
        return sum(branch.norm(branch.conv(x)) for branch in self.branches)

    def to_merged(self) -> nn.Conv2d:
        pairs = [fold_batch_norm(branch.conv.weight, None, branch.norm) for branch in self.branches]
        weight, bias = merge_parallel(pairs)
        channels = self.in_channels
        layer = nn.Conv2d(channels, channels, 3, self.stride, 1, groups=channels).to(self.branches[0].conv.weight)
        layer.weight.data.copy_(weight)
        layer.bias.data.copy_(bias)
        return layer


class SmallNet(nn.Module):
    """Stem, bag, residual branch and classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.bag = Bag(8)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu_(self.bag(x))
        x = x + self.block(x)
        return self.fc(x.mean((2, 3)))
