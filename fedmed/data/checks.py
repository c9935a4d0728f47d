"""Checks of a source's rows: what cannot be used is left out, counted and named, up to a limit."""

import csv
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from fedmed.data.sources.decoding import find_image_fault
from fedmed.data.sources.raw_table import ImageRow, RawTable
from fedmed.errors import DataError, suggest_nearest

SKIPPED_FILE = "skipped_rows.csv"
_NUM_THREADS = min(8, os.cpu_count() or 1)


BROKEN, NO_FILE, NO_LABEL, NO_CLASS, NO_SITE = "broken_row", "no_file", "no_label", "no_class", "no_site"
REPEATED, CONTRADICTORY, UNREADABLE = "repeated", "contradictory", "unreadable"
Fault = tuple[str, str]
"""One of the kinds above, and the reason in words."""


@dataclass(frozen=True)
class SkippedRow:
    """A row that was left out."""

    place: int
    item: str
    reason: str
    kind: str = ""
    """What of: ``broken_row``, ``no_file``, ``no_label`` and so on."""
    site: str = ""
    """As the source names it; empty where it does not."""


def check_rows(table: RawTable) -> tuple[list[ImageRow], list[SkippedRow]]:
    """Sort out the rows that cannot be used.

    Left out are rows that are broken, without file, label or site, with a label that is no class, whose file is missing
    or cannot be decoded, and rows that name a file again. Rows that name one file with different values are all left
    out, since nobody knows which is right.

    Parameters
    ----------
    table : RawTable
        All rows of a source.

    Returns
    -------
    kept, skipped : list of ImageRow, list of SkippedRow
        ``kept`` is sorted by item, so that nothing later depends on the order of the source's rows.

    Raises
    ------
    DataError
        If a path leaves the source's folder.
    """
    skipped: dict[int, SkippedRow] = {}
    kept: list[ImageRow] = []
    for row in table.rows:
        fault = _find_row_fault(row, table)
        if fault is None:
            kept.append(row)
        else:
            skipped[row.place] = _skip(row, fault)
    if table.root is not None:
        for check in (_find_repeated, _find_unreadable):
            faults = check(kept, table.root, table.where)
            skipped |= {row.place: _skip(row, faults[row.place]) for row in kept if row.place in faults}
            kept = [row for row in kept if row.place not in faults]
    return sorted(kept, key=lambda row: row.item), [skipped[place] for place in sorted(skipped)]


def refuse_too_many(table: RawTable, skipped: Sequence[SkippedRow], max_share: float, folder: Path) -> None:
    """Write the names of what was left out to ``folder`` and refuse the data if it is too much.

    Raises
    ------
    DataError
        If the share of skipped rows is above ``max_share`` or nothing is left.
    """
    path = folder / SKIPPED_FILE
    if not skipped:
        path.unlink(missing_ok=True)
        return
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["row", "item", "reason"])
        writer.writerows([row.place, row.item, row.reason] for row in skipped)
    share = len(skipped) / len(table.rows)
    if share > max_share:
        examples = "; ".join(f"row {row.place} '{row.item}': {row.reason}" for row in skipped[:3])
        raise DataError(
            f"{len(skipped)} of the {len(table.rows)} rows of {table.where} cannot be used ({share:.2%}); the limit is "
            f"{max_share:.2%} (data.max_bad_share). First: {examples}. All are listed in '{path}'. Correct them, or "
            "raise the limit."
        )


def choose_classes(table: RawTable, kept: Iterable[ImageRow], *, every_class: bool = True) -> tuple[str, ...]:
    """Return the classes in order: the listed ones, or the sorted labels.

    Parameters
    ----------
    table : RawTable
        The source.
    kept : iterable of ImageRow
        Its usable rows.
    every_class : bool
        Whether a listed class needs an image. One hospital of a federation may lack a class; all images together may
        not.

    Raises
    ------
    DataError
        If there are fewer than two, or a listed class has no image.
    """
    counts = Counter(row.label for row in kept)
    classes = table.classes if table.classes is not None else tuple(sorted(counts))
    if len(classes) < 2:
        raise DataError(
            f"In {table.where} there is only the class '{', '.join(classes)}'. Allowed: two or more. "
            "Check data.label_column."
        )
    empty = [name for name in classes if not counts[name]]
    if empty and every_class:
        raise DataError(
            f"In {table.where} there is no usable image of the class '{empty[0]}'. Images of each class: "
            f"{', '.join(f'{name} {counts[name]}' for name in classes)}. Add images, or take the class out of the list."
        )
    return classes


def _skip(row: ImageRow, fault: Fault) -> SkippedRow:
    kind, reason = fault
    return SkippedRow(row.place, row.item, reason, kind, row.site)


def _find_row_fault(row: ImageRow, table: RawTable) -> Fault | None:
    if row.fault is not None:
        return BROKEN, row.fault
    if not row.item:
        return NO_FILE, "no file name"
    if not row.label:
        return NO_LABEL, "no label"
    if table.classes is not None and row.label not in table.classes:
        return NO_CLASS, (
            f"label '{row.label}' is not one of the classes {', '.join(table.classes)}."
            f"{suggest_nearest(row.label, table.classes)}"
        )
    return (NO_SITE, "no site") if table.has_sites and not row.site else None


def _find_repeated(rows: Sequence[ImageRow], root: Path, where: str) -> dict[int, Fault]:
    by_file: dict[str, list[ImageRow]] = defaultdict(list)
    for row in rows:
        by_file[_resolve_inside(row, root, where)].append(row)
    faults: dict[int, Fault] = {}
    for same in by_file.values():
        if len({(row.label, row.site, row.group, row.attributes) for row in same}) > 1:
            places = ", ".join(str(row.place) for row in same)
            fault = CONTRADICTORY, f"rows {places} name this file with different values"
            faults |= {row.place: fault for row in same}
        else:
            fault = REPEATED, f"the file is already named in row {same[0].place}"
            faults |= {row.place: fault for row in same[1:]}
    return faults


def _find_unreadable(rows: Sequence[ImageRow], root: Path, where: str) -> dict[int, Fault]:
    with ThreadPoolExecutor(_NUM_THREADS) as pool:  # decoding releases the interpreter's lock
        faults = pool.map(lambda row: find_image_fault(root / row.item), rows, chunksize=64)
        found = zip(rows, faults, strict=True)
        return {row.place: (UNREADABLE, fault) for row, fault in found if fault is not None}


def _resolve_inside(row: ImageRow, root: Path, where: str) -> str:
    """Return the file's true path, which must lie in the folder: a table must not reach other files of the machine."""
    problem = None
    if PurePosixPath(row.item).is_absolute() or PureWindowsPath(row.item).drive:
        problem = "is absolute"
    elif "\0" in row.item:
        problem = "holds a NUL character"
    else:
        true_path = os.path.realpath(root / row.item)
        if os.path.commonpath([root, true_path]) == str(root):
            return true_path
        problem = f"leaves that folder (it leads to '{true_path}')"
    raise DataError(
        f"ImageRow {row.place} of {where}: the path '{row.item}' {problem}. Allowed: paths relative to the folder "
        f"'{root}' (data.root) and inside it, symbolic links included. Move or copy the images there."
    )
