"""What can be worked out from sums over sets of images: the linear span of the sets that were told.

A table's row is a sum over a set of images. Whoever has several rows can add and subtract them, and so has the sum over
the images with every weighting in the linear span of the rows' indicator vectors. A weighting that is not zero for a
few images only would tell about these alone. This module finds out whether a further row makes one possible.

Letters: A atoms (images that are in the same sets), R rows.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

PRIME = 2**31 - 1
MOST_NODES = 400
MOST_ROWS = 150
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class RowSpan:
    """Rows that were told, and the question whether one more would reveal too much.

    Parameters
    ----------
    weights_A : ndarray of int64, shape (A,)
        Patients of each atom, from 0. A patient who has images in several atoms counts in one of them only, so that the
        weights of a set of atoms are never more than its patients. Without patients' ids, its images.
    k_row : int
        Fewest patients that a weighting may be about.
    protected : sequence of ndarray of bool, each of shape (A,)
        Further sets of atoms about whose images alone nothing must be known.

    Notes
    -----
    The rows are kept in reduced row echelon form modulo the prime 2^31 - 1, heavy atoms first. Rows are 0/1 vectors; a
    rank modulo the prime differs from the true one only if the prime divides a minor, which is too large for that or
    practically never does.

    Atoms of ``k_row`` patients or more cannot be in a small set, so a weighting of few of them is zero there. In the
    echelon form this leaves the rows whose pivot is light, usually few. Among them a small set S reveals something of
    the new row r exactly if r without S is in the span of the others without S; that is, if S hits every vector y with
    ``V y = 0`` and ``r y != 0``. So the search takes one such y of few atoms and branches on which of them is in S,
    which ends after at most ``k_row - 1`` steps. Several such y without a common atom show that S must be larger. Where
    the search grows too large, the answer is the cautious one.
    """

    def __init__(self, weights_A: Ints, k_row: int, protected: Sequence[Mask] = ()) -> None:
        self._order = np.argsort(-weights_A, kind="stable")
        self._weights = weights_A[self._order]
        self._k_row = k_row
        self._num_heavy = int((self._weights >= k_row).sum())
        self._protected = [mask[self._order] for mask in protected]
        self._basis = np.zeros((0, len(weights_A)), np.int64)
        self._pivots = np.zeros(0, np.int64)

    def add(self, row_A: Ints) -> None:
        """Take a row as told."""
        rest = self._reduce(row_A)
        if rest.any():
            self._insert(rest)

    def try_add(self, row_A: Ints) -> bool:
        """Take a row as told unless it would reveal too much together with the others; return whether it was taken.

        What the rows have revealed before does not count against a new one.
        """
        rest = self._reduce(row_A)
        if not rest.any():
            return True
        if self._reveals(rest):
            return False
        self._insert(rest)
        return True

    def _reduce(self, row_A: Ints) -> Ints:
        row = row_A[self._order] % PRIME
        used = np.flatnonzero(row[self._pivots])
        factors = row[self._pivots[used]]
        rest: Ints = (row - (factors[:, None] * self._basis[used] % PRIME).sum(axis=0)) % PRIME
        return rest

    def _insert(self, rest: Ints) -> None:
        pivot = int(np.flatnonzero(rest)[0])
        row = rest * _invert(int(rest[pivot])) % PRIME
        touched = np.flatnonzero(self._basis[:, pivot])
        self._basis[touched] = (self._basis[touched] - self._basis[touched, pivot][:, None] * row) % PRIME
        self._basis = np.vstack([self._basis, row])
        self._pivots = np.append(self._pivots, pivot)

    def _reveals(self, rest: Ints) -> bool:
        if any(self._is_within(rest, mask) for mask in self._protected):
            return True
        if rest[: self._num_heavy].any():
            return False
        if self._weights[rest != 0].sum() < self._k_row:
            return True
        rows = self._find_connected(rest)
        if len(rows) > MOST_ROWS:
            return True
        columns, weights = _merge_parallel(
            np.vstack([rows, rest])[:, self._num_heavy :], self._weights[self._num_heavy :]
        )
        return _Search().reveals(*_eliminate(columns), weights, self._k_row - 1)

    def _is_within(self, rest: Ints, mask: Mask) -> bool:
        """Return whether the row together with others can be about images of a set alone."""
        # A row whose pivot is outside cannot take part, since nothing else could cancel the pivot.
        rows = self._basis[mask[self._pivots]]
        echelon, _ = _eliminate(np.vstack([rows, rest])[:, ~mask])
        return not echelon[-1].any()

    def _find_connected(self, rest: Ints) -> Ints:
        """Return the rows without heavy atoms that share atoms with a row, directly or through others."""
        rows = self._basis[self._pivots >= self._num_heavy]
        support, chosen = rest != 0, np.zeros(len(rows), np.bool_)
        while True:
            more = (rows[:, support] != 0).any(axis=1) & ~chosen
            if not more.any():
                return rows[chosen]
            chosen |= more
            support = support | (rows[more] != 0).any(axis=0)


class _Search:
    """Looks for a small set of atoms without which a row follows from others."""

    def __init__(self) -> None:
        self._nodes = 0

    def reveals(self, echelon: Ints, pivots: Ints, weights: Ints, budget: int) -> bool:
        """Return whether there is such a set of at most ``budget`` patients, or whether the search took too long.

        Parameters
        ----------
        echelon : ndarray of int64, shape (R+1,A)
            Rows in reduced echelon form, and last what they leave of the further one.
        pivots : ndarray of int64, shape (R,)
            Their pivots.
        weights : ndarray of int64, shape (A,)
            Patients of each atom; one of more than ``budget`` is never in the set.
        budget : int
            From 0.
        """
        self._nodes += 1
        if self._nodes > MOST_NODES:
            return True
        echelon, pivots = _move_pivots(echelon, pivots, weights > budget)
        if not echelon[-1].any():
            return True
        if echelon[-1, weights > budget].any():
            return False
        # Rows with a pivot that stays cannot take part, and the others are zero wherever an atom stays.
        removable = weights <= budget
        free = np.flatnonzero(removable[pivots])
        pivots = (np.cumsum(removable) - 1)[pivots[free]]
        echelon, weights = echelon[[*free, -1]][:, removable], weights[removable].copy()
        # An atom of the row and the pivots that can make up for it: the set must hit one of them, for each atom.
        places = np.flatnonzero(echelon[-1])
        needs = echelon[:-1, places] != 0
        order = np.argsort(needs.sum(axis=0), kind="stable")
        if _bound_weight(needs[:, order], weights[places[order]], weights[pivots], budget) > budget:
            return False
        circuit = [int(places[order[0]]), *pivots[needs[:, order[0]]].tolist()]
        for atom in circuit:
            if weights[atom] <= budget and self.reveals(
                *_remove(echelon, pivots, atom), weights, budget - int(weights[atom])
            ):
                return True
            weights[atom] = budget + 1  # sets with it have been tried
        return False


def _bound_weight(needs: Mask, of_places: Ints, of_pivots: Ints, enough: int) -> int:
    """Return how many images at least hit all of some circuits that have no atom in common."""
    total, used = 0, np.zeros(len(of_pivots), np.bool_)
    for place in range(needs.shape[1]):
        need = needs[:, place]
        if not (need & used).any():
            used |= need
            total += int(min(of_places[place], of_pivots[need].min(initial=of_places[place])))
            if total > enough:
                break
    return total


def _move_pivots(echelon: Ints, pivots: Ints, staying: Mask) -> tuple[Ints, Ints]:
    """Move pivots to atoms that stay, wherever their row has one."""
    echelon, pivots = echelon.copy(), pivots.copy()
    while True:
        movable = np.flatnonzero(~staying[pivots] & (echelon[:-1, staying] != 0).any(axis=1))
        if not len(movable):
            return echelon, pivots
        row = int(movable[0])
        column = int(np.flatnonzero(staying & (echelon[row] != 0))[0])
        _pivot(echelon, row, column)
        pivots[row] = column


def _remove(echelon: Ints, pivots: Ints, atom: int) -> tuple[Ints, Ints]:
    """Return an echelon form without an atom, whose column becomes zero."""
    echelon, pivots = echelon.copy(), pivots.copy()
    for row in np.flatnonzero(pivots == atom).tolist():
        others = np.flatnonzero(echelon[row])
        others = others[others != atom]
        if len(others):
            _pivot(echelon, row, int(others[0]))
            pivots[row] = others[0]
        else:
            echelon, pivots = np.delete(echelon, row, axis=0), np.delete(pivots, row)
    echelon[:, atom] = 0
    return echelon, pivots


def _pivot(echelon: Ints, row: int, column: int) -> None:
    """Give a row the pivot ``column``, in place."""
    echelon[row] = echelon[row] * _invert(int(echelon[row, column])) % PRIME
    others = np.flatnonzero(echelon[:, column])
    others = others[others != row]
    echelon[others] = (echelon[others] - echelon[others, column][:, None] * echelon[row]) % PRIME


def _eliminate(rows: Ints) -> tuple[Ints, Ints]:
    """Return the reduced echelon form of rows and what they leave of the last one, and the pivots."""
    echelon = rows.copy()
    waiting, kept, pivots = list(range(len(rows) - 1)), [], []
    for row in waiting:
        used = np.flatnonzero(echelon[row])
        if len(used):
            _pivot(echelon, row, int(used[0]))
            kept.append(row)
            pivots.append(int(used[0]))
    return echelon[[*kept, -1]], np.array(pivots, np.int64)


def _merge_parallel(columns: Ints, weights: Ints) -> tuple[Ints, Ints]:
    """Return columns without those of zeros, and one in place of several that are multiples of each other."""
    used = columns.any(axis=0)
    columns, weights = columns[:, used], weights[used]
    leading = columns[(columns != 0).argmax(axis=0), np.arange(columns.shape[1])]
    inverse = np.array([_invert(int(value)) for value in leading], np.int64)
    merged, place = np.unique(columns * inverse % PRIME, axis=1, return_inverse=True)
    return merged, np.bincount(place.ravel(), weights=weights, minlength=merged.shape[1]).astype(np.int64)


def _invert(value: int) -> int:
    return pow(value, -1, PRIME)
