"""Evaluation tables from the sites: asked for, checked, kept on disk."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flwr.app import Message

from fedmed.config import FederationConfig
from fedmed.errors import FederationError, WireError
from fedmed.fairness.disclosure.whole_answer import Asked, find_contradiction, find_most_bytes
from fedmed.metrics.packing import pack_site_tables
from fedmed.metrics.site_tables import SITE_ATTRIBUTE, SiteTables
from fedmed.protocol.kinds import KINDS
from fedmed.protocol.messages import read_report, read_tables, unpack_tables
from fedmed.protocol.reports import FigureReport, ScoreReport
from fedmed.protocol.requests import Request
from fedmed.storage.atomic_files import atomic_folder, write_atomically
from fedmed.storage.run_folder import RunFolder
from server.rounds.courier import Courier, SecondModel
from server.rounds.exchange import Answer, Unanswered, open_answer
from server.rounds.progress import Listener

TOO_FEW = "it has too few validation images in classes with enough patients to tell a figure of them"


@dataclass(frozen=True)
class Scores:
    """What sites answered to the request to score a model."""

    tables: dict[str, SiteTables]
    """By site, in the order of their names."""
    refused: dict[str, str]
    """Site to reason, for answers without usable tables."""
    missing: list[str]
    """Sites that did not answer."""
    mismatches: dict[str, float] = field(default_factory=dict)
    """Site to how far its images are from the model's BatchNorm statistics, where it was asked and may tell."""
    figures: dict[str, FigureReport] = field(default_factory=dict)
    """By site, in the order of their names, in place of tables where the plan has ``choice: figure``."""

    @property
    def few(self) -> set[str]:
        """Sites that have too few images to tell figures."""
        return {site for site, reason in self.refused.items() if reason == TOO_FEW}


def collect_tables(
    courier: Courier,
    request: Request,
    model_file: Path,
    model_sha256: str,
    sites: Sequence[str],
    *,
    num_images: Mapping[str, int],
    num_classes: int,
    deadline_s: float,
    listener: Listener,
    other: SecondModel | None = None,
) -> Scores:
    """Ask sites to score a model.

    Parameters
    ----------
    courier : Courier
        Way to the sites.
    request : Request
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
    other : SecondModel, optional
        To be scored as well, and compared with the first.
    """
    found: dict[str, SiteTables] = {}
    mismatches: dict[str, float] = {}
    refused: dict[str, str] = {}

    def take(answer: Answer) -> None:
        most_images = num_images[answer.site]

        def read(message: Message) -> SiteTables:
            told = read_report(message, ScoreReport)
            tables = read_tables(message, find_most_bytes(num_classes))
            if told.model_sha256 != model_sha256:
                raise WireError("The tables are of another model than the one that was sent.")
            problem = find_contradiction(tables, Asked(answer.site, num_classes, most_images, request.plan.fairness))
            if problem is not None:
                raise WireError(problem)
            if other is not None and SITE_ATTRIBUTE not in tables.paired.get(other.name, {}):
                raise WireError(f"The tables hold no comparison with the model '{other.name}'.")
            if told.mismatch is not None:
                mismatches[answer.site] = told.mismatch
            return tables

        tables, problem = open_answer(answer, read)
        listener.on_answer(answer.site, problem)
        if tables is not None:
            found[answer.site] = tables
        if problem is not None:
            refused[answer.site] = problem
            listener.on_note(f"{answer.site} gave no evaluation: {problem}")

    missing = courier.ask(
        KINDS["evaluate"].flower,
        request,
        model_file,
        model_sha256,
        sites,
        deadline_s=deadline_s,
        on_answer=take,
        other=other,
    )
    _tell_missing(missing, deadline_s, listener)
    return Scores(dict(sorted(found.items())), refused, missing.all, dict(sorted(mismatches.items())))


def collect_figures(
    courier: Courier,
    request: Request,
    model_file: Path,
    model_sha256: str,
    sites: Sequence[str],
    *,
    num_images: Mapping[str, int],
    deadline_s: float,
    listener: Listener,
) -> Scores:
    """Ask sites for two figures of a model on their validation images.

    Parameters
    ----------
    courier, request, model_file, model_sha256, sites, num_images, deadline_s, listener
        As for :func:`collect_tables`.
    """
    found: dict[str, FigureReport] = {}
    refused: dict[str, str] = {}

    def take(answer: Answer) -> None:
        def read(message: Message) -> FigureReport:
            told = read_report(message, FigureReport)
            if told.model_sha256 != model_sha256:
                raise WireError("The figures are of another model than the one that was sent.")
            if told.n > num_images[answer.site]:
                raise WireError("The figures are of more images than the site declared.")
            return told

        told, problem = open_answer(answer, read)
        listener.on_answer(answer.site, problem)
        if problem is not None:
            listener.on_note(f"{answer.site} gave no evaluation: {problem}")
        if told is not None and told.n:
            found[answer.site] = told
        else:
            refused[answer.site] = problem or TOO_FEW

    missing = courier.ask(
        KINDS["figure"].flower, request, model_file, model_sha256, sites, deadline_s=deadline_s, on_answer=take
    )
    _tell_missing(missing, deadline_s, listener)
    return Scores({}, refused, missing.all, figures=dict(sorted(found.items())))


def _tell_missing(missing: Unanswered, deadline_s: float, listener: Listener) -> None:
    for site in missing.late:
        listener.on_note(f"{site} gave no evaluation within {deadline_s:g} s.")
    for site in missing.absent:
        listener.on_note(f"{site} gave no evaluation: it is not connected.")


def save_tables(folder: Path, tables: dict[str, SiteTables]) -> None:
    """Write tables, one file a site; the folder appears with all of them or not at all."""
    with atomic_folder(folder) as partial:
        for site, of_site in tables.items():
            write_atomically(partial / f"{site}.safetensors", pack_site_tables(of_site))


def load_tables(folder: Path) -> dict[str, SiteTables]:
    """Read what :func:`save_tables` wrote."""
    return {path.stem: unpack_tables(path.read_bytes()) for path in sorted(folder.glob("*.safetensors"))}


def load_before(config: FederationConfig, run: RunFolder, round_number: int) -> dict[str, SiteTables]:
    """Return the validation tables of the model with which a round begins.

    Raises
    ------
    FederationError
        If there are none in the whole run.
    """
    if config.choice == "figure":
        kind = config.aggregation.fair.kind if config.aggregation.fair else "images"
        raise FederationError(
            f"The rule '{kind}' asks for tables of validation images, and choice is 'figure', with which there are "
            "none. Set choice: tables, which every site has to allow (policy.validation_tables: true in its "
            "client.yaml), or choose another aggregation.fair."
        )
    return load_tables(round_folder(run.tables, round_number - 1))


def round_folder(root: Path, round_number: int) -> Path:
    """Return the folder of one round's validation tables."""
    return root / f"round_{round_number:05d}"


def prune_tables(root: Path, keep: set[int]) -> None:
    """Remove the validation tables of all rounds but some."""
    kept = {round_folder(root, number).name for number in keep}
    for folder in root.glob("round_*"):
        if folder.name not in kept:
            shutil.rmtree(folder)
