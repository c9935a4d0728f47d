"""Patient groups: which group of which attribute every image belongs to, crossings of attributes included."""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

from fedmed.config import SITE_ATTRIBUTE, FairnessConfig
from fedmed.errors import ConfigError, DataError, suggest_nearest
from fedmed.metrics.limits import LONGEST_NAME, MOST_ATTRIBUTES, MOST_GROUPS
from fedmed.metrics.site_tables import UNKNOWN

CROSS = " x "
"""Between the names of crossed attributes."""
MOST_VALUES = 50
"""Values of one attribute; more is likely an id."""
_FEW_VALUES = 10
_BETWEEN_VALUES = ", "
_BAND = re.compile(r"(?P<mark><=?|>=?|≤|≥)?\s*(?P<low>-?\d+(\.\d+)?)(\+|\s*(-|–|to)\s*<?\s*-?\d+(\.\d+)?)?")
_BEFORE = {"<": -1, "<=": -1, "≤": -1, ">": 1}


def assign_groups(
    site: str, attributes: Mapping[str, Sequence[str]], fairness: FairnessConfig, num_images: int | None = None
) -> dict[str, tuple[str, ...]]:
    """Return the group of every image, by attribute.

    Parameters
    ----------
    site : str
        Name of the site, the only group of the attribute ``site``.
    attributes : mapping of str to sequence of str
        Name of an attribute to its value for each of the N images; an empty value is ``unknown``.
    fairness : FairnessConfig
        Which attributes, and which crossings of them. An attribute that is asked for and that this site's data lacks is
        left out here, with its crossings.
    num_images : int, optional
        N; needed where there are no attributes.

    Returns
    -------
    dict of str to tuple of str
        ``site`` first, then the attributes as the data names them, then the crossings: ``sex x age_band`` with groups
        such as ``female, 60+``. A crossing is ``unknown`` where one of its values is.

    Raises
    ------
    ConfigError
        If a crossing names an attribute that is not there, one twice, or fewer than two.
    DataError
        If an attribute has more than 50 values or nearly as many as images, has a name or value that cannot be shown,
        or if there are too many attributes or groups. No value is named: it might be a patient's.
    """
    if num_images is None:
        num_images = next((len(values) for values in attributes.values()), None)
    if num_images is None:
        raise ValueError("The number of images is not known: give num_images where there are no attributes.")
    names = [name for name in attributes if fairness.attributes is None or name in fairness.attributes]
    groups = {name: tuple(value or UNKNOWN for value in attributes[name]) for name in names}
    for name, values in groups.items():
        check_attribute(name, values)
    found = {SITE_ATTRIBUTE: (site,) * num_images, **groups}
    for crossing in _choose_crossings(names, fairness):
        crossed = tuple(map(cross_values, zip(*(groups[name] for name in crossing), strict=True)))
        if len(set(crossed)) <= MOST_GROUPS:
            found[CROSS.join(crossing)] = crossed
        elif fairness.intersections != "pairs":
            raise DataError(
                f"The crossing of {', '.join(crossing)} (fairness.intersections) has {len(set(crossed))} groups. "
                f"Allowed: {MOST_GROUPS}. Use coarser values, such as age bands, or leave it out."
            )
    if len(found) > MOST_ATTRIBUTES:
        raise DataError(
            f"There are {len(names)} attributes and {len(found) - 1 - len(names)} crossings of them; at most "
            f"{MOST_ATTRIBUTES - 1} together can be told apart. Name fewer in fairness.attributes or "
            "fairness.intersections."
        )
    return found


def order_groups(groups: Iterable[str]) -> list[str]:
    """Return groups in the order in which a person reads them.

    Parameters
    ----------
    groups : iterable of str
        Of an attribute or a crossing.

    Returns
    -------
    list of str
        Numbers and bands of numbers by their size (``2`` before ``10``; ``<40``, ``40-59``, ``>=60``), then others by
        name, ``unknown`` last; crossings by their first value, then by the next.
    """
    return sorted(groups, key=lambda group: [_place_value(value) for value in group.split(_BETWEEN_VALUES)])


def _place_value(value: str) -> tuple[int, float, int, str]:
    """Return where a value comes: kind, number, before or after what begins with this number, name."""
    band = _BAND.fullmatch(value)
    if band is not None:
        return 0, float(band["low"]), _BEFORE.get(band["mark"] or "", 0), value
    return (2 if value == UNKNOWN else 1), 0.0, 0, value


def is_crossing(attribute: str) -> bool:
    """Return whether an attribute is a crossing of others."""
    return CROSS in attribute


def check_attribute(name: str, values: Sequence[str]) -> None:
    """Check that an attribute tells groups of patients apart, and no single ones; best of all images of a site.

    Raises
    ------
    DataError
        Otherwise. No value is named: it might be a patient's.
    """
    different, num_images = set(values), len(values)
    if name == SITE_ATTRIBUTE or CROSS in name or not 0 < len(name) <= LONGEST_NAME // 2:
        raise DataError(
            f"An attribute is called '{name[:60]}' (data.attribute_columns). '{SITE_ATTRIBUTE}' is taken by the site "
            f"itself, '{CROSS}' stands between crossed attributes, and {LONGEST_NAME // 2} letters are the most. "
            "Rename the column."
        )
    is_id = len(different) > MOST_VALUES or (len(different) > _FEW_VALUES and 2 * len(different) > num_images)
    if is_id:
        raise DataError(
            f"The attribute '{name}' (data.attribute_columns) has {len(different)} different values for {num_images} "
            f"images. Allowed: up to {MOST_VALUES}, each for several images; what has more is likely an id. Group its "
            "values, for numbers with data.bands, or remove the column from data.attribute_columns."
        )
    if max(map(len, different), default=0) > LONGEST_NAME // 2:
        raise DataError(
            f"The attribute '{name}' (data.attribute_columns) has a value of more than {LONGEST_NAME // 2} letters, "
            "which is likely free text. Use short names of groups, or remove the column from data.attribute_columns."
        )


def _choose_crossings(names: Sequence[str], fairness: FairnessConfig) -> Iterable[tuple[str, ...]]:
    """Return the attributes of every crossing, of those that the site has."""
    if fairness.intersections == "none":
        return []
    if fairness.intersections == "pairs":
        return combinations(names, 2)
    known = names if fairness.attributes is None else fairness.attributes
    for crossing in fairness.intersections:
        strangers = [name for name in crossing if name not in known]
        if strangers:
            where = "in this site's data" if fairness.attributes is None else "named in fairness.attributes"
            raise ConfigError(
                f"fairness.intersections crosses '{strangers[0]}', which is no attribute {where}."
                f"{suggest_nearest(strangers[0], known)} Attributes: {', '.join(known) or 'none'}. Where only some "
                "sites have an attribute, name it in fairness.attributes."
            )
        if len(set(crossing)) != len(crossing) or len(crossing) < 2:
            raise ConfigError(
                f"fairness.intersections holds [{', '.join(crossing)}]. Allowed: two or more different attributes."
            )
    return [tuple(crossing) for crossing in fairness.intersections if set(crossing) <= set(names)]


def cross_values(values: Sequence[str]) -> str:
    """Return the name of a crossing's group."""
    return UNKNOWN if UNKNOWN in values else _BETWEEN_VALUES.join(values)
