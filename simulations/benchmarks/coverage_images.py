"""Images whose true figures are known, for the coverage benchmark."""

from dataclasses import dataclass

import numpy as np
import torch

from fedmed.metrics.tables import EvaluationTables, tables_from_logits
from fedmed.metrics.values import Array


@dataclass(frozen=True)
class Images:
    """A kind of data: classes with their numbers of images in every group, and how well the model tells them apart."""

    sizes: tuple[int, ...]
    """Images of each class in one group."""
    groups: int = 1
    skill: float = 1.5
    """Distance of a class's own logit from the others, in standard deviations."""
    per_patient: int = 1
    correlation: float = 0.0
    """Of the logits of one patient's images."""
    bias: tuple[float, ...] = ()
    """Added to the logits of each class."""

    def draw(self, rng: np.random.Generator, factor: int = 1) -> tuple[Array, Array, Array, Array]:
        """Return logits, labels, groups and patients of one data set, or of one larger by a factor."""
        y_N = np.tile(np.repeat(np.arange(len(self.sizes)), np.array(self.sizes) * factor), self.groups)
        g_N = np.repeat(np.arange(self.groups), sum(self.sizes) * factor)
        patient_N = np.cumsum(np.r_[True, (np.diff(y_N) != 0) | (np.diff(g_N) != 0)]) * 10**6
        patient_N = patient_N + np.arange(len(y_N)) // self.per_patient
        _, place_N = np.unique(patient_N, return_inverse=True)
        shared = rng.normal(size=(place_N.max() + 1, len(self.sizes)))[place_N]
        noise = rng.normal(size=shared.shape)
        z_NK = np.sqrt(self.correlation) * shared + np.sqrt(1 - self.correlation) * noise
        z_NK[np.arange(len(y_N)), y_N] += self.skill
        return z_NK + np.array(self.bias or 0.0), y_N, g_N, place_N

    def make_tables(self, rng: np.random.Generator, factor: int = 1) -> EvaluationTables:
        """Return the tables of such a data set, by group."""
        z_NK, y_N, g_N, patient_N = self.draw(rng, factor)
        return make_tables(z_NK, y_N, g_N, patient_N)


def make_tables(z_NK: Array, y_N: Array, g_N: Array, patient_N: Array) -> EvaluationTables:
    """Return evaluation tables of arrays."""
    names = [f"g{g}" for g in g_N.tolist()]
    return tables_from_logits(
        torch.from_numpy(z_NK), torch.from_numpy(y_N), names, [str(p) for p in patient_N.tolist()]
    )
