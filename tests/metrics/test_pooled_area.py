"""The exact area over all images, against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fedmed.metrics.pooled_area import pooled_auc
from fedmed.metrics.tables import softmax


def test_areas_are_those_of_scikit_learn_over_all_images() -> None:
    generator = np.random.default_rng(0)
    labels_N = generator.choice(4, 300, p=[0.6, 0.25, 0.1, 0.05])
    logits_NK = generator.normal(size=(300, 4)).round(1) + 1.5 * np.eye(4)[labels_N]
    found = pooled_auc(logits_NK, labels_N)
    p_NK = softmax(logits_NK)
    expected = [roc_auc_score(labels_N == label, p_NK[:, label]) for label in range(4)]
    assert found == pytest.approx(expected, abs=1e-12)
    macro = roc_auc_score(labels_N, p_NK, multi_class="ovr", average="macro")
    assert np.mean(found) == pytest.approx(macro, abs=1e-12)


def test_a_tie_counts_half_and_a_class_without_images_has_none() -> None:
    # Own scores 1 and 0, others 0 and -1 (log-odds 1, 0, 0, -1 of a binary softmax): 1 + 1 + .5 + 1 of 4 pairs.
    logits_NK = np.array([[0.0, 1.0, -50.0], [0.0, 0.0, -50.0], [0.0, 0.0, -50.0], [0.0, -1.0, -50.0]])
    by_class = pooled_auc(logits_NK, np.array([1, 1, 0, 0]))
    assert by_class == [pytest.approx(0.875), pytest.approx(0.875), None]
