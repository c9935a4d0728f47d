"""The table "what leaves, and nothing else" of ``.github/SECURITY.md``, drawn from the kinds of message.

``python -m fedmed.protocol.leaving_table .github/SECURITY.md`` renews it.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from fedmed.protocol.kinds import KINDS, Kind

BEGIN = "<!-- drawn by python -m fedmed.protocol.leaving_table .github/SECURITY.md -->"
END = "<!-- end of what is drawn -->"
_PARTS = {"model": "the weights", "tables": "tables of counts", "sums": "sums"}


def draw_table() -> str:
    """Return the table as Markdown: a row for each kind of message, with all that its answer may hold."""
    head = "| message | what leaves | parts beside the report | keys that the report may have |"
    rows = [head, "| --- | --- | --- | --- |"]
    return "\n".join([*rows, *(_draw_row(kind) for kind in KINDS.values())])


def replace_table(page: str) -> str:
    """Return a page with the table as it is now.

    Raises
    ------
    ValueError
        If it has no place for it.
    """
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"The page has no place for the table: the lines '{BEGIN}' and '{END}'.")
    return f"{head}{BEGIN}\n\n{draw_table()}\n\n{END}{tail}"


def _draw_row(kind: Kind) -> str:
    leaves = "; ".join(phase.leaves for phase in kind.phases)
    if kind.about:
        leaves += f": {kind.about}"
    parts = ", ".join(_PARTS.get(part, part) for part in kind.returns) or "none"
    return f"| `{kind.flower}` | {leaves} | {parts} | {', '.join(sorted(kind.report))} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Renew the table in a page and return the exit code."""
    (name,) = sys.argv[1:] if arguments is None else arguments
    page = Path(name)
    page.write_text(replace_table(page.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
