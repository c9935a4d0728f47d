"""Evaluation tables from the sites: asked for, checked, kept on disk."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Message

from fedmed.atomic_files import replace_folder, write_atomically
from fedmed.errors import FedmedError
from fedmed.metrics.classification import Figure, compute_figures
from fedmed.metrics.tables import EvaluationTables, combine_tables
from fedmed.wire import REPORT, WireError, pack_tables, read_tables, read_values, unpack_tables
from server.courier import Courier
from server.exchange import MALFORMATIONS, Answer, explain_malformation
from server.progress import Listener


@dataclass(frozen=True)
class Scores:
    """What sites answered to the request to score a model."""

    tables: dict[str, EvaluationTables]
    """By site, in the order of their names."""
    refused: dict[str, str]
    """Site to reason, for answers without usable tables."""
    missing: list[str]
    """Sites that did not answer."""


def collect_tables(
    courier: Courier,
    request: Mapping[str, Any],
    model_file: Path,
    model_sha256: str,
    sites: Sequence[str],
    *,
    num_images: Mapping[str, int],
    num_classes: int,
    deadline_s: float,
    listener: Listener,
) -> Scores:
    """Ask sites to score a model.

    Parameters
    ----------
    courier : Courier
        Way to the sites.
    request : mapping
        What to score.
    model_file : Path
        The model.
    model_sha256 : str
        Its hash; tables of another model are refused.
    sites : sequence of str
        Whom to ask.
    num_images : mapping of str to int
        Images that each site declared for this part; more cannot be in its tables.
    num_classes : int
        K.
    deadline_s : float
        Seconds to wait.
    listener : Listener
        Is told who answered and why tables were refused.
    """
    found: dict[str, EvaluationTables] = {}
    refused: dict[str, str] = {}

    def take(answer: Answer) -> None:
        problem = answer.reason
        if answer.message is not None:
            try:
                tables = _read(answer.message, answer.site, num_classes, model_sha256)
                if tables.num_images > num_images[answer.site]:
                    raise WireError("The tables count more images than the site declared.")
                found[answer.site] = tables
            except FedmedError as error:
                problem = str(error)
            except MALFORMATIONS as error:
                problem = explain_malformation(error)
        listener.on_answer(answer.site, problem)
        if problem:
            refused[answer.site] = problem
            listener.on_note(f"{answer.site} gave no evaluation: {problem}")

    missing = courier.ask("evaluate", request, model_file, model_sha256, sites, deadline_s=deadline_s, on_answer=take)
    for site in missing.late:
        listener.on_note(f"{site} gave no evaluation within {deadline_s:g} s.")
    for site in missing.absent:
        listener.on_note(f"{site} gave no evaluation: it is not connected.")
    return Scores(dict(sorted(found.items())), refused, missing.all)


def save_tables(folder: Path, tables: dict[str, EvaluationTables]) -> None:
    """Write tables, one file a site; the folder appears with all of them or not at all."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for site, of_site in tables.items():
        write_atomically(partial / f"{site}.safetensors", pack_tables(of_site))
    replace_folder(partial, folder)


def load_tables(folder: Path) -> dict[str, EvaluationTables]:
    """Read what :func:`save_tables` wrote."""
    return {path.stem: unpack_tables(path.read_bytes()) for path in sorted(folder.glob("*.safetensors"))}


def round_folder(root: Path, round_number: int) -> Path:
    """Return the folder of one round's validation tables."""
    return root / f"round_{round_number:05d}"


def prune_tables(root: Path, keep: set[int]) -> None:
    """Remove the validation tables of all rounds but some."""
    kept = {round_folder(root, number).name for number in keep}
    for folder in root.glob("round_*"):
        if folder.name not in kept:
            shutil.rmtree(folder)


def summarise(tables: dict[str, EvaluationTables]) -> dict[str, Any]:
    """Return the scalar figures of a round, pooled and by site, as the history keeps them."""
    if not tables:
        return {"pooled": {}, "sites": {}}
    pooled = compute_figures(combine_tables(tables.values()).pool())
    by_site = {site: _to_values(compute_figures(of_site)) for site, of_site in tables.items()}
    return {"pooled": _to_values(pooled), "sites": by_site}


def _to_values(figures: dict[str, Figure]) -> dict[str, float | None]:
    return {key: figure.value for key, figure in figures.items()}


def _read(message: Message, site: str, num_classes: int, model_sha256: str) -> EvaluationTables:
    tables = read_tables(message)
    if read_values(message, REPORT).get("model_sha256") != model_sha256:
        raise WireError("The tables are of another model than the one that was sent.")
    if not set(tables.groups) <= {site} or tables.counts.shape[-1] != num_classes:
        raise WireError("The tables are not of this site or have another number of classes.")
    return tables
