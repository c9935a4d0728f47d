"""One report with groups, benefit and temperature, made once for all tests that only read it."""

import json

import pytest

from fedmed.report import write_report
from tests.report.support.fairness_example import make_fair_content


@pytest.fixture(scope="session")
def fair_report(tmp_path_factory):
    """Return the folder, the document and the page's text."""
    page = write_report(tmp_path_factory.mktemp("fair"), make_fair_content())
    return page, json.loads(page.with_name("report.json").read_text()), page.read_text()
