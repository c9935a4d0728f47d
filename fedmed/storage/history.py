"""The course of a run on disk: ``history.jsonl``, one JSON object a line, and ``metrics.csv``, the same in long form.

A line counts only once its newline is on the disk. What a killed process leaves behind an unfinished line is ignored by
the reader and removed by the next writer, so a crash loses at most the round under way.
"""

import csv
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from fedmed.errors import RunFolderError
from fedmed.storage.atomic_files import write_text_atomically

CSV_COLUMNS = ("round", "part", "site", "figure", "value")
ALL_SITES = "all"
ROUND_FIGURES = ("loss", "learning_rate", "coverage_images", "wall_s")
SITE_FIGURES = ("images", "share", "train_s", "update_mib", "update_norm")


def to_plain_json(value: Any) -> Any:
    """Return ``value`` in JSON's own types.

    JSON has no NaN and no infinity: they become ``None``. NumPy's numbers and arrays become numbers and lists, tuples
    become lists, and anything else (a path, a date) becomes its text.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): to_plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain_json(item) for item in value]
    if hasattr(value, "tolist"):
        return to_plain_json(value.tolist())
    return str(value)


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Append one round to the history and wait until it is on the disk.

    Parameters
    ----------
    path : Path
        ``history.jsonl``; created if absent. An unfinished last line is removed first.
    record : mapping
        What happened in the round; it must have an integer ``round``. Numbers that are not finite are stored as null.

    Raises
    ------
    ValueError
        If ``record`` has no integer ``round``.
    """
    if not isinstance(record.get("round"), int):
        raise ValueError(f"a history record needs an integer 'round', found {record.get('round')!r}")
    line = json.dumps(to_plain_json(record), allow_nan=False) + "\n"
    with path.open("a+b") as file:
        _remove_torn_line(file)
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def read_history(path: Path) -> list[dict[str, Any]]:
    """Return the rounds of a history in file order; an absent file is an empty history.

    Parameters
    ----------
    path : Path
        ``history.jsonl``. A last line without a newline was torn by a crash and is left out.

    Raises
    ------
    RunFolderError
        If a finished line is not a JSON object with an integer ``round``.
    """
    if not path.exists():
        return []
    finished = path.read_bytes().split(b"\n")[:-1]
    return [_parse_line(path, number, line) for number, line in enumerate(finished, start=1)]


def truncate_history(path: Path, last_round: int) -> None:
    """Remove all rounds after ``last_round``, atomically; a run that resumes there writes them anew.

    Parameters
    ----------
    path : Path
        ``history.jsonl``; nothing happens if it is absent.
    last_round : int
        The last round to keep.

    Raises
    ------
    RunFolderError
        As :func:`read_history`.
    """
    if path.exists():
        kept = [record for record in read_history(path) if record["round"] <= last_round]
        write_text_atomically(path, "".join(json.dumps(record) + "\n" for record in kept))


def write_metrics_csv(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write every number of a history in long form, atomically.

    Parameters
    ----------
    history : sequence of mappings
        As :func:`read_history` returns it.
    path : Path
        The CSV, with the columns ``round, part, site, figure, value``. ``part`` is ``train`` or ``validation``;
        ``site`` is ``all`` for figures of the whole federation; an absent value is an empty field.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for record in history:
        writer.writerows((record["round"], *row) for row in _list_numbers(record))
    write_text_atomically(path, text.getvalue())


def _remove_torn_line(file: BinaryIO) -> None:
    if file.seek(0, os.SEEK_END) == 0:
        return
    file.seek(-1, os.SEEK_END)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def _parse_line(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise RunFolderError(
            f"{path}, line {number} is not JSON ({error}). The file was changed or damaged; remove this line and the "
            "ones after it to resume from the round before."
        ) from error
    if not isinstance(record, dict) or not isinstance(record.get("round"), int):
        raise RunFolderError(f"{path}, line {number} has no integer 'round'; it is no record of a run's history.")
    return record


def _list_numbers(record: Mapping[str, Any]) -> Iterator[tuple[str, str, str, Any]]:
    for key in ROUND_FIGURES:
        if key in record:
            yield "train", ALL_SITES, key, record[key]
    for entry in record.get("participation", ()):
        for key in SITE_FIGURES:
            if key in entry:
                yield "train", entry["site"], key, entry[key]
    validation = record.get("validation") or {}
    for key, value in (validation.get("pooled") or {}).items():
        yield "validation", ALL_SITES, key, value
    for site, figures in (validation.get("sites") or {}).items():
        for key, value in figures.items():
            yield "validation", site, key, value
