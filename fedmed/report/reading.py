"""A ``report.json`` that came from elsewhere, read through its form; a page may then be drawn from it here."""

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from fedmed.errors import FormatError, tame
from fedmed.formats import REPORT
from fedmed.report.schema.document import Document

_ADAPTER = TypeAdapter(Document)
_NUMBERED = TypeAdapter(dict[str, object])
MOST_BYTES = 200_000_000
"""Of a report."""


def read_document(data: bytes) -> Document:
    """Return a report as its form reads it: nothing is converted, and what the form does not know is left out.

    Parameters
    ----------
    data : bytes
        Content of the file; its size and depth were bounded before.

    Raises
    ------
    FormatError
        If it is of another version, or something in it has another form.
    """
    try:
        REPORT.check(_NUMBERED.validate_json(data).get("format"), "the report")  # the rest may have any form then
        document = _ADAPTER.validate_json(data, strict=True)
        _refuse_constants(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            raise FormatError(
                "The report is damaged, or another file: it is no whole JSON. Take it again from where it came."
            ) from None
        place = tame(".".join(map(str, first["loc"])), 100)
        raise FormatError(f"The report has another form than this version of fedmed reads ('{place}').") from None
    return document


def _refuse_constants(data: bytes) -> None:
    """Raise a FormatError for NaN and Infinity: they are no JSON, and no report of fedmed has ever held one."""
    try:
        from_json(data, allow_inf_nan=False)
    except ValueError:
        raise FormatError(
            "The report holds NaN or Infinity in place of a number; fedmed writes null. Take the file as the run has "
            "written it."
        ) from None
