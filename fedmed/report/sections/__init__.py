"""From ``report.json`` to the parts of the page; no counting, and no HTML.

To add a section NAME:

1. ``fedmed/report/sections/NAME.py`` has a function ``describe_NAME(numbers: Numbers) -> Values | None`` that returns
   what the section shows: plain text, lists, :class:`~fedmed.report.drawing.markup.Table`, numbers marked with their
   place in ``report.json`` (``numbers.show("figures", "accuracy", "value")``); None where the run has nothing of it.
   Text with numbers in it is made with :func:`~fedmed.report.drawing.templates.fill`.
2. ``fedmed/report/templates/NAME.html`` draws it. The names of the returned values are the template's variables; beside
   them ``num`` is the same :class:`~fedmed.report.drawing.markup.Numbers`, and ``macros.html`` has tables, folds,
   legends and the like. Everything is escaped; no template uses ``safe``.
3. One line in the list of :mod:`fedmed.report.page`: anchor (NAME), title (the question that it answers), function.
"""
