"""Values of patient attributes as a table has them: what is unknown, what is a number, and numbers as groups."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from fedmed.errors import ConfigError, DataError, suggest_nearest
from fedmed.metrics.limits import UNKNOWN

NOT_KNOWN = frozenset({"", "-", "n/a", "na", "nan", "none", "null", UNKNOWN})
"""What stands for an unknown value, in small letters."""
MOST_NUMBERS = 10
"""Different numbers that are groups as they are, such as grades; more are measurements, such as ages."""
_LEAST_NUMERIC = 0.9
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)(e[+-]?\d+)?", re.IGNORECASE)
_QUARTERS = (0.25, 0.5, 0.75)


def clean_value(text: str) -> str:
    """Return a value without blanks around it, ``unknown`` where it says that nobody knows."""
    stripped = text.strip()
    return UNKNOWN if stripped.casefold() in NOT_KNOWN else stripped


def read_number(text: str) -> float | None:
    """Return the finite number that a text is, with a decimal point or a decimal comma; None if it is none."""
    stripped = text.strip()
    if not _NUMBER.fullmatch(stripped):
        return None
    value = float(stripped.replace(",", "."))
    return value if math.isfinite(value) else None


def check_decimals(name: str, values: Iterable[str], where: str) -> None:
    """Check that the numbers of a column are written in one way.

    Raises
    ------
    DataError
        If some have a decimal point and others a decimal comma: then 1,500 may be 1.5 or 1500.
    """
    numbers = [value for value in values if read_number(value) is not None]
    point, comma = (sum(mark in value for value in numbers) for mark in ".,")
    if point and comma:
        raise DataError(
            f"In {where} the column '{name}' (data.attribute_columns) has {point} numbers with a decimal point and "
            f"{comma} with a decimal comma. Allowed: one of the two. Write all of them in the same way."
        )


def are_measurements(values: Iterable[str]) -> bool:
    """Return whether values are numbers of which there are too many to be groups, as of an age in years.

    That is more than 10 different ones, and at least 9 of 10 known values.
    """
    known = [value for value in values if value != UNKNOWN]
    numbers = [number for number in map(read_number, known) if number is not None]
    return len(set(numbers)) > MOST_NUMBERS and len(numbers) >= _LEAST_NUMERIC * len(known)


def find_quartiles(values: Iterable[str]) -> list[float]:
    """Return the edges that cut numbers into four bands of about equally many, fewer where many are the same.

    Parameters
    ----------
    values : iterable of str
        As the table has them; what is no number is left out.

    Returns
    -------
    list of float
        Increasing, numbers that occur, and above the smallest one, so that no band is empty. Empty where fewer than two
        numbers differ.

    Notes
    -----
    The quartiles are those of the empirical distribution (definition 1 of Hyndman and Fan, 1996).
    """
    numbers = sorted(number for number in map(read_number, values) if number is not None)
    higher = [number for number in numbers if number > numbers[0]]
    if not higher:
        return []
    quarters = np.quantile(numbers, _QUARTERS, method="inverted_cdf").tolist()
    return sorted({edge for edge in quarters if edge > numbers[0]}) or [higher[0]]


def check_bands(bands: Mapping[str, Sequence[float]], columns: Sequence[str]) -> None:
    """Check the setting ``data.bands``.

    Raises
    ------
    ConfigError
        If a column is no attribute, or its edges do not increase.
    """
    for column, edges in bands.items():
        if column not in columns:
            raise ConfigError(
                f"data.bands names the column '{column}', which is not in data.attribute_columns."
                f"{suggest_nearest(column, columns)} Attribute columns: {', '.join(columns) or 'none'}."
            )
        if list(edges) != sorted(set(edges)):
            raise ConfigError(
                f"data.bands has the edges {list(edges)} for '{column}'. Allowed: increasing numbers, each once, for "
                "example [40, 60]."
            )


def name_band(text: str, edges: Sequence[float]) -> str:
    """Return the name of the band that a number is in.

    Parameters
    ----------
    text : str
        The number as the table has it.
    edges : sequence of float
        Inner edges, increasing. A number on an edge belongs to the band above.

    Returns
    -------
    str
        ``<40``, ``40-59`` or ``>=60`` for the edges 40 and 60, where bands between whole numbers are named by whole
        numbers; ``1.5 to <2.5`` for others; ``unknown`` if the text is no finite number.
    """
    value = read_number(text)
    if value is None:
        return UNKNOWN
    above = next((place for place, edge in enumerate(edges) if value < edge), len(edges))
    if above == 0:
        return f"<{edges[0]:g}"
    if above == len(edges):
        return f">={edges[-1]:g}"
    low, high = edges[above - 1], edges[above]
    if low.is_integer() and high.is_integer():
        return f"{low:g}-{high - 1:g}" if high - low > 1 else f"{low:g}"
    return f"{low:g} to <{high:g}"
