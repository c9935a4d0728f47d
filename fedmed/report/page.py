"""The report of a run: one self-contained HTML page and the same numbers as JSON."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from markupsafe import Markup

from fedmed.report.content import ReportContent
from fedmed.report.document import build_document
from fedmed.report.drawing.markup import Numbers
from fedmed.report.drawing.style import render_style
from fedmed.report.drawing.templates import render_template
from fedmed.report.guidelines.page import GUIDELINES_FILE, render_guidelines
from fedmed.report.schema.document import Document
from fedmed.report.sections.benefit import describe_benefit
from fedmed.report.sections.calibration import describe_calibration, describe_reliability
from fedmed.report.sections.clinical.alerts import describe_clinical
from fedmed.report.sections.clinical.ordinal import describe_ordinal
from fedmed.report.sections.clinical.shift import describe_shift
from fedmed.report.sections.compression import describe_compression
from fedmed.report.sections.diagnostics import describe_confusion, describe_scores, describe_site_confusion
from fedmed.report.sections.distillation import describe_distillation
from fedmed.report.sections.fairness import describe_fairness, describe_group_figures
from fedmed.report.sections.first_page import describe_first_page
from fedmed.report.sections.method import describe_notes, describe_reading, describe_run
from fedmed.report.sections.patients import name_ids, say_patients
from fedmed.report.sections.results import describe_classes, describe_results, describe_sites
from fedmed.report.sections.rounds import describe_composition, describe_participation, describe_rounds
from fedmed.report.sections.values import Values
from fedmed.storage.atomic_files import write_text_atomically

# Nothing is fetched and nothing runs, whatever a name from outside holds.
SECURITY_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

SYNTHETIC_BANNER = "Synthetic phantom images, not medical data. These results say nothing about patients."
RESEARCH_BANNER = "Research software, not a medical device. Not for diagnosis or treatment."


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes
    ----------
    anchor : str
        Its id on the page, and the name of its template ``templates/ANCHOR.html``.
    title : str
        The heading.
    describe : callable
        Returns what the template shows, None where the run has nothing of it.
    """

    anchor: str
    title: str
    describe: Callable[[Numbers], Values | None]


@dataclass(frozen=True)
class DrawnSection:
    """A section as ``page.html`` shows it."""

    anchor: str
    title: str
    body: Markup


PARTS = (
    Section("results", "How well does it do on images that it has not seen?", describe_results),
    Section("classes", "Which classes does it recognise, and which not?", describe_classes),
    Section("clinical", "Alerts: whom would the model miss?", describe_clinical),
    Section("ordinal", "Ordered classes: how far are the answers off?", describe_ordinal),
    Section("confusion", "What does it take for what?", describe_confusion),
    Section("sites", "How well does it do at each hospital?", describe_sites),
    Section("shift", "How far do the images of the hospitals differ?", describe_shift),
    Section("fairness", "Is it worse for some patients?", describe_fairness),
    Section("benefit", "Is each hospital better off than alone?", describe_benefit),
    Section("calibration", "Is the stated confidence honest?", describe_calibration),
    Section("compression", "What did it cost to make the network small?", describe_compression),
    Section("participation", "Who took part, and who was left out?", describe_participation),
    Section("notes", "What else should a reader know?", describe_notes),
)
"""Each is titled with the question that it answers."""

APPENDIX = (
    Section("composition", "Which images was it trained on?", describe_composition),
    Section("confusion_sites", "What is taken for what at each hospital?", describe_site_confusion),
    Section("groups", "All figures and gaps by group", describe_group_figures),
    Section("reliability", "Stated confidence by group", describe_reliability),
    Section("rounds", "How did training go?", describe_rounds),
    Section("distillation", "What did the teacher do?", describe_distillation),
    Section("scores", "ROC curves", describe_scores),
    Section("run", "What was run?", describe_run),
    Section("reading", "How are the figures to be read?", describe_reading),
)
"""For those who check: long tables, drawings and settings."""


def write_report(run_dir: Path, content: ReportContent, *, inside: bool = True) -> Path:
    """Write ``report.json``, ``index.html`` and ``tripod_ai.md`` into a run's folder, each atomically.

    Parameters
    ----------
    run_dir : Path
        The run's folder.
    content : ReportContent
        Settings, history and tables of the run.
    inside : bool
        Whether the files go to the folder ``report`` in it, which is created, and not beside everything else.

    Returns
    -------
    Path
        Of ``index.html``.
    """
    document = build_document(content)
    return save_report(run_dir, document) if inside else save_page(run_dir, document)


def save_report(run_dir: Path, document: Document) -> Path:
    """Write a document of :func:`fedmed.report.document.build_document` and its page, as :func:`write_report` does."""
    return save_page(run_dir / "report", document)


def save_page(folder: Path, document: Document, *, with_numbers: bool = True) -> Path:
    """Write the page of a document and the answers to guidelines into a folder; return ``index.html``.

    Parameters
    ----------
    folder : Path
        Is created.
    document : Document
        Of :func:`fedmed.report.document.build_document`, or of an earlier version.
    with_numbers : bool
        Whether to write ``report.json``, too.
    """
    rendered, guidelines = render_page(document), render_guidelines(document)
    folder.mkdir(parents=True, exist_ok=True)
    if with_numbers:
        write_text_atomically(folder / "report.json", json.dumps(document, allow_nan=False) + "\n")
    write_text_atomically(folder / GUIDELINES_FILE, guidelines)
    page = folder / "index.html"
    write_text_atomically(page, rendered)
    return page


def render_page(document: Document) -> str:
    """Return the HTML page of a document of :func:`fedmed.report.document.build_document`."""
    numbers = Numbers(document)
    parts, appendix = (
        [drawn for section in sections if (drawn := draw_section(section, numbers)) is not None]
        for sections in (PARTS, APPENDIX)
    )
    first = draw_section(Section("first_page", "", describe_first_page), numbers)
    assert first is not None, "every run has a first page"
    return wrap_page(
        "report.html",
        document["title"],
        synthetic=document["synthetic"],
        first_page=first.body,
        sections=parts,
        appendix=appendix,
    )


def draw_section(section: Section, numbers: Numbers) -> DrawnSection | None:
    """Return a section, None where the run has nothing of it."""
    values = section.describe(numbers)
    if values is None:
        return None
    words = {"patients": partial(say_patients, numbers), "ids": name_ids(numbers)}
    body = render_template(f"{section.anchor}.html", num=numbers, **words, **values)
    return DrawnSection(section.anchor, section.title, body)


def wrap_page(template: str, title: str, *, synthetic: bool, **values: object) -> str:
    """Return a self-contained page that fetches and runs nothing, from a template that extends ``page.html``."""
    return render_template(
        template,
        title=title,
        banners=[SYNTHETIC_BANNER, RESEARCH_BANNER] if synthetic else [RESEARCH_BANNER],
        policy=SECURITY_POLICY,
        style=render_style(),
        **values,
    )
