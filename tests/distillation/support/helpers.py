"""Small networks that stand for teachers and students, and what is skipped without the real ones."""

import hashlib

import pytest
import torch
from torch import Tensor, nn

from fedmed.distillation import FourierPrompt
from fedmed.distillation.teachers.teacher import Teacher, TeacherUnavailableError, load_teacher

STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class SmallNet(nn.Module):
    """Two convolutions with BatchNorm, pooled; with a classifier unless ``num_classes`` is 0."""

    def __init__(self, width: int = 8, num_classes: int = 0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        return self.fc(x.mean(dim=(2, 3)))


def make_teacher(width: int = 8, image_size: int = 16, seed: int = 0) -> Teacher:
    """Return a small teacher whose BatchNorms have seen noise."""
    torch.manual_seed(seed)
    network = SmallNet(width).train()
    for _ in range(30):
        network(torch.randn(16, 3, image_size, image_size))
    return Teacher(
        network,
        name="small",
        source="test",
        sha256="0" * 64,
        num_features=width,
        image_size=image_size,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )


def hash_state(module: nn.Module) -> str:
    """Return a hash of all parameters and buffers."""
    state = module.state_dict()
    return hashlib.sha256(b"".join(state[name].contiguous().numpy().tobytes() for name in sorted(state))).hexdigest()


def real_teacher(name: str, **options: object) -> Teacher:
    """Return a packaged teacher, or skip the test."""
    try:
        return load_teacher({"name": name, **options})
    except TeacherUnavailableError as error:
        pytest.skip(str(error))


def randomize_prompt(prompt: FourierPrompt, seed: int = 0) -> None:
    """Set a static prompt to random gains in its range: each value of theta is normal with standard deviation 1."""
    assert prompt.mode == "static"
    assert prompt.theta is not None
    with torch.no_grad():
        prompt.theta.copy_(torch.randn(prompt.theta.shape, generator=torch.Generator().manual_seed(seed)))
