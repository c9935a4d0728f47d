"""The page in a real browser: what it shows is what report.json says."""

import shutil
import subprocess

import pytest

from tests.report.support.page_parser import Page
from tests.report.test_page import check_numbers

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
TIME_LIMIT_S = 120


@pytest.fixture(scope="module")
def run_browser(tmp_path_factory):
    """Return a function that starts a headless browser with options and returns what it prints."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser is installed (looked for {', '.join(BROWSERS)})")
    profile = tmp_path_factory.mktemp("profile")
    # No sandbox: it needs rights that a test machine's container does not give, and the page is our own.
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]

    def run(*options):
        try:
            done = subprocess.run(
                [*command, f"--user-data-dir={profile}", *options],
                capture_output=True,
                timeout=TIME_LIMIT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            pytest.skip(f"{browser} does not start here: {type(error).__name__}")
        if done.returncode:
            pytest.skip(f"{browser} does not start here: {done.stderr.decode(errors='replace')[-300:]}")
        return done.stdout.decode()

    return run


def test_the_browser_shows_the_numbers_of_the_json(fair_report, run_browser):
    page, document, text = fair_report
    seen = Page(run_browser("--dump-dom", page.as_uri()))
    check_numbers(document, seen)
    # the browser has dropped and moved nothing: all numbers, tables and drawings of the file are in what it shows
    written = Page(text)
    assert seen.numbers == written.numbers
    assert len(seen.numbers) > 1000
    for tag in ("table", "svg", "h2", "h3"):
        assert [name for name, _ in seen.tags].count(tag) == [name for name, _ in written.tags].count(tag)


@pytest.mark.slow
def test_the_page_prints_to_pdf(fair_report, run_browser, tmp_path):
    page, _, _ = fair_report
    file = tmp_path / "report.pdf"
    run_browser("--no-pdf-header-footer", f"--print-to-pdf={file}", page.as_uri())
    assert file.read_bytes().startswith(b"%PDF-")
    assert file.stat().st_size > 50_000
