"""Numbers of a table, such as ages, as groups."""

import math
from collections.abc import Mapping, Sequence

from fedmed.errors import ConfigError, suggest_nearest
from fedmed.metrics.site_tables import UNKNOWN


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
    try:
        value = float(text)
    except ValueError:
        return UNKNOWN
    if not math.isfinite(value):
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
