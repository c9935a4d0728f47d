"""What a teacher costs a site in a round, as a ratio to the student's own training, in one run.

    python simulations/benchmarks/distillation.py                       # about half an hour on one core
    python simulations/benchmarks/distillation.py --students resnet18 --teacher-sizes 96 --turns 2
    python simulations/benchmarks/distillation.py --epochs 8 --prompt-steps 5 --json figures.json

One site trains for a round with the code that sites run: the student alone, then with a frozen teacher whose features
it learns, without and with the Fourier prompt (a reconstruction), without and with a cache of the teacher's features.
All take turns, and the best of several turns counts: CPU seconds, which other processes on the machine hardly change
(seconds of the clock on a GPU). Read the ratios, not the seconds.

Cached features are valid as long as the prompt is. Without a prompt that is the whole run: the teacher sees each image
in the first round only. With one, every round begins with the prompt's steps and one pass of the teacher over all
images, so a cache pays only where a round has several epochs. Views of an image must repeat (augmentation: none, as
here, or flips, which has four views). The prompt's steps are as many whatever the number of images is: their share of a
round falls as a site has more.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch

from fedmed.config import Plan
from fedmed.data import ImagePart
from fedmed.distillation.network import build_network
from fedmed.errors import FedmedError
from fedmed.models import list_models
from fedmed.seeding import make_rng
from fedmed.training.devices import select_device
from fedmed.training.fit import fit

NUM_CLASSES = 7
STUDENTS = ("resnet18", "shufflenet_v2_x1_0_erohprf")
TEACHER_SIZES = (96, 224)
_WARM_UP, _ROUNDS = 1, 1000
_CACHE_MIB = 1024
_ALONE, _PROMPTED, _RESTING = "student alone", "teacher, prompt", "teacher, prompt without its steps"


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes
    ----------
    name : str
        For the table.
    prompt : str, optional
        ``none`` or ``static``; None is training without a teacher.
    cached : bool
        Whether the teacher's features are kept.
    steps : int
        Of the prompt, in every round.
    forgets : bool
        Whether every round is a site's first, with an empty cache.
    """

    name: str
    prompt: str | None = None
    cached: bool = False
    steps: int = 0
    forgets: bool = False


@dataclass(frozen=True)
class Setting:
    """What all variants of one table have in common.

    Attributes
    ----------
    student : str
        Name of the network.
    side, batch : int
        Side of its images in pixels, and how many it trains on at a time.
    images, epochs : int
        Of a round.
    teacher : str
        Name of a packaged teacher.
    teacher_size : int
        Side to which the teacher's images are resized, in pixels.
    source : str
        ``package``, or ``random``, which costs the same.
    """

    student: str
    side: int
    batch: int
    images: int
    epochs: int
    teacher: str
    teacher_size: int
    source: str

    def make_plan(self, variant: Variant) -> Plan:
        """Return the plan of a variant."""
        fopro = None
        if variant.prompt is not None:
            fopro = {
                "teacher": {"name": self.teacher, "source": self.source, "image_size": self.teacher_size},
                "cache_mib": _CACHE_MIB if variant.cached else 0,
                "prompt": {"mode": variant.prompt, "steps": variant.steps, "first_steps": variant.steps},
            }
        return Plan.model_validate(
            {
                "seed": 0,
                "rounds": _ROUNDS,
                "classes": [f"class_{index}" for index in range(NUM_CLASSES)],
                "image_size": self.side,
                "augmentation": "none",
                "model": {"name": self.student},
                "loss": {"ce": 1.0},
                "training": {"epochs_per_round": self.epochs, "batch_size": self.batch},
                "batch_norm": "average",
                "fopro": fopro,
            }
        )


class RandomImages:
    """Gives noise images by their number; what is on them costs nothing.

    Parameters
    ----------
    number, side : int
        How many, and their side in pixels.
    """

    def __init__(self, number: int, side: int) -> None:
        rng = make_rng(0, "benchmark images")
        self._pixels = torch.from_numpy(rng.integers(0, 256, (number, 3, side, side), dtype=np.uint8))

    def read(self, item: str) -> torch.Tensor:
        """Return one image, uint8 (3, side, side)."""
        return self._pixels[int(item)]


class Contender:
    """A variant with its network, trained on from turn to turn.

    Parameters
    ----------
    variant : Variant
        How it trains.
    setting : Setting
        What.
    part : ImagePart
        On which images.
    device : torch.device
        Where.
    """

    def __init__(self, variant: Variant, setting: Setting, part: ImagePart, device: torch.device) -> None:
        self.variant, self._part, self._device = variant, part, device
        self._plan = setting.make_plan(variant)
        self._network = build_network(self._plan)

    def run(self, turn: int) -> float:
        """Return the seconds of one round."""
        # The cache belongs to a site's name.
        site = f"{self.variant.name}, turn {turn if self.variant.forgets else 0}".replace(" ", "_")
        began = time.process_time()
        result = fit(
            self._network.trainee,
            self._part,
            self._plan,
            site=site,
            round_number=turn + 1,
            device=self._device,
            objective=self._network.objective,
        )
        return time.process_time() - began if self._device.type == "cpu" else result.train_s


class Row(TypedDict):
    """Seconds of a round, of one variant."""

    variant: str
    seconds: float
    ratio: float
    """To the student alone."""


class What(TypedDict):
    """What was measured, as ``--json`` says it."""

    student: str
    size: str
    teacher: str
    teacher_size: int
    images: int
    epochs: int
    prompt_steps: int


class Figures(What, Row):
    """A row of ``--json``."""


def list_variants(prompt_steps: int) -> list[Variant]:
    """Return the ways to train, that of the student alone first."""
    return [
        Variant(_ALONE),
        Variant("teacher, no prompt", "none"),
        Variant("teacher, no prompt, cached: first round", "none", cached=True, forgets=True),
        Variant("teacher, no prompt, cached: later rounds", "none", cached=True),
        Variant(_RESTING, "static"),
        Variant(_PROMPTED, "static", steps=prompt_steps),
        Variant("teacher, prompt, cached", "static", cached=True, steps=prompt_steps),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    options = _read_options(arguments)
    torch.set_num_threads(options.threads)
    device = select_device(options.device)
    side, batch = map(int, options.size.split("x"))
    print(f"torch {torch.__version__}, {options.threads} threads, {device.type}")
    figures: list[Figures] = []
    for student in options.students:
        for teacher_size in options.teacher_sizes:
            setting = Setting(
                student,
                side,
                batch,
                options.images,
                options.epochs,
                options.teacher,
                teacher_size,
                "random" if options.random_teacher else "package",
            )
            try:
                rows = measure(setting, options.prompt_steps, options.turns, device)
            except FedmedError as error:  # for example, no such teacher is installed
                print(error, file=sys.stderr)
                return 1
            common: What = {
                "student": student,
                "size": options.size,
                "teacher": options.teacher,
                "teacher_size": teacher_size,
                "images": options.images,
                "epochs": options.epochs,
                "prompt_steps": options.prompt_steps,
            }
            figures += [{**common, **row} for row in rows]
            print_table(setting, options.prompt_steps, rows)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def measure(setting: Setting, prompt_steps: int, turns: int, device: torch.device) -> list[Row]:
    """Return seconds of a round and their ratio to the student alone, of all variants, and the prompt's steps last.

    Parameters
    ----------
    setting : Setting
        What is trained.
    prompt_steps : int
        Steps of the prompt in a round.
    turns : int
        Counted turns of each variant, after one that is not.
    device : torch.device
        Where to compute.
    """
    labels = (np.arange(setting.images) % NUM_CLASSES).tolist()
    reader = RandomImages(setting.images, setting.side)
    part = ImagePart([str(index) for index in range(setting.images)], labels, {}, reader)
    contenders = [Contender(variant, setting, part, device) for variant in list_variants(prompt_steps)]
    best: dict[str, float] = {}
    for turn in range(turns + _WARM_UP):
        for contender in contenders:
            seconds, name = contender.run(turn), contender.variant.name
            if turn >= _WARM_UP:
                best[name] = min(seconds, best.get(name, seconds))
    best["the prompt's steps of these"] = best[_PROMPTED] - best[_RESTING]
    return [{"variant": name, "seconds": value, "ratio": value / best[_ALONE]} for name, value in best.items()]


def print_table(setting: Setting, prompt_steps: int, rows: Sequence[Row]) -> None:
    """Print seconds and their ratios to those of the student alone, which is the first row, as a markdown table."""
    steps = -(-setting.images // setting.batch) * setting.epochs
    print(
        f"\n{setting.student}, {setting.side} px; {setting.teacher}, {setting.teacher_size} px; a round of "
        f"{setting.images} images, {setting.epochs} epochs, {steps} steps of {setting.batch} images, "
        f"{prompt_steps} steps of the prompt\n\n| | s | ratio |\n|---|---:|---:|"
    )
    for row in rows:
        print(f"| {row['variant']} | {row['seconds']:.2f} | {row['ratio']:.2f} |", flush=True)


def _read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", nargs="+", choices=list_models(), default=STUDENTS, metavar="NAME",
                        help=f"networks that are trained; {' '.join(STUDENTS)} by default")  # fmt: skip
    parser.add_argument("--size", default="64x32", metavar="WIDTHxBATCH", help="of the student; 64x32 by default")
    parser.add_argument("--teacher", default="efficientnet_lite0", help="a packaged one; efficientnet_lite0 by default")
    parser.add_argument("--teacher-sizes", nargs="+", type=int, default=TEACHER_SIZES, metavar="WIDTH",
                        help="sides of the teacher's images; 96 224 by default")  # fmt: skip
    parser.add_argument("--random-teacher", action="store_true", help="the same network untrained: needs no package")
    parser.add_argument("--images", type=int, default=160, help="of the site; 160 by default")
    parser.add_argument("--epochs", type=int, default=4, help="of a round; 4 by default")
    parser.add_argument("--prompt-steps", type=int, default=20, help="of a round; 20 by default, as in the settings")
    parser.add_argument("--turns", type=int, default=3, help="counted turns of each variant, after one that is not")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch; 1 by default, as a simulation's workers")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu", help="cpu by default")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to a file")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
