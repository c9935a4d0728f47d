"""Gaps of the AUC: of the images themselves where they are told, else of histograms that are good enough."""

import dataclasses

import numpy as np
import pytest
import sklearn.metrics as oracle
import torch

from fedmed.fairness.chance.compare_groups import compare_groups
from fedmed.fairness.figures.area_choice import choose_areas
from fedmed.metrics.tables import tables_from_logits

KEYS = ("worst_group_auc", "gap_auc", "std_auc", "es_auc")


def draw(group, seed, scale, num_images=120):
    """Return tables of a site and its exact area; of a small scale nearly all scores are in two bins."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, num_images)
    score = scale * (rng.normal(size=num_images) + labels)
    logits = np.stack([-score / 2, score / 2], axis=1)
    return tables_from_logits(torch.tensor(logits), torch.tensor(labels), [group] * num_images), oracle.roc_auc_score(
        labels, score
    )


def drop(tables, name):
    return dataclasses.replace(tables, **{name: np.zeros_like(getattr(tables, name))})


def test_sites_are_compared_by_the_areas_of_their_images_where_histograms_are_coarse():
    (fine, first), (coarse, second) = draw("a", 1, 2.0), draw("b", 2, 0.1)
    found = compare_groups(fine + coarse, 0, 50)
    assert choose_areas(fine + coarse) == "images"
    assert found["gap_auc"].value == pytest.approx(abs(first - second))
    assert found["worst_group_auc"].value == pytest.approx(min(first, second))
    assert found["worst_group_auc"].interval[0] < min(first, second) < found["worst_group_auc"].interval[1]
    assert found["gap_auc"].p_value is None


def test_histograms_are_compared_only_where_they_are_good_enough():
    (fine, _), (coarse, _), (other, _) = draw("a", 1, 2.0), draw("b", 2, 0.1), draw("b", 2, 2.0)
    found = compare_groups(drop(fine + coarse, "areas"), 0, 50)
    for key in KEYS:
        assert (found[key].value, found[key].interval, found[key].p_value) == (None, None, None)
        assert found[key].reason == "the histograms of the scores are too coarse for this model"
    assert choose_areas(drop(fine + other, "areas")) == "histograms"
    binned, exact = compare_groups(drop(fine + other, "areas"), 0, 50), compare_groups(fine + other, 0, 50)
    for key in KEYS:
        assert binned[key].value != exact[key].value
        assert binned[key].value == pytest.approx(exact[key].value, abs=0.02)
        assert exact[key].p_value is not None


def test_groups_of_several_sites_are_compared_by_histograms():
    """Scores of two sites are at different levels: images of one site are ordered better than those of both."""
    parts = [draw(group, seed, 2.0)[0] for seed, group in enumerate(("f", "f", "m", "m"))]
    tables = parts[0] + parts[1] + parts[2] + parts[3]
    assert tables.groups == ("f", "m")
    assert choose_areas(tables) == "histograms"
    coarse = tables + draw("f", 7, 0.05, 600)[0]
    assert choose_areas(coarse) == "images"  # of each site alone
    assert choose_areas(drop(coarse, "areas")) is None
