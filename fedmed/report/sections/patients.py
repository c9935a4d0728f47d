"""How many patients, or what else the ids of the data name, stand behind images, where the sites' data has ids."""

from markupsafe import Markup

from fedmed.report.drawing.markup import Numbers
from fedmed.report.drawing.templates import fill
from fedmed.report.drawing.wording import head_attribute

Path = tuple[str | int, ...]
FLOW = ("flow", "patients")
PATIENT = "patient"


def name_id(numbers: Numbers) -> str:
    """Return the word for what an id of the data names (``data.unit``), for example "lesion"; "patient" by default."""
    data = numbers.get("config").get("data")
    return str(data.get("unit", PATIENT)) if isinstance(data, dict) else PATIENT


def name_ids(numbers: Numbers) -> str:
    """Return the plural of :func:`name_id`."""
    return f"{name_id(numbers)}s"


def head_ids(numbers: Numbers) -> str:
    """Return the plural of :func:`name_id` as the heading of a column."""
    return head_attribute(name_ids(numbers))


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
    if place is None:
        return fill("")
    return fill(" of {} {}", numbers.show(*place), name_id(numbers) if numbers.get(*place) == 1 else name_ids(numbers))


def has_patients(numbers: Numbers) -> bool:
    """Return whether any number of patients is known."""
    return numbers.document.get("flow") is not None and numbers.get(*FLOW) is not None
