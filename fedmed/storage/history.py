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

from pydantic import BaseModel, ConfigDict, JsonValue, StrictInt, ValidationError, model_validator

from fedmed.errors import RunFolderError
from fedmed.storage.atomic_files import write_atomically, write_text_atomically

CSV_COLUMNS = ("round", "part", "site", "figure", "value")
ALL_SITES = "all"
ROUND_FIGURES = ("loss", "learning_rate", "coverage_images", "wall_s")
SITE_FIGURES = ("images", "share", "train_s", "update_mib", "update_norm")

Number = int | float | None
Figures = dict[str, Number]
"""Key of a figure to its value, None where it is not defined."""


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


class Stored(BaseModel):
    """A part of what is stored. It is read generously, since versions before and after this one write it as well.

    What is not there has its default, also where null stands in its place; what is not known here stays, and is written
    again.
    """

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _leave_out_null(cls, values: JsonValue) -> JsonValue:
        if not isinstance(values, dict):
            return values
        needed = {name for name, field in cls.model_fields.items() if field.default is not None}
        return {key: value for key, value in values.items() if value is not None or key not in needed}

    def to_json(self) -> dict[str, JsonValue]:
        """Return what was set, as JSON; numbers that are not finite as null."""
        plain: dict[str, JsonValue] = to_plain_json(self.model_dump(exclude_unset=True))
        return plain


class Participation(Stored):
    """One site's part in a round."""

    site: str
    status: str
    """``accepted``, or why not in a word."""
    reason: str | None = None
    images: int | None = None
    share: float | None = None
    """Of all accepted training images."""
    limit: str | None = None
    """What was cut of the part of an accepted update, as a sentence; None where nothing was."""
    train_s: float | None = None
    update_mib: float | None = None
    update_bytes: int | None = None
    update_norm: float | None = None


class Validation(Stored):
    """Figures of the validation images."""

    pooled: Figures = {}
    """Of all images."""
    sites: dict[str, Figures] = {}
    groups: dict[str, dict[str, Figures]] = {}
    """Attribute -> group -> figures and number of images ``n``, as far as they may be shown."""
    hidden: dict[str, list[str]] | None = None
    """Attribute -> groups that may not be shown; None where nobody has looked for them."""
    gaps: dict[str, Figures] = {}
    """Attribute -> figures that compare its groups."""
    counts: dict[str, dict[str, dict[str, list[int]]]] = {}
    """Attribute -> group -> images (``n``) and right answers (``right``) by class, for alarms.

    Where patients have several images, also as how many images these count (``worth``).
    """


class Alarm(Stored):
    """What a person should know of a group: see :func:`fedmed.fairness.chance.alarms.find_alarms`."""

    kind: str
    attribute: str
    group: str
    figure: str = ""
    value: Number = None
    reference: Number = None
    reference_round: int | None = None
    p_value: float | None = None
    text: str = ""


class SiteDistillation(Stored):
    """What a site has told of its distillation."""

    ekd: float | None = None
    bands: list[float | None] | None = None
    """Gains of its prompt."""


class RoundDistillation(Stored):
    """The distillation of a round: see :func:`server.rounds.fopro_record.describe_round`."""

    teacher: str = ""
    ekd: float | None = None
    bands: list[dict[str, float | None]] | None = None
    sites: dict[str, SiteDistillation] = {}


class RoundRecord(Stored):
    """What happened in a round: a line of ``history.jsonl``."""

    round: StrictInt
    attempt: int = 1
    finished: str = ""
    """When, in UTC."""
    wall_s: float = 0.0
    loss: float | None = None
    """Mean training loss of the accepted updates, weighted by images."""
    learning_rate: float | None = None
    model_sha256: str = ""
    bytes_to_sites: int = 0
    bytes_from_sites: int = 0
    coverage_images: float = 1.0
    """Share of all joined sites' training images behind the accepted updates."""
    weights: dict[str, float] = {}
    """By site; the rest to 1 is that of the global model."""
    participation: list[Participation] = []
    validation: Validation = Validation()
    fopro: RoundDistillation | None = None
    alarms: list[Alarm] = []


def append_record(path: Path, record: RoundRecord) -> None:
    """Append one round to the history and wait until it is on the disk.

    Parameters
    ----------
    path : Path
        ``history.jsonl``; created if absent. An unfinished last line is removed first.
    record : RoundRecord
        What happened in the round. Numbers that are not finite are stored as null.
    """
    line = json.dumps(record.to_json(), allow_nan=False) + "\n"
    with path.open("a+b") as file:
        _remove_torn_line(file)
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def read_history(path: Path) -> list[RoundRecord]:
    """Return the rounds of a history in file order; an absent file is an empty history.

    Parameters
    ----------
    path : Path
        ``history.jsonl``. A last line without a newline was torn by a crash and is left out.

    Raises
    ------
    RunFolderError
        If a finished line is not a JSON object with an integer ``round``, or something in it has another form.
    """
    return [record for _, record in _read_lines(path)]


def truncate_history(path: Path, last_round: int) -> None:
    """Remove all rounds after ``last_round``, atomically; a run that resumes there writes them anew.

    Parameters
    ----------
    path : Path
        ``history.jsonl``; nothing happens if it is absent. The lines that stay are not changed.
    last_round : int
        The last round to keep.

    Raises
    ------
    RunFolderError
        As :func:`read_history`.
    """
    if path.exists():
        kept = [line + b"\n" for line, record in _read_lines(path) if record.round <= last_round]
        write_atomically(path, b"".join(kept))


def write_metrics_csv(history: Sequence[RoundRecord], path: Path) -> None:
    """Write every number of a history in long form, atomically.

    Parameters
    ----------
    history : sequence of RoundRecord
        As :func:`read_history` returns it.
    path : Path
        The CSV, with the columns ``round, part, site, figure, value``. ``part`` is ``train`` or ``validation``;
        ``site`` is ``all`` for figures of the whole federation; an absent value is an empty field.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for record in history:
        writer.writerows((record.round, *row) for row in _list_numbers(record))
    write_text_atomically(path, text.getvalue())


def _remove_torn_line(file: BinaryIO) -> None:
    if file.seek(0, os.SEEK_END) == 0:
        return
    file.seek(-1, os.SEEK_END)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def _read_lines(path: Path) -> list[tuple[bytes, RoundRecord]]:
    if not path.exists():
        return []
    finished = path.read_bytes().split(b"\n")[:-1]
    return [(line, _parse_line(path, number, line)) for number, line in enumerate(finished, start=1)]


def _parse_line(path: Path, number: int, line: bytes) -> RoundRecord:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise RunFolderError(
            f"{path}, line {number} is not JSON ({error}). The file was changed or damaged; remove this line and the "
            "ones after it to resume from the round before."
        ) from error
    if not isinstance(record, dict) or not isinstance(record.get("round"), int):
        raise RunFolderError(f"{path}, line {number} has no integer 'round'; it is no record of a run's history.")
    try:
        return RoundRecord.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise RunFolderError(
            f"{path}, line {number} has another form than this version of fedmed reads ('{place}': {first['msg']}). "
            "Install the version that wrote it; if the file was changed, remove this line and the ones after it to "
            "resume from the round before."
        ) from error


def _list_numbers(record: RoundRecord) -> Iterator[tuple[str, str, str, Number]]:
    """Yield what was set; another version of fedmed may have written less."""
    for key in ROUND_FIGURES:
        if key in record.model_fields_set:
            yield "train", ALL_SITES, key, getattr(record, key)
    for entry in record.participation:
        for key in SITE_FIGURES:
            if key in entry.model_fields_set:
                yield "train", entry.site, key, getattr(entry, key)
    for key, value in record.validation.pooled.items():
        yield "validation", ALL_SITES, key, value
    for site, figures in record.validation.sites.items():
        for key, value in figures.items():
            yield "validation", site, key, value
