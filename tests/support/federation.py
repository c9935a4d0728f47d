"""A small federation in this process: three phantom sites, a tiny network with BatchNorm."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from torch import nn

from client.site import app as client_app
from fedmed.config import RunConfig
from fedmed.data import prepare_data
from fedmed.models import MODELS
from fedmed.models.bags.bag import HeterogeneousPyramidConv2d
from fedmed.protocol.messages import REQUEST, read_values
from fedmed.storage.run_folder import RunFolder
from server.federation import run_federation
from server.rounds.progress import LogListener
from tests.support.local_grid import LocalGrid, Tamper

if "tiny" not in MODELS.names():

    @MODELS.register("tiny")
    def build_tiny(num_classes: int, *, width: int = 4) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, width, 3, stride=4, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(width, num_classes),
        )


if "tiny_bag" not in MODELS.names():

    @MODELS.register("tiny_bag")
    def build_tiny_bag(num_classes: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            HeterogeneousPyramidConv2d(4, 4, levels=(3, 5), bn_momentum=0.1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, num_classes),
        )


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


def is_training(request: Message, round_number: int | None = None) -> bool:
    """Return whether a message asks to train, in this round or in any."""
    if request.metadata.message_type != "train":
        return False
    return round_number is None or read_values(request, REQUEST)["round"] == round_number


class Notes(LogListener):
    """Keeps what a person would have been told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.problems: dict[str, str] = {}

    def on_note(self, text: str) -> None:
        self.notes.append(text)

    def on_answer(self, site: str, problem: str | None) -> None:
        if problem:
            self.problems[site] = problem


class Federation:
    """A run folder, ready to be run and run again."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.run = RunFolder.create(path, "resume")
        values: dict[str, Any] = {
            "rounds": 3,
            "sites": 3,
            "min_sites": 1,
            "round_deadline_s": 5,
            # Either costs more than all the rest; tests of them switch them on.
            "benefit": False,
            "fairness": {"attributes": []},
            "model": {"name": "tiny"},
            "data": {"source": "phantom", "images_per_site": 40, "num_classes": 3, "image_size": 16},
            "training": {"optimizer": {"lr": 0.05}, "batch_size": 8},
        }
        config = RunConfig.model_validate(values | settings)
        prepared = prepare_data(config.data, config.sites, config.seed, self.run.splits)
        self.config = config.model_copy(update={"classes": list(prepared.classes)})
        self.run.write_config(self.config)
        self.run.record_start()
        self.sites = prepared.sites
        self.run.write_roster({number + 1: site for number, site in enumerate(self.sites)})
        self.listener = Notes()

    def grid(self, tamper: Tamper | None = None, order: Callable[[list[str]], list[str]] = list) -> LocalGrid:
        configs = {
            number + 1: {"run-dir": str(self.run.path), "site": site, "cache-mib": 10.0}
            for number, site in enumerate(self.sites)
        }
        return LocalGrid(client_app, configs, tamper, order)

    def go(self, grid: LocalGrid | None = None) -> None:
        run_federation(grid or self.grid(), self.run, self.listener)

    def go_until(self, round_number: int, site: str | None = None) -> None:
        """Run until a site, or any, has trained in a round and saved its state, but the server has no answer of it."""

        def kill(name: str, request: Message, reply: Message) -> Message:
            if is_training(request, round_number) and site in {None, name}:
                raise Killed
            return reply

        with pytest.raises(Killed):
            self.go(self.grid(kill))

    def final_model(self) -> bytes:
        return (self.run.checkpoints / f"round_{self.config.rounds:05d}" / "model.safetensors").read_bytes()
