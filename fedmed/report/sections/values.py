"""What a section computes and its template shows."""

from collections.abc import Mapping

Values = Mapping[str, object]
"""Names, as the template uses them, to values: text, lists, tables (:class:`fedmed.report.drawing.markup.Table`)."""
