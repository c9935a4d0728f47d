"""Weights of patient groups as a hospital applies them: none stands out by a few images."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

LOWEST_WEIGHT, HIGHEST_WEIGHT = 0.05, 20.0


def hold_weights(
    weights: Mapping[str, float],
    groups: Sequence[str],
    labels: Sequence[int],
    k: int,
    patients: Sequence[str] | None = None,
) -> dict[str, float]:
    """Return the weight of an image of each group at a hospital.

    A group has its own weight only where each of its classes has training images of k patients. All others
    together get the mean weight of the images that have one, so that they stand out neither by a weight nor by being
    left out.

    Parameters
    ----------
    weights : mapping of str to float
        As they were asked for; 1 where none is.
    groups, labels : sequence of str, of int
        Of the N training images.
    k : int
        Fewest patients of a class.
    patients : sequence of str, optional
        Whose image each is. Without, every image is taken for a patient's only one.
    """
    owners: Sequence[object] = range(len(groups)) if patients is None else patients
    counts: defaultdict[str, Counter[int]] = defaultdict(Counter)
    people: defaultdict[str, defaultdict[int, set[object]]] = defaultdict(lambda: defaultdict(set))
    for group, label, owner in zip(groups, labels, owners, strict=True):
        counts[group][label] += 1
        people[group][label].add(owner)
    large = {group for group, classes in people.items() if group in weights and min(map(len, classes.values())) >= k}
    held = {group: min(max(weights[group], LOWEST_WEIGHT), HIGHEST_WEIGHT) for group in sorted(large)}
    sizes = {group: counts[group].total() for group in held}
    mean = sum(held[group] * sizes[group] for group in held) / sum(sizes.values()) if held else 1.0
    return {group: held.get(group, mean) for group in counts}
