"""Unknown integers of which sums are known, and the numbers that some of the sums can have.

Solved with HiGHS (Huangfu and Hall, Parallelizing the dual revised simplex method, 2018) in ``scipy.optimize.milp``.
"""

import math
import time
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
    layers: list[list[int]] = field(default_factory=list)
    """Unknowns that are rounded to integers one kind after the other."""

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
        lists = (self.columns, self.rows, self.factors, self.low, self.high, self.layers)
        return Constraints(self.num_unknowns, *([*one] for one in lists))


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
            self._bound_patients(rules, cell, unit, min(number, 1), number)
        for (cell, unit), number in (most or {}).items():
            rules.add(self.hidden[cell][unit], (), 0, number)
            self._bound_patients(rules, cell, unit, 0, number)
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

    def _bound_patients(self, rules: Constraints, cell: Cell, unit: str, low: int, high: int) -> None:
        """Bound the patients of a cell by its images, which follows, but helps the solver."""
        if unit == IMAGES and PATIENTS in self.hidden[cell]:
            rules.add(self.hidden[cell][PATIENTS], (), low, high)

    def spread(self, found: Array) -> dict[Cell, tuple[int, int]]:
        """Return by how much a cell's numbers may be less and more than what was found, one by one."""
        return {}

    def has_at_least(self, cell: Cell, unit: str, number: int, seconds: float) -> bool:
        """Return whether a hidden cell has at least some number for certain, as far as it shows without integers."""
        if seconds <= 0:
            return False
        rules, unknowns = self._constraints, self.hidden[cell][unit]
        costs = np.zeros(rules.num_unknowns)
        costs[unknowns] = 1
        found = _Solver.make(rules, seconds).relax(costs)
        return found is not None and found is not False and math.ceil(found[unknowns].sum() - _TOLERANCE) >= number

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
    solver = _Solver.make(rules, seconds)
    # Without the rule that they are integers it is solved at once, and often they are; so several ends are looked at.
    for attempt in range(1 if target else _ATTEMPTS + 1):
        costs = np.zeros(rules.num_unknowns)
        if target:
            costs[list(target)] = sign
        elif attempt:
            costs = np.random.default_rng(attempt).random(rules.num_unknowns)
        found = solver.relax(costs)
        if found is False or (found is not None and _is_whole(found)):
            return found
        if found is not None and rules.layers and not (target and not only_fast):
            rounded = solver.round_layers(found, rules.layers)
            if rounded is not None:
                return rounded
    return None if only_fast else solver.solve(costs)


class _Solver:
    """One program and its time."""

    def __init__(self, matrix: scipy.sparse.csr_array, low: Array, high: Array, end: float) -> None:
        self._matrix, self._low, self._high, self._end = matrix, low, high, end

    @classmethod
    def make(cls, rules: Constraints, seconds: float) -> "_Solver":
        matrix = scipy.sparse.csr_array(
            (rules.factors, (rules.rows, rules.columns)), shape=(len(rules.low), rules.num_unknowns)
        )
        return cls(matrix, np.array(rules.low), np.array(rules.high), time.monotonic() + seconds)

    def relax(
        self, costs: Array, fixed: tuple[Array, Array] | None = None, rows: Array | None = None
    ) -> Array | Literal[False] | None:
        """Return unknowns that need not be integers, within bounds and by some of the rows only; False if none are."""
        return self._run(costs, 0, fixed, rows)

    def solve(self, costs: Array) -> Array | Literal[False] | None:
        """Return integers; False if there are none, None if the time was too short."""
        found = self._run(costs, 1, None, None)
        return found if found is None or found is False else found.round()

    def round_layers(self, found: Array, layers: Sequence[Sequence[int]]) -> Array | None:
        """Return integers near to what was found, one kind of unknowns after the other; None if this fails.

        Numbers of patients with given sums over rows and columns can always be rounded up or down so that the sums
        stay. Those of images come next, and then answers, which are a flow within the images.
        """
        size = len(found)
        least, most = np.zeros(size), np.full(size, np.inf)
        for layer in layers:
            own, known = np.array(layer), least == most
            known[own] = True
            # Rows about these and what is settled only.
            rows = np.flatnonzero(abs(self._matrix) @ (~known).astype(np.float64) == 0)
            near = least.copy(), most.copy()
            near[0][own], near[1][own] = np.floor(found[own] + _TOLERANCE), np.ceil(found[own] - _TOLERANCE)
            rounded = self.relax(np.zeros(size), near, rows)
            if rounded is None or rounded is False or not _is_whole(rounded[own]):
                return None
            least[own] = most[own] = rounded[own].round()
            again = self.relax(np.zeros(size), (least, most))
            if again is None or again is False:
                return None
            found = again
        for attempt in range(_ATTEMPTS):
            if _is_whole(found):
                return found.round()
            again = self.relax(np.random.default_rng(attempt).random(size), (least, most))
            if again is None or again is False:
                return None
            found = again
        return None

    def _run(
        self, costs: Array, integrality: int, fixed: tuple[Array, Array] | None, rows: Array | None
    ) -> Array | Literal[False] | None:
        left = self._end - time.monotonic()
        if left <= 0:
            return None
        chosen = slice(None) if rows is None else rows
        found = scipy.optimize.milp(
            costs,
            integrality=np.full(len(costs), integrality),
            bounds=scipy.optimize.Bounds(*(fixed or (0, np.inf))),
            constraints=scipy.optimize.LinearConstraint(self._matrix[chosen], self._low[chosen], self._high[chosen]),
            options={"time_limit": left},
        )
        if found.status == _INFEASIBLE:
            return False
        values: Array | None = found.x
        return values


def _is_whole(values: Array) -> bool:
    return bool(np.abs(values - values.round()).max(initial=0) <= _TOLERANCE)
