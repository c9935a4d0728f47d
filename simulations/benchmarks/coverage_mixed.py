"""What is lost where a patient has images of several classes, which the tables do not link, for the coverage benchmark.

Letters: N images.
"""

from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from fedmed.fairness.chance.compare_groups import compare_groups
from fedmed.fairness.chance.flags import FLAG_KEYS, flag_attributes
from fedmed.fairness.chance.intervals import add_intervals
from fedmed.fairness.chance.paired import LEVEL, compare_paired
from fedmed.metrics.classification import compute_figures
from fedmed.metrics.clusters import count_clusters
from fedmed.metrics.site_tables import make_paired
from fedmed.metrics.tables import EvaluationTables
from fedmed.metrics.values import Array

SHARES = (0.5, 0.3, 0.2)
RIGHT = 0.7
PATIENTS = 60
_CORRELATION = 0.5
_DRAWS = 300


class Answers(NamedTuple):
    """Images of groups of 60 patients, each answered by two equal models; a patient is as hard in every class."""

    labels: Array
    groups: Array
    patients: Array
    right: Array
    """(2,N)"""


def draw_answers(rng: np.random.Generator, per_patient: int, mixed: float, groups: int) -> Answers:
    """Return answers; a share ``mixed`` of the images is of any class, the others are of their patient's class."""
    patient_N = np.repeat(np.arange(PATIENTS * groups), per_patient)
    num_images, classes = len(patient_N), len(SHARES)
    usual = rng.choice(classes, PATIENTS * groups, p=SHARES)[patient_N]
    y_N = np.where(rng.random(num_images) < mixed, rng.choice(classes, num_images, p=SHARES), usual)
    level = rng.normal(size=(2, PATIENTS * groups))[:, patient_N]
    noise = rng.normal(size=(2, num_images))
    right = np.sqrt(_CORRELATION) * level + np.sqrt(1 - _CORRELATION) * noise < NormalDist().inv_cdf(RIGHT)
    return Answers(y_N, patient_N // PATIENTS, patient_N, right)


def make_tables(answers: Answers, rng: np.random.Generator) -> EvaluationTables:
    """Return the tables of the first model, by group; a wrong answer is of any other class."""
    y_N, g_N, patient_N, (right_N, _) = answers
    num_groups, classes = int(g_N.max()) + 1, len(SHARES)
    counts = np.zeros((num_groups, classes, classes), np.int64)
    wrong_N = (y_N + rng.integers(1, classes, len(y_N))) % classes
    np.add.at(counts, (g_N, y_N, np.where(right_N, y_N, wrong_N)), 1)
    clusters = count_clusters(g_N * classes + y_N, patient_N, right_N, num_groups * classes)
    names = tuple(f"g{g}" for g in range(num_groups))
    patients = clusters.reshape(num_groups, classes, 4)
    return EvaluationTables.make(names, classes, counts=counts, patients=patients)


def judge_once(rng: np.random.Generator, per_patient: int, mixed: float) -> dict[str, bool | None]:
    """Return whether intervals hold, two equal groups have a flag, and two equal models a verdict."""
    seed = int(rng.integers(2**31))
    own = draw_answers(rng, per_patient, mixed, 1)
    tables = make_tables(own, rng)
    found = add_intervals(compute_figures(tables), tables, seed, _DRAWS)
    held: dict[str, bool | None] = {}
    for key in ("accuracy", "balanced_accuracy"):
        low, high = found[key].interval or (0.0, 1.0)
        held[f"interval {key}"] = low <= RIGHT <= high
    both = make_tables(draw_answers(rng, per_patient, mixed, 2), rng)
    gaps = flag_attributes({"sex": compare_groups(both, seed, _DRAWS)})["sex"]
    ids = [str(patient) for patient in own.patients.tolist()]
    paired = make_paired(own.right[0], own.right[1], own.labels, ["a"] * len(ids), len(SHARES), ids)
    verdicts = compare_paired(
        paired.cells[0], seed, _DRAWS, spread=paired.spread[0], patients=tables.patients[0, :, 0]
    ).values()
    decided = any(one.verdict != "undecided" and (one.family_p or 0.0) < LEVEL for one in verdicts)
    return held | {"any flag": any(gaps[key].flagged for key in FLAG_KEYS), "any verdict": decided}
