"""The templates of ``fedmed/report/templates``: whatever is put into one is escaped, unless a template made it."""

from collections.abc import Callable
from typing import cast

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

MACROS = "macros.html"

_ENVIRONMENT = Environment(
    loader=PackageLoader("fedmed.report", "templates"),
    autoescape=True,
    auto_reload=False,
    undefined=StrictUndefined,  # a value that is missing is an error of the section, and no empty place of the page
)


def render_template(name: str, **values: object) -> Markup:
    """Return the HTML of a template.

    Parameters
    ----------
    name : str
        File in ``fedmed/report/templates``.
    **values : object
        What the template shows. Text is escaped; only ``Markup`` stays as it is.
    """
    return Markup(_ENVIRONMENT.get_template(name).render(**values))  # noqa: S704  # the template escaped


def render_macro(name: str, *values: object) -> Markup:
    """Return the HTML of a macro of ``macros.html``, for pieces that are drawn outside of a section."""
    macro = cast("Callable[..., Markup]", getattr(_ENVIRONMENT.get_template(MACROS).module, name))
    return macro(*values)


def fill(text: str, *values: object) -> Markup:
    """Return a text with values in its places, such as ``fill("{} of {} images", shown, total)``.

    Text and values are escaped; marked numbers (:class:`fedmed.report.drawing.markup.Numbers`) stay marked.
    """
    return Markup.escape(text).format(*values)
