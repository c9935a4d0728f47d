"""Watches a folder for ``predict.py``: each new image is answered once, and what changes over time is written down.

Lies beside ``predict.py`` in every exported model, and like it needs nothing of the library. Beside the table
``NAME.csv`` there is ``NAME.drift.csv`` with a line for every :data:`WINDOW` images that could be read.
"""

import csv
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

WINDOW = 50
"""Images of a line of the drift log."""
MOST_OUTSIDE = 0.2
"""Share of a window that may lie outside the range of training."""
STATISTICS = ("width", "height", "mean", "std")
COLUMNS = ("time", "images", "outside", "probability", "alerts", *STATISTICS)


@dataclass(frozen=True)
class _Watched:
    """What is watched, and how it is answered: the parameters of :func:`watch`."""

    folder: Path
    table: Path
    columns: Sequence[str]
    sha256: str
    find: Callable[[Iterable[str]], Iterable[Path]]
    predict: Callable[[Sequence[Path]], Iterable[list[str]]]
    measure: Callable[[Path], Mapping[str, float]]
    name: Callable[[str], str]
    expected: Mapping[str, object]


def watch(  # noqa: PLR0917
    folder: Path,
    table: Path,
    columns: Sequence[str],
    sha256: str,
    find: Callable[[Iterable[str]], Iterable[Path]],
    predict: Callable[[Sequence[Path]], Iterable[list[str]]],
    measure: Callable[[Path], Mapping[str, float]],
    name: Callable[[str], str],
    every_s: float,
    expected: Mapping[str, object],
    *,
    once: bool = False,
) -> None:
    """Answer what is in the folder, and then what is added, until the program is stopped.

    A file that is still being written is taken when it has not changed from one look to the next.

    Parameters
    ----------
    folder : Path
        What is watched.
    table : Path
        Where the answers go; one that is there is continued.
    columns : sequence of str
        Its columns.
    sha256 : str
        Of the model.
    find : callable
        Gives the images in folders.
    predict : callable
        Gives a row for each image.
    measure : callable
        Gives size, mean and standard deviation of an image.
    name : callable
        Gives a file's name as it stands in the table.
    every_s : float
        Seconds between two looks.
    expected : mapping
        Ranges of the images that the model was trained on.
    once : bool
        Whether to end after what is there now.

    Raises
    ------
    OSError
        If the table cannot be read or written.
    ValueError
        If the table that is there is of another model.
    """
    watched = _Watched(folder, table, columns, sha256, find, predict, measure, name, expected)
    done, drift = _read_done(watched), _Drift(watched)
    before: dict[Path, tuple[int, int]] = {}
    while True:
        now = {path: _stamp(path) for path in watched.find([str(watched.folder)])}
        new = [
            path
            for path, stamp in now.items()
            if _name(watched, path) not in done and (once or before.get(path) == stamp)
        ]
        for path, (_, *cells) in zip(new, watched.predict(new), strict=True):
            row = [_name(watched, path), *cells]
            _append(watched.table, watched.columns, row)
            done.add(row[0])
            drift.note(dict(zip(watched.columns, row, strict=True)), path)
        if once:
            return
        before = now
        time.sleep(every_s)


def _name(watched: _Watched, path: Path) -> str:
    """Return a file's name in the table; of one that cannot stand there as it is, with a number of its own."""
    shown = watched.name(str(path))
    return shown if shown == str(path) else f"{shown} ({hashlib.sha256(os.fsencode(path)).hexdigest()[:8]})"


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:  # it was taken away again
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _read_done(watched: _Watched) -> set[str]:
    """Return the names that the table holds already, without a last line that was cut off."""
    if not watched.table.exists():
        return set()
    data = watched.table.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    try:
        rows = list(csv.reader(whole.decode("utf-8", "replace").splitlines()))
    except csv.Error as error:
        raise ValueError(f"'{watched.table}' is no table of answers ({error}). Name another file with --csv.") from None
    if rows and rows[0] != list(watched.columns):
        raise ValueError(f"'{watched.table}' has other columns than this model's table. Name another file with --csv.")
    place = watched.columns.index("model")
    if any(len(row) != len(watched.columns) or row[place] != watched.sha256 for row in rows[1:]):
        raise ValueError(f"'{watched.table}' holds answers of another model. Name another file with --csv.")
    if whole != data:
        watched.table.write_bytes(whole)
    return {row[0] for row in rows[1:]}


def _append(path: Path, columns: Sequence[str], row: Sequence[object]) -> None:
    """Add a line, on the disk when this returns; with the heads of the columns before the first."""
    is_new = not path.exists() or not path.stat().st_size
    with path.open("a", encoding="utf-8", errors="replace", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([columns, row] if is_new else [row])
        stream.flush()
        os.fsync(stream.fileno())


class _Drift:
    """The means of the last images."""

    def __init__(self, watched: _Watched) -> None:
        self._watched = watched
        self._path = watched.table.with_suffix(".drift.csv")
        self._seen: list[dict[str, float]] = []
        self._is_outside = False

    def note(self, row: Mapping[str, str], path: Path) -> None:
        """Take an answer in, and write a line after each window."""
        if not row["probability"]:
            return
        seen = {"outside": float(row["note"] != ""), "probability": float(row["probability"])}
        if "alert" in row:
            seen["alerts"] = float(row["alert"] == "yes")
        self._seen.append(seen | {name: float(value) for name, value in self._watched.measure(path).items()})
        if len(self._seen) == WINDOW:
            means = {name: sum(one[name] for one in self._seen) / WINDOW for name in self._seen[0]}
            self._seen = []
            time_now = datetime.now(UTC).isoformat(timespec="seconds")
            cells = [f"{means[name]:.4g}" if name in means else "" for name in COLUMNS[2:]]
            _append(self._path, COLUMNS, [time_now, WINDOW, *cells])
            self._warn(means)

    def _warn(self, means: Mapping[str, float]) -> None:
        """Say once that images have left the range of training, and again only after they had come back."""
        outside = [name for name in STATISTICS if self._lies_outside(name, means)]
        is_outside = bool(outside) or means["outside"] > MOST_OUTSIDE
        if is_outside and not self._is_outside:
            what = f"their mean {', '.join(outside)} is" if outside else f"{means['outside']:.0%} of them are"
            print(
                f"The last {WINDOW} images have left the range of those that the model was trained on: {what} outside. "
                f"See {self._path}; do not rely on the answers before somebody has looked why.",
                file=sys.stderr,
                flush=True,
            )
        self._is_outside = is_outside

    def _lies_outside(self, name: str, means: Mapping[str, float]) -> bool:
        bound = self._watched.expected.get(name)
        return isinstance(bound, list) and len(bound) == 2 and name in means and not bound[0] <= means[name] <= bound[1]
