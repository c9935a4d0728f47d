"""The operating point: the alert score of an image, its threshold from sums, and figures of a model that raises alerts.

What a page or a model's folder makes of them belongs to ``fedmed.report`` and ``fedmed.export``.
"""
