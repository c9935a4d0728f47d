"""What is not told of a part, though the rule of sums would tell it; see :mod:`fedmed.fairness.reconstruction.hold`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedmed.fairness.disclosure.rows import DisclosurePlan
from fedmed.fairness.reconstruction.statement import Rare, Row, ToldPart


@dataclass(frozen=True)
class Held:
    """What is not told, though a plan would."""

    rows: frozenset[Row | Rare] = frozenset()
    folded: frozenset[Row] = frozenset()
    """Rows whose wrong answers are told together."""
    unpaired: frozenset[Row] = frozenset()
    """Rows in which models are not compared image by image."""
    silent: frozenset[Row] = frozenset()
    """Rows of which no alerts are told."""

    def cut(self, told: ToldPart) -> ToldPart:
        """Return what is told then."""
        return told.without(self.rows).fold(self.folded).unpair(self.unpaired).silence(self.silent)


def hold_rows(
    plan: DisclosurePlan, labels: Sequence[int], groups: Mapping[str, Sequence[str]], held: Held
) -> DisclosurePlan:
    """Return a plan without the rows that are held back.

    Parameters
    ----------
    plan : DisclosurePlan
        Where each image is counted.
    labels : sequence of int
        True class of each image.
    groups : mapping of str to sequence of str
        Attribute to the group of each image.
    held : Held
        What is not told.
    """
    y_N, attributes = np.asarray(labels), dict(plan.attributes)
    for row in (*held.rows, *held.folded, *held.unpaired, *held.silent):
        own, inside_N = attributes[row.attribute], np.array(groups[row.attribute], dtype=str) == row.group
        if isinstance(row, Rare):
            own = replace(own, rare=own.rare & ~inside_N)
        elif row in held.rows:
            own = replace(own, counted=own.counted & ~(inside_N & (y_N == row.label)))
        else:
            key = {(row.group, row.label)}
            few = [name for name in ("folded", "unpaired", "silent") if row in getattr(held, name)]
            own = replace(own, **{name: getattr(own, name) | key for name in few})
        attributes[row.attribute] = own
    for name in {row.attribute for row in held.rows}:
        own, names = attributes[name], np.array(groups[name], dtype=str)
        whole = frozenset(set(names.tolist()) - set(names[own.counted | own.rare].tolist()))
        attributes[name] = replace(own, whole=whole)
    return replace(plan, attributes=attributes)
