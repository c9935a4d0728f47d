"""Lines for the people at this site, which the worker hands to the console with its next reply; they never leave."""

import logging

_logger = logging.getLogger("fedmed.client")

_MOST_LINES = 50
_lines: list[str] = []


def say(line: str) -> None:
    """Have a line printed where flower-client runs; it stands in the worker's log as well."""
    _logger.warning("%s", line)
    _lines.append(line)
    del _lines[:-_MOST_LINES]


def take_lines() -> list[str]:
    """Return the lines since the last call."""
    lines = _lines.copy()
    _lines.clear()
    return lines
