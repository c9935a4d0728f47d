"""Unknown integers of which sums are known, and the numbers that some of the sums can have.

Solved with HiGHS (Huangfu and Hall, Parallelizing the dual revised simplex method, 2018) in ``scipy.optimize.milp``.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import scipy.optimize
import scipy.sparse

from fedmed.metrics.values import Array

STAT = [0, 0]
_INFEASIBLE = 2
_TOLERANCE = 1e-6
_NEAR = 0.2
Cell = tuple[str, ...]
"""What a hidden number is about: a group of each attribute that is asked about, or a group and a class."""
IMAGES, PATIENTS = "images", "patients"


@dataclass
class Constraints:
    """Sums of unknown integers, each within bounds."""

    num_unknowns: int = 0
    columns: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    factors: list[float] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)

    def make(self, number: int) -> range:
        """Return further unknowns."""
        self.num_unknowns += number
        return range(self.num_unknowns - number, self.num_unknowns)

    def add(self, plus: Iterable[int], minus: Iterable[int], low: float, high: float, factor: float = 1.0) -> None:
        """Bound a sum less ``factor`` times another."""
        for unknowns, own in ((plus, 1.0), (minus, -factor)):
            for column in unknowns:
                self.columns.append(column)
                self.rows.append(len(self.low))
                self.factors.append(own)
        self.low.append(low)
        self.high.append(high)

    def copy(self) -> "Constraints":
        """Return the same, to be added to."""
        own = (self.columns, self.rows, self.factors, self.low, self.high)
        return Constraints(self.num_unknowns, *(list(values) for values in own))


class Program:
    """Hidden numbers, and all that is known of them.

    Parameters
    ----------
    units : tuple of str
        What is counted.
    """

    def __init__(self, units: tuple[str, ...] = (IMAGES,)) -> None:
        self.units = units
        self.hidden: dict[Cell, dict[str, list[int]]] = {}
        """Hidden cell to unit to the unknowns that add up to its number."""
        self._constraints = Constraints()

    def solve(
        self, wanted: Mapping[tuple[Cell, str], tuple[int, bool]], seconds: float
    ) -> dict[tuple[Cell, str], int] | Literal[False] | None:
        """Look for numbers that agree with all that was told.

        Parameters
        ----------
        wanted : mapping
            Cell and unit to a number, and whether it must be that or only as near as it gets.
        seconds : float
            Time for it.

        Returns
        -------
        dict, False or None
            The number of each hidden cell; False if there are none, None if the time was too short.
        """
        rules, distances = self._constraints.copy(), []
        for (cell, unit), (number, is_needed) in wanted.items():
            unknowns = self.hidden[cell][unit]
            if is_needed:
                rules.add(unknowns, (), number, number)
            else:
                (distance,) = rules.make(1)
                rules.add([*unknowns, distance], (), number, np.inf)
                rules.add(unknowns, [distance], -np.inf, number)
                distances.append(distance)
        found = _solve(rules, distances, seconds, target_is_exact=False)
        if found is None or found is False:
            return found
        return {
            (cell, unit): round(float(sum(found[u] for u in unknowns)))
            for cell, of_cell in self.hidden.items()
            for unit, unknowns in of_cell.items()
        }

    def find_least(self, cell: Cell, unit: str, seconds: float, sign: int = 1) -> int | None:
        """Return the smallest number of a hidden cell, with ``sign`` -1 the largest; None if the time was too short."""
        found = _solve(self._constraints, self.hidden[cell][unit], seconds, sign)
        return None if found is None or found is False else round(float(sum(found[u] for u in self.hidden[cell][unit])))


def _solve(
    rules: Constraints, target: Sequence[int], seconds: float, sign: int = 1, *, target_is_exact: bool = True
) -> Array | Literal[False] | None:
    """Return unknowns that keep the rules, with the sum of some as small as found; False if there are none."""
    if seconds <= 0:
        return None
    costs = np.zeros(rules.num_unknowns)
    costs[list(target)] = sign
    matrix = scipy.sparse.csc_array(
        (rules.factors, (rules.rows, rules.columns)), shape=(len(rules.low), rules.num_unknowns)
    )
    # Without the rule that they are integers it is solved at once, and often they are.
    for integrality in (0, 1):
        found = scipy.optimize.milp(
            costs,
            integrality=np.full(rules.num_unknowns, integrality),
            bounds=scipy.optimize.Bounds(0, np.inf),
            constraints=scipy.optimize.LinearConstraint(matrix, rules.low, rules.high),
            options={"time_limit": seconds, "mip_rel_gap": 0.0 if target_is_exact else _NEAR},
        )
        STAT[integrality] += 1
        if found.status == _INFEASIBLE:
            return False
        if found.x is not None and (integrality or np.abs(found.x - found.x.round()).max() < _TOLERANCE):
            values: Array = np.round(found.x)
            return values
    return None
