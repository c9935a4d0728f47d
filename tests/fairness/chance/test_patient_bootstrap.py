"""The bootstrap over patients: against a plain loop, no width of zero, and coverage where images hang together."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from fedmed.fairness.chance.patient_bootstrap import WITHOUT, bootstrap_groups, bootstrap_patients
from fedmed.fairness.figures.ordinal import ORDINAL_FIGURES
from fedmed.metrics.classification import COUNT_KEYS
from fedmed.metrics.values import Array


def draw_images(num_patients: int, images: int, seed: int, correlation: float = 0.5) -> tuple[Array, Array, list[str]]:
    """Return logits, labels and patients; an image is right if a normal number with 0.7 of its weight below 0 is.

    The numbers of one patient have the correlation.
    """
    rng = np.random.default_rng(seed)
    label_P = rng.integers(0, 2, num_patients)
    own = np.sqrt(correlation) * rng.standard_normal((num_patients, 1))
    rest = np.sqrt(1 - correlation) * rng.standard_normal((num_patients, images))
    right = (own + rest < 0.5244).astype(np.int64)  # the normal quantile of 0.7
    label = np.repeat(label_P, images)
    answer = np.where(right.ravel() == 1, label, 1 - label)
    logits = np.eye(2)[answer] * 2 + rng.normal(0, 0.1, (len(label), 2))
    return logits, label, [f"p{number}" for number in range(num_patients) for _ in range(images)]


def run(logits: Array, labels: Array, patients: list[str], num_draws: int = 1000) -> dict[str, object]:
    return dict(bootstrap_patients(torch.tensor(logits), torch.tensor(labels), patients, 0, num_draws))


def test_ends_are_those_of_a_plain_loop() -> None:
    """Balanced accuracy of patients drawn one by one; both have some thousand draws, so that chance is small."""
    logits, labels, patients = draw_images(60, 3, seed=1)
    answers, by_patient = logits.argmax(axis=1), np.arange(180).reshape(60, 3)
    rng, values = np.random.default_rng(5), []
    for _ in range(3000):
        chosen = by_patient[rng.integers(0, 60, 60)].ravel()
        right = answers[chosen] == labels[chosen]
        values.append(np.mean([right[labels[chosen] == k].mean() for k in (0, 1)]))
    low, high = run(logits, labels, patients, 4000)["balanced_accuracy"].interval
    expected = np.quantile(values, [0.025, 0.975])
    assert low <= expected[0] + 0.01
    assert low == pytest.approx(expected[0], abs=0.03)
    assert high == pytest.approx(expected[1], abs=0.03)


def test_auc_is_that_of_all_pairs() -> None:
    logits, labels, patients = draw_images(40, 2, seed=2)
    found = run(logits, labels, patients, 50)["auc"]
    assert found.value == pytest.approx(roc_auc_score(labels, logits[:, 1] - logits[:, 0]))
    assert found.interval[0] < found.value < found.interval[1]


def test_every_figure_has_an_interval_with_a_width_or_none() -> None:
    """A perfect model on three patients a class."""
    labels = np.repeat([0, 1, 2], 6)
    patients = [f"p{number // 2}" for number in range(18)]
    found = run(5 * np.eye(3)[labels], labels, patients)
    assert set(found) == {*COUNT_KEYS, *ORDINAL_FIGURES, "auc", "ece", "brier", *WITHOUT}
    for key in ("accuracy", "balanced_accuracy", "macro_f1", "sensitivity", "specificity", "auc", "quadratic_kappa"):
        low, high = found[key].interval
        assert low < 0.97
        assert high == pytest.approx(1, abs=1e-6)
    assert all(ends is not None and ends[0] < 0.95 for ends in found["sensitivity"].by_class_interval)
    assert all(found[key].interval is None for key in WITHOUT)


def test_more_images_of_the_same_patients_bring_little() -> None:
    logits, labels, patients = draw_images(80, 10, seed=3, correlation=0.9)
    together = run(logits, labels, patients)["accuracy"].interval
    apart = run(logits, labels, [str(number) for number in range(800)])["accuracy"].interval
    assert together[1] - together[0] > 2 * (apart[1] - apart[0])


def test_groups_are_drawn_by_themselves() -> None:
    logits, labels, patients = draw_images(40, 2, seed=4)
    groups = ["f" if number < 60 else "m" for number in range(80)]
    found = bootstrap_groups(torch.tensor(logits), torch.tensor(labels), groups, patients, 0, 100)
    alone = run(logits[60:], labels[60:], patients[60:], 100)
    assert set(found) == {"f", "m"}
    assert found["m"] == alone


def test_one_patient_has_no_interval() -> None:
    logits, labels, _ = draw_images(1, 5, seed=0)
    assert run(logits, labels, ["a"] * 5) == {}


@pytest.mark.ci
def test_intervals_hold_the_truth_where_images_hang_together() -> None:
    """Images taken for independent would hold it in about 70 %."""
    keys, held = ("accuracy", "balanced_accuracy"), dict.fromkeys(("accuracy", "balanced_accuracy"), 0)
    for seed in range(150):
        logits, labels, patients = draw_images(60, 5, seed)
        found = run(logits, labels, patients, 300)
        for key in keys:
            low, high = found[key].interval
            held[key] += low <= 0.7 <= high
    assert min(held.values()) >= 0.9 * 150, held
