"""The table of ten changes: at most four files of the product each, which are there and hold what the row names."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / ".github" / "CONTRIBUTING.md"
MOST_FILES = 4
_PRODUCT = r"(?:fedmed|server|client|simulations)/[\w/]*"
_CODE = r"`(\w+)(?:\(\))?`"


def read_table() -> dict[str, tuple[int, str]]:
    """Return change -> number of files, and the text that names them."""
    section = PAGE.read_text().partition("## Ten changes and where they go\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {change: (int(number), text) for change, number, text in cells}


TABLE = read_table()


def list_files(text: str) -> list[Path]:
    return [ROOT / name for name in dict.fromkeys(re.findall(rf"`({_PRODUCT}\.py)`", text))]


def list_new(text: str) -> list[Path]:
    """Return the folders that get a new file."""
    return [ROOT / name for name in re.findall(rf"a new file in `({_PRODUCT}/)`", text)]


def test_there_are_ten() -> None:
    assert len(TABLE) == 10


@pytest.mark.parametrize("change", TABLE)
def test_a_row_counts_its_files(change: str) -> None:
    number, text = TABLE[change]
    assert 1 <= number <= MOST_FILES
    assert len(list_files(text)) + len(list_new(text)) == number
    named = re.findall(rf"`({_PRODUCT})(?:\.py)?`", text)
    assert len(named) == number, "every path of the product is a file that is there, or the folder of a new one"


@pytest.mark.parametrize("change", TABLE)
def test_its_files_and_folders_are_there(change: str) -> None:
    _, text = TABLE[change]
    assert [path for path in list_files(text) if not path.is_file()] == []
    assert [path for path in list_new(text) if not (path / "__init__.py").is_file()] == []


@pytest.mark.parametrize("change", TABLE)
def test_what_it_names_is_in_its_files(change: str) -> None:
    """Names of code: those of functions, classes and tables, apart from a new file's own."""
    _, text = TABLE[change]
    own = {"answer"}
    names = {name for name in re.findall(_CODE, text) if name.isidentifier()} - own
    source = "\n".join(path.read_text() for path in list_files(text))
    assert {name for name in names if not re.search(rf"\b{name}\b", source)} == set()


def test_the_name_of_a_handler_is_the_one_that_is_asked_for() -> None:
    assert "`answer`" in TABLE["a new kind of message"][1]
    assert ").answer(message, context)" in (ROOT / "client" / "answers" / "answering.py").read_text()
