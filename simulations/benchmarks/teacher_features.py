"""What a frozen teacher's features are worth: by the size at which it sees the images, pooled and averaged over sites.

    python simulations/benchmarks/teacher_features.py                   # a quarter of an hour, nearly all at 224
    python simulations/benchmarks/teacher_features.py --sizes 96 --seeds 5 --json figures.json

A distilled student can only gain what the teacher has. This trains one layer on the teacher's features, computed once
without augmentation: on the images of all sites together, which no federation may do, and by federated averaging over
the sites. Both have the same images, steps and settings, the round is chosen on validation images, and the figure is
the balanced accuracy on the pooled test images. Where sizes differ when images are pooled and not when sites average,
it is the sites' difference that limits a federation, and no better teacher helps.

Images, rounds, batches and the optimizer's first rate are by default those of the arm ``frozen_teacher`` of
configs/studies/fopro_kd.yaml; that has a weight decay of 0 and a falling rate besides. Intervals are of Student's t
over seeds.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor, nn

from fedmed.config import RunConfig, TeacherPlan
from fedmed.data import ImagePart, make_batches, make_eval_transform, normalisation
from fedmed.distillation import Teacher, get_teacher
from fedmed.distillation.pixels import restore_pixels
from fedmed.losses.balanced import LogitAdjustment
from fedmed.seeding import make_rng
from fedmed.training.optimizers import make_optimizer
from simulations.benchmarks.apps import make_benchmark_run, open_benchmark_site
from simulations.benchmarks.seeds import Finding, add_seed_options, measure_seeds, with_interval

SETTINGS = (
    "data.max_train_images=2000",
    "rounds=20",
    "training.batch_size=32",
    "training.optimizer.lr=0.003",
    "training.optimizer.nesterov=false",
)
SIZES = (64, 96, 224)
_ASKED_AT_ONCE = 64


class TeacherFinding(Finding):
    """Balanced accuracies on test images with one teacher."""

    size: int
    """Of the teacher's images."""
    pooled: float
    """With the training images of all sites together."""
    sites: float
    """Averaged over the sites."""


@dataclass(frozen=True)
class Features:
    """Features of images and their classes.

    Attributes
    ----------
    values : Tensor
        float32 (N,F).
    labels : Tensor
        int64 (N,).
    """

    values: Tensor
    labels: Tensor

    @staticmethod
    def pool(groups: Sequence["Features"]) -> "Features":
        """Return all of them together."""
        return Features(torch.cat([one.values for one in groups]), torch.cat([one.labels for one in groups]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_seed_options(parser, SETTINGS)
    parser.add_argument("--teacher", default="efficientnet_lite0", help="one of an installed package")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="sides in pixels that the teacher sees")
    options = parser.parse_args(arguments)
    teachers = [TeacherPlan(name=options.teacher, image_size=size) for size in options.sizes]
    found = measure_seeds(
        options,
        SETTINGS,
        lambda config: measure(config, teachers),
        "seed {seed}, {size} px: pooled {pooled:.3f}, sites {sites:.3f}".format_map,
    )
    if found is None:
        return 1
    print(describe(found))
    return 0


def measure(config: RunConfig, teachers: Sequence[TeacherPlan]) -> Iterator[TeacherFinding]:
    """Yield the balanced accuracies on test images with one seed, teacher by teacher.

    Yields
    ------
    TeacherFinding
        Without its seed.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = make_benchmark_run(Path(folder) / "run", config)
        config = run.read_config()
        sites = [open_benchmark_site(run, name).data for name in run.read_roster().values()]
        for plan in teachers:
            teacher = get_teacher(plan)
            train = [extract(teacher, site.train, config) for site in sites]
            validation = Features.pool([extract(teacher, site.validation, config) for site in sites])
            test = Features.pool([extract(teacher, site.test, config) for site in sites])
            yield {
                "size": plan.image_size,
                "pooled": train_layer([Features.pool(train)], validation, test, config),
                "sites": train_layer(train, validation, test, config),
            }


@torch.no_grad()
def extract(teacher: Teacher, part: ImagePart, config: RunConfig) -> Features:
    """Return the teacher's features of images as the federation sees them."""
    recipe = config.data.augmentation
    transform, statistics = make_eval_transform(recipe, config.data.image_size), normalisation(recipe)
    values = []
    for first in range(0, len(part), _ASKED_AT_ONCE):
        images = part.images(range(first, min(first + _ASKED_AT_ONCE, len(part))))
        values.append(teacher(restore_pixels(transform(images), statistics)))
    return Features(torch.cat(values), part.labels)


def train_layer(groups: Sequence[Features], validation: Features, test: Features, config: RunConfig) -> float:
    """Return the test balanced accuracy of a layer after federated averaging over groups; one group is plain training.

    Parameters
    ----------
    groups : sequence of Features
        For training; each with the balanced softmax of its own class counts, and weighted by its images.
    validation, test : Features
        The round is chosen on the first.
    config : RunConfig
        Seed, rounds, batch size and the optimizer, whose rate is constant and whose state stays with its group.
    """
    num_classes = len(config.classes or ())
    torch.manual_seed(config.seed)
    layer = nn.Linear(test.values.shape[1], num_classes)
    learners = [Learner(number, group, num_classes, config) for number, group in enumerate(groups)]
    shares = [len(group.labels) / sum(len(one.labels) for one in groups) for group in groups]
    best, chosen = -1.0, 0.0
    for number in range(1, config.rounds + 1):
        trained = [learner.train(layer, number) for learner in learners]
        with torch.no_grad():
            for name, value in layer.named_parameters():
                value.zero_()
                for share, one in zip(shares, trained, strict=True):
                    value.add_(one[name], alpha=share)
        if (found := score(layer, validation)) > best:
            best, chosen = found, score(layer, test)
    return chosen


class Learner:
    """Trains a layer on one group's features."""

    def __init__(self, number: int, group: Features, num_classes: int, config: RunConfig) -> None:
        self._number, self._group, self._config = number, group, config
        counts = torch.bincount(group.labels, minlength=num_classes)
        self._loss = LogitAdjustment(counts.tolist())
        self._layer = nn.Linear(group.values.shape[1], num_classes)
        self._optimizer = make_optimizer(self._layer, config.training.optimizer)

    def train(self, start: nn.Linear, number: int) -> Mapping[str, Tensor]:
        """Return the parameters after an epoch from those of ``start``; the next epoch writes over them."""
        self._layer.load_state_dict(start.state_dict())
        rng = make_rng(self._config.seed, "teacher_features", self._number, number)
        order = rng.permutation(len(self._group.labels))
        for batch in make_batches(order, self._config.training.batch_size):
            self._optimizer.zero_grad()
            self._loss(self._layer(self._group.values[batch]), self._group.labels[batch]).backward()
            self._optimizer.step()
        return dict(self._layer.named_parameters())


@torch.no_grad()
def score(layer: nn.Linear, features: Features) -> float:
    """Return the balanced accuracy."""
    return float(balanced_accuracy_score(features.labels, layer(features.values).argmax(1)))


def describe(found: Sequence[TeacherFinding]) -> str:
    """Return the figures of all seeds as a table."""
    lines = [f"balanced accuracy, {len({one['seed'] for one in found})} seeds"]
    for size in dict.fromkeys(one["size"] for one in found):
        rows = [one for one in found if one["size"] == size]
        columns = {
            "pooled": [one["pooled"] for one in rows],
            "sites": [one["sites"] for one in rows],
            "sites minus pooled": [one["sites"] - one["pooled"] for one in rows],
        }
        lines.append(
            f"  {size} px:  " + "   ".join(f"{name} {with_interval(values, '.3f')}" for name, values in columns.items())
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
