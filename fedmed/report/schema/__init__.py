"""The form of ``report.json``.

The keys of a ``dict`` are names: of figures (``accuracy``), of sites, classes, attributes, groups or models. A figure
that is not defined has ``value: None`` and a ``reason``.
"""
