"""Alarms of a run: a group's figure falls by more than chance allows, or a group is no longer covered.

A run has many rounds and a round has many groups, so something always falls. An alarm compares the round with one
reference, by a test that allows for all rounds and all groups of the run.

Letters: K classes.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from fedmed.metrics.values import Array
from fedmed.storage.history import Alarm, RoundRecord

LEVEL = 0.05
FIGURE = "balanced_accuracy"
_GRID = 10_000  # steps in which a fall from 100 % to 0 % is told
_TINY = 1e-15
_MANY = 1_000_000  # images of a class, from which on a list of all their numbers would be long

Counts = Mapping[str, list[int]]


def find_alarms(
    history: Sequence[RoundRecord],
    record: RoundRecord,
    reference: RoundRecord | None,
    num_rounds: int | None = None,
    level: float = LEVEL,
) -> list[Alarm]:
    """Compare the groups of a round with the same groups of a reference round.

    Parameters
    ----------
    history : sequence of RoundRecord
        Of the rounds before, as in ``history.jsonl``; only their number matters.
    record : RoundRecord
        Of the round; ``record.validation.counts`` maps attribute to group to ``{"n": [K], "right": [K]}``, the
        attribute ``site`` included, and ``"worth": [K]`` where several images of a patient count as fewer.
    reference : RoundRecord or None
        Of an earlier round, usually the best one so far. Without one there are no alarms.
    num_rounds : int, optional
        Rounds that are to be compared in the whole run. Without it the t-th comparison gets 1 / (t (t + 1)) of the
        level, which adds up to no more than the level however long the run is.
    level : float
        Largest probability of any alarm of a fall in a run in which nothing falls.

    Returns
    -------
    list of Alarm
        With ``kind`` ("fall" or "coverage"), ``attribute``, ``group``, ``figure``, ``value``, ``reference``,
        ``reference_round``, ``p_value`` (None for coverage) and ``text`` in plain words. Of a fall, value and reference
        are the recall averaged over the classes with images in both rounds; of coverage, numbers of images.

    Notes
    -----
    * The test of a fall is exact and one-sided: in every class, the right answers of both rounds are dealt out anew
      between the rounds (Fisher's exact test), and the fall of the mean recall must be at least the observed one.
    * Both rounds are about the same images, which the tables do not link. Leaving that out makes the test conservative,
      since answers to the same image are alike in both rounds. On the other hand the reference is mostly the best round
      so far, which luck has helped: with answers that do not hang together over the rounds at all, a run has an alarm
      in 9 instead of 5 % of cases.
    * Where patients have several images, a class counts as so many images as these are worth, in their shares
      (:mod:`fedmed.fairness.figures.design_effects`).
    * p-values are multiplied by the number of groups compared (Bonferroni), and by that of the rounds.
    """
    if reference is None:
        return []
    now, before = _read_counts(record), _read_counts(reference)
    covered = {key: counts for key, counts in now.items() if _count_images(counts)}
    expected = {key: counts for key, counts in before.items() if _count_images(counts)}
    done = max(len(history), 1)
    factor = len(covered.keys() & expected) * (num_rounds if num_rounds else done * (done + 1))
    alarms = []
    for key, then in expected.items():
        if key not in covered:
            alarms.append(_report_coverage(key, then, record, reference))
        elif found := _test_fall(then, covered[key]):
            value, former, p_value = found
            if p_value * factor < level:
                adjusted, over = p_value * factor, _say_classes(then, covered[key])
                alarms.append(_report_fall(key, record, reference, (value, former, adjusted), over))
    return alarms


def fall_p_value(right: Array, n: Array, right_before: Array, n_before: Array, fall: float | None = None) -> float:
    """Return the probability of a fall of the mean recall as large as the observed one, if nothing has changed.

    Parameters
    ----------
    right, n, right_before, n_before : ndarray of int, shape (K,)
        Numbers right and numbers of images by class in the later and the earlier round, all n at least 1.
    fall : float, optional
        The observed one, where that is not quite the one of these numbers.

    Notes
    -----
    The distribution is a convolution of hypergeometric ones on a grid of 1 / 10,000; a fall is rounded such that the
    result is never too small.
    """
    num_classes = len(n)
    chances = np.ones(1)
    offset = 0  # of the grid's first step
    for k in range(num_classes):
        falls, weights = _hypergeometric_falls(int(right[k] + right_before[k]), int(n[k]), int(n_before[k]))
        steps = np.ceil(falls / num_classes * _GRID - 1e-6).astype(np.int64)
        chances, offset = _shift_and_add(chances, steps - steps.min(), weights), offset + int(steps.min())
    observed = ((right_before / n_before - right / n).mean() if fall is None else fall) * _GRID
    start = max(int(np.floor(observed + 1e-6)) - offset, 0)
    return float(min(1.0, chances[start:].sum()))


def _shift_and_add(chances: Array, steps: Array, weights: Array) -> Array:
    """Return the distribution of a sum: one part on a grid, the other one of few steps with weights."""
    total = np.zeros(len(chances) + int(steps.max()))
    for step, weight in zip(steps, weights, strict=True):
        total[step : step + len(chances)] += weight * chances
    return total


def _hypergeometric_falls(total_right: int, n: int, n_before: int) -> tuple[Array, Array]:
    """Return the falls of a class's recall that can come about by dealing out its right answers, and their chances."""
    if n + n_before > _MANY:
        return _gaussian_falls(total_right, n, n_before)
    right = np.arange(max(0, total_right - n_before), min(n, total_right) + 1)
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + n_before + 1)))])

    def log_choose(items: int, chosen: Array) -> Array:
        result: Array = factorials[items] - factorials[chosen] - factorials[items - chosen]
        return result

    logs = log_choose(n, right) + log_choose(n_before, total_right - right)
    weights = np.exp(logs - logs.max())
    weights /= weights.sum()
    kept = weights > _TINY
    return ((total_right - right) / n_before - right / n)[kept], weights[kept]


def _gaussian_falls(total_right: int, n: int, n_before: int) -> tuple[Array, Array]:
    """Return the same for so many images that a normal distribution on the grid's steps is as good, and short."""
    total = n + n_before
    share = total_right / total
    spread = np.sqrt(share * (1 - share) * (1 / n + 1 / n_before) * total / max(total - 1, 1))
    steps = np.arange(-_GRID, _GRID + 1) / _GRID
    width = max(float(spread), 1 / _GRID)
    weights = np.exp(-0.5 * np.square(steps / width))
    weights /= weights.sum()
    kept = weights > _TINY
    return steps[kept], weights[kept]


def _test_fall(then: Counts, current: Counts) -> tuple[float, float, float] | None:
    """Return mean recalls now and before, and the p-value of the fall; None if no class can be compared."""
    n, right, n_before, right_before = (np.array(c[name]) for c in (current, then) for name in ("n", "right"))
    shared = (n > 0) & (n_before > 0)
    if not shared.any():
        return None
    n, right, n_before, right_before = (array[shared] for array in (n, right, n_before, right_before))
    value, former = float((right / n).mean()), float((right_before / n_before).mean())
    if value >= former:
        return value, former, 1.0
    worth, worth_before = (np.array(c.get("worth", c["n"]))[shared] for c in (current, then))
    effective = (np.rint(right / n * worth), worth, np.rint(right_before / n_before * worth_before), worth_before)
    return value, former, fall_p_value(*effective, fall=former - value)


def _read_counts(record: RoundRecord) -> dict[tuple[str, str], Counts]:
    found = record.validation.counts
    return {(attribute, group): counts for attribute, groups in found.items() for group, counts in groups.items()}


def _count_images(counts: Counts) -> int:
    return sum(counts["n"])


def _say_classes(then: Counts, current: Counts) -> str:
    """Return over which classes a mean recall is, which a group or a hospital may have or tell few of."""
    shared = [bool(n and before) for n, before in zip(current["n"], then["n"], strict=True)]
    if all(shared):
        return "averaged over the classes"
    if sum(shared) == 1:
        return "in the only class that was checked in both rounds"
    return f"averaged over the {sum(shared)} of {len(shared)} classes that were checked in both rounds"


def _report_fall(
    key: tuple[str, str],
    record: RoundRecord,
    reference: RoundRecord,
    found: tuple[float, float, float],
    over: str,
) -> Alarm:
    attribute, group = key
    value, former, p_value = found
    text = (
        f"{_name(attribute, group)}: the share of right answers, {over}, fell from {former:.1%} in "
        f"round {reference.round} to {value:.1%} in round {record.round}. Chance alone would show such a fall in "
        f"{_in_words(p_value)}, all groups and rounds of this run considered."
    )
    return Alarm(
        kind="fall",
        attribute=attribute,
        group=group,
        figure=FIGURE,
        value=value,
        reference=former,
        reference_round=reference.round,
        p_value=p_value,
        text=text,
    )


def _report_coverage(key: tuple[str, str], then: Counts, record: RoundRecord, reference: RoundRecord) -> Alarm:
    attribute, group = key
    number = _count_images(then)
    text = (
        f"{_name(attribute, group)}: no image was checked in round {record.round}; in round {reference.round} "
        f"there were {number}. The model's quality for {'this site' if attribute == 'site' else 'this group'} is not "
        "known in this round."
    )
    return Alarm(
        kind="coverage",
        attribute=attribute,
        group=group,
        figure="images",
        value=0,
        reference=number,
        reference_round=reference.round,
        p_value=None,
        text=text,
    )


def _name(attribute: str, group: str) -> str:
    return f"Site {group}" if attribute == "site" else f"Patients with {attribute} {group}"


def _in_words(p_value: float) -> str:
    return "fewer than 1 of 1,000 runs" if p_value < 0.001 else f"about {max(1, round(p_value * 1000))} of 1,000 runs"
