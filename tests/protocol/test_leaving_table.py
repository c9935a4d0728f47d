"""SECURITY.md says what leaves as the kinds of message have it."""

from pathlib import Path

import pytest

from fedmed.protocol.kinds import KINDS
from fedmed.protocol.leaving_table import BEGIN, END, draw_table, main, replace_table

PAGE = Path(__file__).resolve().parents[2] / ".github" / "SECURITY.md"


def test_the_page_has_the_table_of_today() -> None:
    text = PAGE.read_text()
    renew = "type: python -m fedmed.protocol.leaving_table .github/SECURITY.md"
    assert replace_table(text) == text, f"fedmed/protocol/kinds.py has changed; {renew}"


def test_every_kind_has_a_row_with_all_that_may_leave() -> None:
    rows = {line.split("`")[1]: line for line in draw_table().splitlines()[2:]}
    assert set(rows) == {kind.flower for kind in KINDS.values()}
    for kind in KINDS.values():
        cells = [cell.strip() for cell in rows[kind.flower].strip("|").split("|")]
        assert set(cells[3].split(", ")) == kind.report
        assert len(cells[2].split(", ")) == max(1, len(kind.returns))
    assert "num_images" in rows["train"]
    assert "| the weights |" in rows["train"]
    assert "| none |" in rows["train.local"]


def test_the_command_renews_it(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert main([str(page)]) == 0
    assert page.read_text() == f"before\n{BEGIN}\n\n{draw_table()}\n\n{END}\nafter\n"
    with pytest.raises(ValueError, match="has no place for the table"):
        replace_table("nothing")
