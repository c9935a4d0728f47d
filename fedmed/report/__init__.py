"""Reports of runs: one self-contained page and the same numbers as JSON."""

from fedmed.report.content import ReportContent
from fedmed.report.page import write_report

__all__ = ["ReportContent", "write_report"]
