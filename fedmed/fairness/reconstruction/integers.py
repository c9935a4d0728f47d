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
_ATTEMPTS = 4
Cell = tuple[str, ...]
"""What a hidden number is about: a group of each attribute that is asked about, or a group and a class."""
Hidden = tuple[Cell, str]
"""A cell and what is counted."""
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
        return Constraints(self.num_unknowns, [*self.columns], [*self.rows], [*self.factors], [*self.low], [*self.high])


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
        self.axes: tuple[tuple[str, ...], ...] = ()
        """For each place in a cell what may stand there, what has most images first."""
        self._constraints = Constraints()

    def solve(
        self, seconds: float, fixed: Mapping[Hidden, int] | None = None, most: Mapping[Hidden, int] | None = None
    ) -> dict[Hidden, range] | Literal[False] | None:
        """Look for numbers that agree with all that is known.

        Parameters
        ----------
        seconds : float
            Time for it.
        fixed : mapping of (Cell, unit) to int, optional
            Numbers that hidden cells must have.
        most : mapping of (Cell, unit) to int, optional
            Numbers that hidden cells shall have if they can, and never more.

        Returns
        -------
        dict, False or None
            Numbers that each hidden cell may have; False if there are none, None if the time was too short.
        """
        rules, wanted = self._constraints.copy(), []
        for (cell, unit), number in (fixed or {}).items():
            rules.add(self.hidden[cell][unit], (), number, number)
        for (cell, unit), number in (most or {}).items():
            rules.add(self.hidden[cell][unit], (), 0, number)
            wanted += self.hidden[cell][unit]
        found = _solve(rules, wanted, seconds, sign=-1, only_fast=most is not None)
        if found is None or found is False:
            return found
        spread = self.spread(found)
        numbers: dict[Hidden, range] = {}
        for cell, of_cell in self.hidden.items():
            less, more = spread.get(cell, (0, 0))
            for unit, unknowns in of_cell.items():
                number = round(float(found[unknowns].sum()))
                numbers[cell, unit] = range(number - less, number + more + 1)
        return numbers

    def spread(self, found: Array) -> dict[Cell, tuple[int, int]]:
        """Return by how much a cell's numbers may be less and more than what was found, one by one."""
        return {}

    def find_least(self, cell: Cell, unit: str, seconds: float, sign: int = 1) -> int | None:
        """Return the smallest number of a hidden cell, with ``sign`` -1 the largest; None if the time was too short."""
        found = _solve(self._constraints, self.hidden[cell][unit], seconds, sign)
        return None if found is None or found is False else round(float(sum(found[u] for u in self.hidden[cell][unit])))


def _solve(
    rules: Constraints, target: Sequence[int], seconds: float, sign: int = 1, *, only_fast: bool = False
) -> Array | Literal[False] | None:
    """Return unknowns that keep the rules, with the sum of some as small as found; False if there are none."""
    if seconds <= 0:
        return None
    matrix = scipy.sparse.csc_array(
        (rules.factors, (rules.rows, rules.columns)), shape=(len(rules.low), rules.num_unknowns)
    )
    constraints = scipy.optimize.LinearConstraint(matrix, rules.low, rules.high)
    # Without the rule that they are integers it is solved at once, and often they are; so several ends are looked at.
    for attempt in range(1 if target else _ATTEMPTS + 1):
        costs = np.zeros(rules.num_unknowns)
        if target:
            costs[list(target)] = sign
        elif attempt:
            costs = np.random.default_rng(attempt).random(rules.num_unknowns)
        found = _run_solver(costs, constraints, seconds, integrality=0)
        if found is not None:
            return found
    return None if only_fast else _run_solver(costs, constraints, seconds, integrality=1)


def _run_solver(
    costs: Array, constraints: scipy.optimize.LinearConstraint, seconds: float, integrality: int
) -> Array | Literal[False] | None:
    """Return unknowns if they are integers, False if there are none."""
    found = scipy.optimize.milp(
        costs,
        integrality=np.full(len(costs), integrality),
        bounds=scipy.optimize.Bounds(0, np.inf),
        constraints=constraints,
        options={"time_limit": seconds},
    )
    if found.status == _INFEASIBLE:
        return False
    if found.x is None or (not integrality and np.abs(found.x - found.x.round()).max() > _TOLERANCE):
        return None
    values: Array = np.round(found.x)
    return values
