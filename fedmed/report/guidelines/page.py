"""``tripod_ai.md``: the items of TRIPOD+AI and CLAIM 2024, each with what the run knows of it."""

from collections.abc import Sequence

from fedmed.report.guidelines.answers import ANSWERS
from fedmed.report.guidelines.items import CLAIM, TRIPOD_AI, Item
from fedmed.report.schema.document import Document

GUIDELINES_FILE = "tripod_ai.md"
UNKNOWN = "not known to the software"
_MARKUP = str.maketrans({mark: f"\\{mark}" for mark in "\\|*_`[]<>#&~!$"})
_INTRODUCTION = (
    "What this run can answer of the items that publications on prediction models should report. The topics are in our "
    "own words; read the guidelines for what each item asks. Numbers are after the published checklists, compared with "
    "public transcriptions of them and not with the publications: check against these. Where it says "
    f'"{UNKNOWN}", a person has to answer.'
)


def render_guidelines(document: Document) -> str:
    """Return the items of both guidelines with their answers as Markdown."""
    return "\n".join(
        [
            f"# {escape_markdown(document['title'])}: TRIPOD+AI and CLAIM",
            "",
            _INTRODUCTION,
            "",
            "## TRIPOD+AI (Collins et al., BMJ 385, 2024)",
            "",
            *_list_items(TRIPOD_AI, document),
            "",
            "## CLAIM, update of 2024 (Tejani et al., Radiology: Artificial Intelligence 6, 2024)",
            "",
            *_list_items(CLAIM, document),
            "",
        ]
    )


def escape_markdown(text: str) -> str:
    """Return a text from outside so that Markdown shows it as it is, on one line."""
    return " ".join(text.split()).translate(_MARKUP)


def _list_items(items: Sequence[Item], document: Document) -> list[str]:
    rows = [f"| {item.number} | {item.topic} | {_answer(item, document)} |" for item in items]
    return ["| Item | Topic | Answer |", "| --- | --- | --- |", *rows]


def _answer(item: Item, document: Document) -> str:
    found = ANSWERS[item.answer](document) if item.answer else None
    return UNKNOWN if found is None else escape_markdown(found)
