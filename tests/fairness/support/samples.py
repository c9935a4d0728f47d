"""Tables with groups, for the tests of disparities."""

import numpy as np
import torch

from fedmed.metrics.tables import EvaluationTables, tables_from_logits


def tables_of_groups(counts, groups=None, rare=None, withheld=None, scores=None):
    """Tables with these counts (G,K,K), and calibration (G,15,3) of rare classes; what is not given is empty."""
    counts = np.asarray(counts, np.int64)
    g, k = counts.shape[:2]
    given = {"counts": counts, "scores": scores, "mixed": rare}
    if rare is not None:
        given["rare"] = rare[..., [0, 2]].sum(axis=1).astype(np.int64)
    if withheld is not None:
        given["withheld"] = np.asarray(withheld, np.int64)
    arrays = {name: array for name, array in given.items() if array is not None}
    return EvaluationTables.make(tuple(groups or (f"group_{i}" for i in range(g))), k, **arrays)


def draw_answers(rng, recalls, sizes):
    """Counts (G,K,K) of groups with the recalls (G,K) and numbers of images (G,K); errors go to any other class."""
    recalls, sizes = np.broadcast_arrays(recalls, sizes)
    k = recalls.shape[-1]
    others = (1 - recalls[..., None]) / (k - 1)
    shares = np.where(np.eye(k, dtype=bool), recalls[..., None], others)
    return rng.multinomial(sizes, shares)


def draw_images(num_images, shares, groups, seed, signal=1.5):
    """Logits (N,K), labels (N,) and groups (N,) whose quality differs from group to group."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(len(shares), size=num_images, p=np.array(shares) / sum(shares))
    members = rng.integers(0, len(groups), num_images)
    logits = rng.normal(size=(num_images, len(shares)))
    logits[np.arange(num_images), labels] += signal * (0.5 + members / len(groups))
    return logits, labels, np.array(groups)[members]


def count_images(logits, labels, groups):
    return tables_from_logits(torch.tensor(logits), torch.tensor(labels), list(groups))
