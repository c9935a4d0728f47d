"""Random predictions with long-tailed classes, for the tests of tables, figures and intervals."""

import numpy as np
import torch

from fedmed.metrics.tables import EvaluationTables, tables_from_logits

LONG_TAIL = (0.67, 0.11, 0.10, 0.05, 0.04, 0.02, 0.01)  # close to the shares of dermatoscopic data sets


def draw_predictions(num_images, shares=LONG_TAIL, seed=0, signal=2.0, temperature=1.0):
    """Logits (N,K) float64 of a Bayesian-like classifier that knows the shares, and labels (N,)."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(len(shares), size=num_images, p=np.array(shares) / sum(shares))
    evidence = rng.normal(size=(num_images, len(shares)))
    evidence[np.arange(num_images), labels] += signal
    logits = (signal * evidence + np.log(shares)) / temperature
    return torch.tensor(logits), torch.tensor(labels)


def draw_tables(num_images, group="site_01", **options) -> EvaluationTables:
    logits, labels = draw_predictions(num_images, **options)
    return tables_from_logits(logits, labels, [group] * num_images)
