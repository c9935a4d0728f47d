"""Which evaluation tables can be true of a number of images, whoever has sent them.

Looked at before anything is added up: numbers that are far too large would overflow, wrap around or drown all others.
An array is known by its name, and one that is not there is not looked at, so that tables of every format pass through
the same bounds.

Letters: G groups, K classes.
"""

from collections.abc import Mapping

import numpy as np

from fedmed.metrics.values import Array

_TOLERANCE = 0.02
"""Relative; hospitals round their sums, and sums are of many rounded terms."""
_LARGEST_BRIER = 2.0
_POWERS = {"patients": 2, "areas": 4, "spread": 2}
"""Of the number of images, by which an array of floats is bounded at the least; of all others 1."""
_SIZE = 4.0
"""Times that power: a squared Brier score is at most 4, and so is the square of a difference of two numbers of
images."""


def find_implausible(arrays: Mapping[str, Array], most_images: int) -> str | None:
    """Return what cannot be true of tables of a site, as a sentence, or None.

    Parameters
    ----------
    arrays : mapping of str to ndarray
        Of :meth:`fedmed.metrics.tables.EvaluationTables.to_arrays`, or ``cells`` and ``spread`` of paired tables.
    most_images : int
        Images that the site has declared for this part.

    Notes
    -----
    Whole numbers lie between 0 and ``most_images``, marks of withheld rows between 0 and 1, and sums of floats within
    what so many images allow: of numbers in [0, 1] or [0, 2] within that many times 4, sums of squares of numbers of
    images within 4 times its square, and those of numbers of pairs within 4 times its fourth power. Only then are rows
    summed up, and compared: a histogram, a bin or a number of patients counts no more images than its row.
    """
    for name, array in arrays.items():
        problem = _find_out_of_range(name, array, most_images)
        if problem is not None:
            return problem
    if "counts" not in arrays:
        return _find_many(arrays.get("cells"), most_images)
    rows_GK = arrays["counts"].sum(axis=-1) + arrays.get("other_wrong", 0)
    told_G = rows_GK.sum(axis=-1) + _count_rare(arrays)
    if told_G.sum() > most_images:
        return f"The tables count {int(told_G.sum())} images and the site has declared {most_images}."
    if (np.diagonal(arrays["counts"], axis1=-2, axis2=-1) > rows_GK).any():
        return "Table 'counts' has more right answers than images."
    return _find_contradiction(arrays, rows_GK, told_G)


def _find_out_of_range(name: str, array: Array, most_images: int) -> str | None:
    if not array.size:
        return None
    if array.dtype.kind not in "iuf":
        return f"Table '{name}' holds {array.dtype} and no numbers."
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return f"Table '{name}' holds a number that is not finite."
    most: float = 1 if name == "withheld" else most_images  # a site marks a row that it withholds
    if array.dtype.kind == "f":
        most = _SIZE * float(most_images) ** _POWERS.get(name, 1) * (1 + _TOLERANCE)
    # Compared as Python's numbers: an absolute value of the smallest int64 would overflow.
    lowest, highest = array.min().item(), array.max().item()
    if highest > most or lowest < (-most if name in ("patients", "areas") else 0):
        found = highest if highest > most else lowest
        return f"Table '{name}' holds {found:.4g}; of a site with {most_images} images it holds 0 to {most:.4g}."
    return None


def _find_many(cells: Array | None, most_images: int) -> str | None:
    if cells is not None and cells.sum() > most_images:
        return f"The paired tables count {int(cells.sum())} images and the site has declared {most_images}."
    return None


def _count_rare(arrays: Mapping[str, Array]) -> Array:
    """Return the images of rare classes by group; in format 2 they are bins of calibration."""
    rare = arrays.get("rare")
    if rare is None:
        return np.zeros(len(arrays["counts"]), np.int64)
    numbers: Array = np.rint(rare[..., 0]).astype(np.int64)
    return numbers.sum(axis=-1) if numbers.ndim > 1 else numbers


def _find_contradiction(arrays: Mapping[str, Array], rows_GK: Array, told_G: Array) -> str | None:
    for name in ("calibration", "mixed", "rare"):
        bins = arrays.get(name)
        if bins is None or bins.shape[-1] != 3:
            continue
        n, confidence, right = np.moveaxis(bins, -1, 0)
        images = rows_GK if name == "calibration" else told_G
        if not _are_whole(n, right) or (n.sum(axis=-1) > images).any():
            return f"Table '{name}' counts other images than table 'counts', or parts of images."
        if (confidence > n * (1 + _TOLERANCE)).any() or (right > n).any():
            return f"Table '{name}' has a mean confidence or an accuracy above 1."
    if "scores" in arrays and (arrays["scores"].sum(axis=-1) > rows_GK[..., None]).any():
        return "Table 'scores' counts more images than table 'counts'."
    if "alerts" in arrays:
        asked_GK, raised_GK = np.moveaxis(arrays["alerts"], -1, 0)
        if (asked_GK > rows_GK).any() or (raised_GK > asked_GK).any():
            return "Table 'alerts' counts more images than table 'counts', or more alerts than images."
    if "decision" in arrays and (arrays["decision"].sum(axis=(1, 2)) > rows_GK.sum(axis=1)).any():
        return "Table 'decision' counts more images than table 'counts'."
    return _find_wrong_brier(arrays, told_G) or _find_wrong_patients(arrays, rows_GK) or _find_wrong_areas(arrays)


def _find_wrong_brier(arrays: Mapping[str, Array], told_G: Array) -> str | None:
    if "brier" not in arrays:
        return None
    n, total, squares = np.moveaxis(arrays["brier"], -1, 0)
    if not _are_whole(n) or (n > told_G).any():
        return "Table 'brier' counts other images than table 'counts', or parts of images."
    limit = n * _LARGEST_BRIER * (1 + _TOLERANCE)
    if (total > limit).any() or (squares > limit * _LARGEST_BRIER).any():
        return "Table 'brier' has a mean above 2."
    return None


def _find_wrong_patients(arrays: Mapping[str, Array], rows_GK: Array) -> str | None:
    if "patients" not in arrays:
        return None
    number, *spread = np.moveaxis(arrays["patients"], -1, 0)
    limit = np.square(rows_GK.astype(np.float64)) * (1 + _TOLERANCE)
    if not _are_whole(number) or (number < 0).any() or (number > rows_GK).any():
        return "Table 'patients' has more patients than images, or parts of patients."
    if any((np.abs(values) > limit).any() for values in spread):
        return "Table 'patients' has a spread that so many images cannot have."
    return None


def _find_wrong_areas(arrays: Mapping[str, Array]) -> str | None:
    if "areas" not in arrays:
        return None
    pairs, won, *parts = np.moveaxis(arrays["areas"], -1, 0)[:5]
    limit = _SIZE * np.square(pairs) * (1 + _TOLERANCE)
    if not _are_whole(pairs) or (pairs < 0).any() or (won > pairs * (1 + _TOLERANCE)).any() or (won < 0).any():
        return "Table 'areas' has an area that is not from 0 to 1, or parts of pairs."
    if any((np.abs(part) > limit).any() for part in parts):
        return "Table 'areas' has a variance that so many pairs cannot have."
    return None


def _are_whole(*arrays: Array) -> bool:
    return all(bool((np.rint(array) == array).all()) for array in arrays)
