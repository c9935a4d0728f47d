"""How many patients stand behind images, where the sites' data has their ids."""

from markupsafe import Markup

from fedmed.report.drawing.markup import Numbers
from fedmed.report.drawing.templates import fill

Path = tuple[str | int, ...]
FLOW = ("flow", "patients")


def find_patients(numbers: Numbers, *path: str) -> Path | None:
    """Return where in ``report.json`` the patients behind something are, None where that is not known.

    Parameters
    ----------
    numbers : Numbers
        The document.
    *path : str
        ``by_class`` and a class, ``groups``, an attribute and a group, or ``sites`` and a site.
    """
    flow = numbers.document.get("flow")
    if flow is None or numbers.get(*FLOW) is None:
        return None
    whole: Path = ("flow", "sites", path[1], "patients") if path[0] == "sites" else (*FLOW, *path)
    try:
        return None if numbers.get(*whole) is None else whole
    except KeyError:
        return None


def show_patients(numbers: Numbers, *path: str) -> Markup:
    """Return the number of patients of :func:`find_patients`, or "not known"."""
    place = find_patients(numbers, *path)
    return fill("not known") if place is None else numbers.show(*place)


def say_patients(numbers: Numbers, *path: str) -> Markup:
    """Return " of 12 patients", to stand after a number of images, or nothing where that is not known."""
    place = find_patients(numbers, *path)
    return fill("") if place is None else fill(" of {} patients", numbers.show(*place))


def has_patients(numbers: Numbers) -> bool:
    """Return whether any number of patients is known."""
    return numbers.document.get("flow") is not None and numbers.get(*FLOW) is not None
