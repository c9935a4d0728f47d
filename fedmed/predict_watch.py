"""Watches a folder for ``predict.py``: each new image is answered once, and what changes over time is written down.

Lies beside ``predict.py`` in every exported model, and like it needs nothing of the library. Beside the table
``NAME.csv`` there is ``NAME.drift.csv`` with a line for every :data:`WINDOW` images that could be read: means of the
images, which are compared with those of training, the mean probability of the answers, for which a model tells nothing
to compare with, and the share of alerts beside the one that its operating point lets expect.
"""

import csv
import math
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
ALERT_COLUMNS = ("expected_alerts", "lowest_alerts", "highest_alerts")
"""Behind the others, where the operating point tells what to expect; a log that was begun without them goes on so."""
TAIL = 0.001
"""Chance on each side that the alerts of a window lie outside, if nothing has changed."""
_DEVIATIONS = 1.96


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
    name: Callable[[Path], str]
    expected: Mapping[str, object]
    point: Mapping[str, object]


def watch(  # noqa: PLR0917
    folder: Path,
    table: Path,
    columns: Sequence[str],
    sha256: str,
    find: Callable[[Iterable[str]], Iterable[Path]],
    predict: Callable[[Sequence[Path]], Iterable[list[str]]],
    measure: Callable[[Path], Mapping[str, float]],
    name: Callable[[Path], str],
    every_s: float,
    expected: Mapping[str, object],
    point: Mapping[str, object],
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
        Gives a file's name as it stands in the table, no two files the same.
    every_s : float
        Seconds between two looks.
    expected : mapping
        Ranges of the images that the model was trained on.
    point : mapping
        The operating point as the manifest tells it; empty where there is none.
    once : bool
        Whether to end after what is there now.

    Raises
    ------
    OSError
        If the table cannot be read or written.
    ValueError
        If the table that is there is of another model.
    """
    watched = _Watched(folder, table, columns, sha256, find, predict, measure, name, expected, point)
    done, drift = _read_done(watched), _Drift(watched)
    before: dict[Path, tuple[int, int]] = {}
    while True:
        now = {path: _stamp(path) for path in watched.find([str(watched.folder)])}
        new = [
            path
            for path, stamp in now.items()
            if watched.name(path) not in done and (once or before.get(path) == stamp)
        ]
        for path, (_, *cells) in zip(new, watched.predict(new), strict=True):
            row = [watched.name(path), *cells]
            _append(watched.table, watched.columns, row)
            done.add(row[0])
            drift.note(dict(zip(watched.columns, row, strict=True)), path)
        if once:
            return
        before = now
        time.sleep(every_s)


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


@dataclass(frozen=True)
class AlertRange:
    """The share of alerts that is to be expected, and the numbers of alerts of a window that are no surprise."""

    share: float
    low: int
    high: int
    where: str
    """Where it is from, in words."""


def expect_alerts(point: Mapping[str, object]) -> AlertRange | None:
    """Return what share of images raises an alert, None where the operating point does not tell.

    Parameters
    ----------
    point : mapping
        Of the manifest, which anybody may have written.

    Notes
    -----
    ``share = p sensitivity + (1 - p) (1 - specificity)`` at the stated prevalence p or, without one, at that of the
    validation images. The range is the binomial one with :data:`TAIL` on each side, its ends at the ends of Wilson's
    95 % intervals of sensitivity and specificity, which were found on few images themselves.
    """
    told = point.get("validation")
    if not isinstance(told, Mapping):
        return None
    n_with, n_without = (_read_number(told.get(name), 1, 1e12) for name in ("n_with", "n_without"))
    sensitivity, specificity = (_read_number(told.get(name), 0, 1) for name in ("sensitivity", "specificity"))
    if n_with is None or n_without is None or sensitivity is None or specificity is None:
        return None
    stated = _read_number(point.get("prevalence"), 0, 1)
    p = n_with / (n_with + n_without) if stated is None else stated
    own, other = _find_ends(sensitivity, n_with), _find_ends(1 - specificity, n_without)
    low, high = (p * own[end] + (1 - p) * other[end] for end in (0, 1))
    where = "on validation images" if stated is None else f"at the stated prevalence of {p:g}"
    share = p * sensitivity + (1 - p) * (1 - specificity)
    return AlertRange(share, _find_quantile(low, TAIL), _find_quantile(high, 1 - TAIL), where)


def _read_number(value: object, lowest: float, highest: float) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not lowest <= value <= highest:
        return None
    return float(value)


def _find_ends(share: float, number: float) -> tuple[float, float]:
    """Return the ends of Wilson's interval of a share of so many images."""
    square = _DEVIATIONS**2
    middle = (share + square / (2 * number)) / (1 + square / number)
    half = _DEVIATIONS * math.sqrt(share * (1 - share) / number + square / (4 * number**2)) / (1 + square / number)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _find_quantile(share: float, level: float) -> int:
    """Return the smallest number of alerts in a window that no more than so many are with a chance of ``level``."""
    total = 0.0
    for number in range(WINDOW + 1):
        total += math.comb(WINDOW, number) * share**number * (1 - share) ** (WINDOW - number)
        if total >= level:
            return number
    return WINDOW


def _is_begun_with(path: Path, columns: Sequence[str]) -> bool:
    """Return whether a table is there and has exactly these columns."""
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            return stream.readline().rstrip("\r\n") == ",".join(columns)
    except OSError:
        return False


class _Drift:
    """The means of the last images."""

    def __init__(self, watched: _Watched) -> None:
        self._watched = watched
        self._path = watched.table.with_suffix(".drift.csv")
        self._seen: list[dict[str, float]] = []
        self._is_outside = self._is_surprising = False
        self._alerts = expect_alerts(watched.point)

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
            self._write(means)
            self._warn(means)
            self._warn_alerts(means)

    def _write(self, means: Mapping[str, float]) -> None:
        """Add a line to the log; to one of an earlier version with the columns that it has."""
        told = {name: f"{value:.4g}" for name, value in means.items()}
        told |= {"time": datetime.now(UTC).isoformat(timespec="seconds"), "images": str(WINDOW)}
        columns: Sequence[str] = COLUMNS
        if self._alerts is not None and "alerts" in means:
            expected = (self._alerts.share, self._alerts.low / WINDOW, self._alerts.high / WINDOW)
            told |= {name: f"{value:.4g}" for name, value in zip(ALERT_COLUMNS, expected, strict=True)}
            columns = COLUMNS if _is_begun_with(self._path, COLUMNS) else (*COLUMNS, *ALERT_COLUMNS)
        _append(self._path, columns, [told.get(name, "") for name in columns])

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

    def _warn_alerts(self, means: Mapping[str, float]) -> None:
        """Say once that alerts are more or fewer than chance explains, and again only after they had come back."""
        known = self._alerts
        if known is None or "alerts" not in means:
            return
        number = round(means["alerts"] * WINDOW)
        is_surprising = not known.low <= number <= known.high
        if is_surprising and not self._is_surprising:
            print(
                f"Of the last {WINDOW} images {number} raised an alert; {known.low} to {known.high} are to be expected "
                f"({known.share:.0%} of all {known.where}). Other patients, another device, or a model that no longer "
                f"fits: see {self._path}, and have somebody look why.",
                file=sys.stderr,
                flush=True,
            )
        self._is_surprising = is_surprising

    def _lies_outside(self, name: str, means: Mapping[str, float]) -> bool:
        bound = self._watched.expected.get(name)
        return isinstance(bound, list) and len(bound) == 2 and name in means and not bound[0] <= means[name] <= bound[1]
