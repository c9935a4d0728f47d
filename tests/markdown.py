"""Reads the project's Markdown pages: links, anchors, code, and the commands of ours in it."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fedmed.own_packages import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = COMMANDS
"""Command -> module with its ``main``."""
PACKAGES = ("fedmed", "server", "client", "simulations")
_FOLDERS = (*PACKAGES, "configs", "tests", ".github", ".ci")
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^ {4}.*\n)+", re.MULTILINE)
_LINK = re.compile(r"!?\[(?:[^\]]|`[^`]*`)*\]\(([^)\s]+)\)")
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_PYTHON = re.compile(r"^(?:\.venv/bin/)?python3?$")


@dataclass(frozen=True)
class Command:
    """A command of ours, as a page has it."""

    text: str
    module: str
    """Module whose ``main`` it starts."""
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Page:
    """One Markdown file."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def prose(self) -> str:
        """Everything that is no block of code."""
        return _INDENTED.sub("", _FENCED.sub("", self.text)) if self.name == "README.md" else _FENCED.sub("", self.text)

    @cached_property
    def blocks(self) -> list[tuple[str, str]]:
        """Kind and content of every block of code; indented ones, which the first page alone has, are ``indented``."""
        found = [(kind, body) for kind, body in _FENCED.findall(self.text)]
        if self.name == "README.md":
            found += [("indented", body) for body in _INDENTED.findall(_FENCED.sub("", self.text))]
        return found

    @property
    def links(self) -> list[str]:
        return _LINK.findall(self.prose)

    @property
    def anchors(self) -> set[str]:
        """Anchors of the headings, as GitHub makes them."""
        headings = re.findall(r"^#+ (.+)$", self.prose, re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

    @cached_property
    def spans(self) -> list[str]:
        """Inline code; a line break in it is a space."""
        return [" ".join(span.split()) for span in _SPAN.findall(self.prose)]

    def lines_to_type(self) -> list[str]:
        """Return the lines of the blocks that are there to be typed, without comments."""
        bodies = [body for kind, body in self.blocks if kind in {"sh", "indented"}]
        lines = [re.sub(r"\s+#.*$", "", line).strip() for body in bodies for line in body.splitlines()]
        return [line for line in lines if line and _first_word(line) in {"python", "python3", "uv", *SCRIPTS}]

    def commands(self) -> list[Command]:
        """Return the commands of ours: lines of blocks, lines that were recorded after ``$``, and inline code."""
        recorded = re.findall(r"^\$ (.+)$", self.text, re.MULTILINE)
        inline = [span for span in self.spans if len(span.split()) > 1]
        lines = [part for line in [*self.lines_to_type(), *recorded, *inline] for part in line.split(" && ")]
        return [command for line in lines if (command := read_command(line)) is not None]


def list_pages() -> list[Page]:
    """Return the pages; what git ignores (tables of studies) is none."""
    found = list(ROOT.glob("*.md"))
    for folder in _FOLDERS:
        found += (ROOT / folder).rglob("*.md")
    return [Page(path) for path in sorted(found) if path.name != "table.md" and "fixtures" not in path.parts]


def read_command(line: str) -> Command | None:
    """Return a command of ours, None for any other text."""
    try:
        words = shlex.split(line)
    except ValueError:  # an apostrophe in prose
        return None
    module = None
    if words and words[0] in SCRIPTS:
        module, rest = SCRIPTS[words[0]], words[1:]
    elif len(words) > 2 and _PYTHON.match(words[0]) and words[1] == "-m":
        module, rest = words[2], words[3:]
    elif len(words) > 1 and _PYTHON.match(words[0]) and "/" in words[1]:
        module, rest = words[1].removesuffix(".py").replace("/", "."), words[2:]
    if module is None or module.partition(".")[0] not in PACKAGES:
        return None
    return Command(line, module, tuple(rest))


def list_files() -> Iterator[Path]:
    """Yield the files of the project, relative to its root."""
    for folder in _FOLDERS:
        yield from (
            path.relative_to(ROOT)
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        )
    yield from (path.relative_to(ROOT) for path in ROOT.iterdir() if path.is_file())


def _first_word(line: str) -> str:
    return line.split(maxsplit=1)[0].removeprefix(".venv/bin/")
