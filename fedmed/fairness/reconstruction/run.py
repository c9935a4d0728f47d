"""The reconstruction test, which asks whether each hidden row keeps its values against all that a run has told.

What was told is read from the run's folder as a reader does who has all of it: each site's tables of all rounds that
are kept, of the gate and of the test, and the pooled counts of every round in the history. The report and the model
card add nothing: ``report.json`` is computed from these tables and records (a test holds its sources to that), and the
card from ``report.json``. Sites' own accuracies of a round whose tables are not kept are sums over whole rows of the
site: so many right answers in all fit any groups.
"""

import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from fedmed.config import SITE_ATTRIBUTE
from fedmed.errors import RunFolderError
from fedmed.fairness.reconstruction.exposure import Exposed, count_hidden, find_exposed, list_questions
from fedmed.fairness.reconstruction.read_tables import read_told
from fedmed.fairness.reconstruction.statement import Answers, Row, ToldPart, combine_told
from fedmed.fairness.reconstruction.structure import add_others
from fedmed.metrics.packing import unpack_site_tables
from fedmed.storage.history import RoundRecord, read_history
from fedmed.storage.run_folder import RunFolder

POOLED = "(all sites together)"
VALIDATION, TEST = "validation", "test"


@dataclass(frozen=True)
class Finding:
    """What the test says of one part of one site."""

    site: str
    part: str
    unit: str
    """What a row's numbers count."""
    hidden: int
    """Hidden rows."""
    exposed: tuple[Exposed, ...]
    """Those that give too much away."""
    linked: tuple[tuple[Row, Row], ...]
    """Rows that are the same images, as equal figures say."""


def read_told_parts(run: RunFolder) -> dict[tuple[str, str], list[ToldPart]]:
    """Return all that a run has told, by site and part; several where its images have changed.

    Raises
    ------
    RunFolderError
        If a file cannot be read.
    """
    found: dict[tuple[str, str], list[ToldPart]] = {}
    folders = [(VALIDATION, path) for path in sorted(run.tables.glob("round_*"))]
    folders += [(VALIDATION, run.compression / "gate"), (TEST, run.tables / "test")]
    for part, folder in folders:
        for file in sorted(folder.glob("*.safetensors")):
            try:
                told = read_told(unpack_site_tables(file.read_bytes()), f"{folder.name}/")
            except (OSError, ValueError) as error:
                raise RunFolderError(
                    f"'{file}' cannot be read: {error}. Nothing can be said of the run without it; restore it from a "
                    "backup."
                ) from None
            found.setdefault((file.stem, part), []).append(told)
    sites = {site for site, _ in found}
    pooled = list(_read_history(run))
    if pooled:
        found.setdefault((sites.pop(), VALIDATION) if len(sites) == 1 else (POOLED, VALIDATION), []).extend(pooled)
    return {key: combine_told(parts) for key, parts in found.items()}


def _read_history(run: RunFolder) -> Iterator[ToldPart]:
    for record in read_history(run.history_file):
        if any(record.validation.counts.values()):
            yield _read_counts(record)


def _read_counts(record: RoundRecord) -> ToldPart:
    counts, hidden = record.validation.counts, record.validation.hidden or {}
    images, answers, num_classes = {}, {}, 1
    for attribute, by_group in counts.items():
        for group, numbers in by_group.items():
            num_classes = max(num_classes, len(numbers["n"]))
            for label, (n, right) in enumerate(zip(numbers["n"], numbers["right"], strict=True)):
                if n:
                    row = Row(attribute, group, label)
                    images[row] = n
                    answers[row] = (*(right if c == label else 0 for c in range(len(numbers["n"]))), n - right)
    groups = {name: tuple(sorted({*by_group, *hidden.get(name, ())})) for name, by_group in counts.items()}
    return ToldPart(groups, num_classes, images, models={f"history {record.round}": Answers(answers)})


def check_run(path: Path, k_row: int, seconds: float) -> list[Finding]:
    """Look for hidden rows that do not keep all values 0 to ``k_row`` - 1 and have not ``k_row`` for certain.

    Parameters
    ----------
    path : Path
        Folder of the run.
    k_row : int
        The threshold.
    seconds : float
        Time for all of it; what is not proven by then counts as exposed.

    Raises
    ------
    FedmedError
        If the run cannot be read, or has told nothing.
    """
    parts = read_told_parts(RunFolder.open(path))
    if not parts:
        raise RunFolderError(
            f"'{path}' holds no tables of any site and no counts in its history, so there is nothing to test. Give the "
            "folder of a run in which sites were asked for tables."
        )
    tasks = [(site, part, told) for (site, part), of_part in sorted(parts.items()) for told in of_part]
    deadline = time.monotonic() + seconds  # of the same clock in all processes
    check = partial(_check, k_row=k_row, deadline=deadline)
    workers = min(len(tasks), _count_cores())
    if workers < 2:
        return [check(*task) for task in tasks]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(pool.map(check, *zip(*tasks, strict=True)))


def _count_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check(site: str, part: str, told: ToldPart, k_row: int, deadline: float) -> Finding:
    exposed: list[Exposed] = []
    as_one = add_others(_as_one_site(told))
    if SITE_ATTRIBUTE in told.groups:
        for question in list_questions(as_one):
            exposed += find_exposed(as_one, question, k_row, deadline)
    if site == POOLED:
        # Sums over sites that hold back different rows do not add up; then nothing follows from subtracting them.
        exposed = [one for one in exposed if one.is_proven]
    unit = "patients" if told.patients else "images"
    return Finding(site, part, unit, count_hidden(as_one), tuple(exposed), tuple(sorted(told.same)))


def _as_one_site(told: ToldPart) -> ToldPart:
    """Return pooled counts with one row for all sites in place of one each."""
    sites = told.groups.get(SITE_ATTRIBUTE, ())
    if len(sites) < 2:
        return told

    def add_up(rows: Mapping[Row, tuple[int, ...]]) -> dict[Row, tuple[int, ...]]:
        found: dict[Row, tuple[int, ...]] = {}
        for row, numbers in rows.items():
            key = Row(SITE_ATTRIBUTE, POOLED, row.label) if row.attribute == SITE_ATTRIBUTE else row
            found[key] = tuple(map(sum, zip(found.get(key, (0,) * len(numbers)), numbers, strict=True)))
        return found

    return ToldPart(
        groups={**told.groups, SITE_ATTRIBUTE: (POOLED,)},
        num_classes=told.num_classes,
        images={row: n for row, (n,) in add_up({row: (n,) for row, n in told.images.items()}).items()},
        models={name: Answers(add_up(model.rows)) for name, model in told.models.items()},
    )
