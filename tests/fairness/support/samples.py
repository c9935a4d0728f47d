"""Tables with groups, for the tests of disparities."""

import numpy as np
import torch

from fedmed.metrics.tables import EvaluationTables, tables_from_logits


def tables_of_groups(counts, groups=None, rare=None, withheld=None, scores=None):
    """Tables with these counts (G,K,K); what is not given is empty."""
    counts = np.asarray(counts, np.int64)
    g, k = counts.shape[:2]
    return EvaluationTables(
        tuple(groups or (f"group_{i}" for i in range(g))),
        counts,
        np.zeros((g, k, k, 64), np.int64) if scores is None else scores,
        np.zeros((g, k, 15, 3)),
        np.zeros((g, 3)),
        np.zeros((g, 15, 3)) if rare is None else rare,
        np.zeros((g, k), np.int64) if withheld is None else np.asarray(withheld, np.int64),
    )


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
