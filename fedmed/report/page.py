"""The report of a run: one self-contained HTML page and the same numbers as JSON."""

import json
import re
from pathlib import Path

from fedmed.report.content import ReportContent
from fedmed.report.document import build_document
from fedmed.report.drawing.markup import Numbers, escape
from fedmed.report.drawing.style import render_style
from fedmed.report.schema.document import Document
from fedmed.report.sections.benefit import render_benefit
from fedmed.report.sections.calibration import render_calibration
from fedmed.report.sections.clinical.ordinal import render_ordinal
from fedmed.report.sections.clinical.shift import render_shift
from fedmed.report.sections.compression import render_compression
from fedmed.report.sections.diagnostics import render_confusion, render_scores
from fedmed.report.sections.distillation import render_distillation
from fedmed.report.sections.fairness import render_fairness
from fedmed.report.sections.method import render_notes, render_reading, render_run
from fedmed.report.sections.results import render_classes, render_headline, render_sites, render_summary
from fedmed.report.sections.rounds import render_composition, render_participation, render_rounds
from fedmed.storage.atomic_files import write_text_atomically

# Nothing is fetched and nothing runs, whatever a name from outside holds.
SECURITY_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

SYNTHETIC_BANNER = "Synthetic phantom images, not medical data. These results say nothing about patients."
RESEARCH_BANNER = "Research software, not a medical device. Not for diagnosis or treatment."


def write_report(run_dir: Path, content: ReportContent) -> Path:
    """Write ``report/report.json`` and ``report/index.html`` into a run's folder, each atomically.

    Parameters
    ----------
    run_dir : Path
        The run's folder; ``report/`` is created in it.
    content : ReportContent
        Settings, history and tables of the run.

    Returns
    -------
    Path
        ``run_dir/report/index.html``.
    """
    return save_report(run_dir, build_document(content))


def save_report(run_dir: Path, document: Document) -> Path:
    """Write a document of :func:`fedmed.report.document.build_document` and its page, as :func:`write_report` does."""
    folder = run_dir / "report"
    folder.mkdir(parents=True, exist_ok=True)
    rendered = render_page(document)
    write_text_atomically(folder / "report.json", json.dumps(document, allow_nan=False) + "\n")
    page = folder / "index.html"
    write_text_atomically(page, rendered)
    return page


def render_page(document: Document) -> str:
    """Return the HTML page of a document of :func:`fedmed.report.document.build_document`."""
    numbers = Numbers(document)
    sections = [
        render_headline(numbers),
        render_classes(numbers),
        render_ordinal(numbers),
        render_sites(numbers),
        render_shift(numbers),
        render_fairness(numbers),
        render_benefit(numbers),
        render_compression(numbers),
        render_calibration(numbers),
        render_rounds(numbers),
        render_distillation(numbers),
        render_confusion(numbers),
        render_scores(numbers),
        render_composition(numbers),
        render_participation(numbers),
        render_run(numbers),
        render_reading(numbers),
        render_notes(numbers),
    ]
    body = "\n".join(section for section in sections if section)
    title = escape(document["title"])
    header = f"""{render_banners(document["synthetic"])}
<p class="eyebrow">Report of a federated training run</p>
<h1>{title}</h1>
{render_summary(numbers)}
{_render_contents(body)}"""
    return wrap_page(title, header, body, skip='<a class="skip" href="#results">Skip to the results</a>\n')


def wrap_page(title: str, header: str, body: str, *, skip: str = "") -> str:
    """Return a self-contained page that fetches and runs nothing; all parts are escaped HTML."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{SECURITY_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{render_style()}</style>
</head>
<body>
{skip}<div class="page">
<header>
{header}
</header>
<main>
{body}
</main>
</div>
</body>
</html>
"""


def render_banners(synthetic: bool) -> str:
    """Return the lines that head every page: what the images are, and what the software is not."""
    texts = [SYNTHETIC_BANNER, RESEARCH_BANNER] if synthetic else [RESEARCH_BANNER]
    return "\n".join(f'<p class="banner">{text}</p>' for text in texts)


def _render_contents(body: str) -> str:
    headings = re.findall(r'<h2 id="([a-z]+)-h">(.*?)</h2>', body)
    items = "".join(f'<li><a href="#{anchor}">{heading}</a></li>' for anchor, heading in headings)
    return f'<nav class="contents" aria-label="Contents"><ul>{items}</ul></nav>'
