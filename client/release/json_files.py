"""JSON that came from elsewhere: bounded in size and depth, with finite numbers, or refused."""

import json
import math

from pydantic import JsonValue

_MOST_DEPTH = 40
_MOST_LETTERS = 100_000
_LARGEST = 2**63


def read_json(data: bytes, most_bytes: int) -> JsonValue:
    """Return what a JSON file holds.

    Parameters
    ----------
    data : bytes
        Content, UTF-8.
    most_bytes : int
        Most that is read.

    Raises
    ------
    ValueError
        If it is larger or nested more deeply than anything of ours, or is no plain JSON with finite numbers.
    """
    if len(data) > most_bytes:
        raise ValueError(f"it has {len(data):,} bytes, allowed are {most_bytes:,}")
    try:
        content: JsonValue = json.loads(data.decode("utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check(content)
    return content


def _check(content: JsonValue) -> None:
    """Walk through level by level, which needs no recursion."""
    level: list[JsonValue] = [content]
    for _ in range(_MOST_DEPTH):
        deeper: list[JsonValue] = []
        for value in level:
            if isinstance(value, dict):
                deeper += [*value, *value.values()]
            elif isinstance(value, list):
                deeper += value
            elif isinstance(value, str):
                if len(value) > _MOST_LETTERS:
                    raise ValueError("it holds a text that is too long")
            elif isinstance(value, float | int) and not (math.isfinite(value) and abs(value) <= _LARGEST):
                raise ValueError("it holds a number that is too large or none")
        if not deeper:
            return
        level = deeper
    raise ValueError("it is nested too deeply")
