"""Open an artefact again and reproduce the figures that the run has logged."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from fedmed.config import Plan
from fedmed.data import ImagePart
from fedmed.errors import CheckpointError
from fedmed.export.compare import open_session, read_batches, run_onnx
from fedmed.export.manifest import find_changed_files, read_manifest
from fedmed.metrics.classification import compute_figures
from fedmed.metrics.tables import EvaluationTables, combine_tables, tables_from_logits

FIGURES = ("balanced_accuracy", "accuracy", "macro_f1", "auc")


@dataclass
class Reproduction:
    """What came out of the artefact beside what was logged."""

    num_images: int = 0
    num_sites: int = 0
    moved: dict[str, int] = field(default_factory=dict)
    """Site to number of images in another cell of the table of true and predicted classes, where there are any."""
    figures: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)
    """Figure, all sites pooled, to its logged and its reproduced value; None where it is not defined."""
    exact: bool = True
    """Whether all tables are the same to the last bit, with histograms of scores and sums of probabilities."""

    @property
    def succeeded(self) -> bool:
        """Whether every image got the logged class."""
        return not self.moved

    def describe(self) -> str:
        """Return what was found, for a person."""
        logged, found = self.figures.get("balanced_accuracy", (None, None))
        head = f"{self.num_images} test images of {self.num_sites} sites through model.onnx: balanced accuracy "
        values = f"{_show(found)}, logged {_show(logged)}. "
        if self.succeeded:
            return f"{head}{values}Every table of classes is the logged one" + (
                ", and all other tables to the last bit." if self.exact else "; scores differ in their last digits."
            )
        sites = ", ".join(f"{site}: {number}" for site, number in self.moved.items())
        return f"{head}{values}Images with another class than logged: {sites}."


def check_artefact(
    folder: Path,
    parts: Iterable[tuple[str, ImagePart]],
    logged: Mapping[str, EvaluationTables],
    plan: Plan,
    *,
    threads: int = 0,
) -> Reproduction:
    """Score images with an artefact's ONNX file and compare with what was logged.

    Parameters
    ----------
    folder : Path
        The artefact; its hashes are checked.
    parts : iterable of (str, ImagePart)
        Sites and their test images.
    logged : mapping of str to EvaluationTables
        Test tables of the run by site; sites without are left out.
    plan : Plan
        How images become the network's input.
    threads : int
        0: one for each core.

    Raises
    ------
    FedmedError
        If a file is not the one that the manifest names, or the artefact cannot be run here.
    """
    check_hashes(folder)
    session, temperature = open_session(folder, threads), _read_temperature(folder)
    result, found = Reproduction(), {}
    for site, part in parts:
        if site not in logged:
            continue
        logits = [
            torch.zeros(0, len(plan.classes)),
            *(run_onnx(session, x_BCHW) for x_BCHW in read_batches(part, plan)),
        ]
        z_NK = torch.cat(logits).double() / temperature
        found[site] = tables_from_logits(z_NK, part.labels, [site] * len(part), part.patients)
        _compare(result, site, logged[site], found[site])
    if found:
        pairs = [combine_tables(tables.values()).pool() for tables in ({site: logged[site] for site in found}, found)]
        before, after = (compute_figures(tables) for tables in pairs)
        result.figures = {key: (before[key].value, after[key].value) for key in FIGURES}
    return result


def check_hashes(folder: Path) -> None:
    """Check every file of an artefact against its manifest.

    Raises
    ------
    CheckpointError
        If one is missing or was changed.
    """
    try:
        wrong = find_changed_files(folder, read_manifest(folder))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"'{folder}' is no complete artefact: {error}.") from None
    if wrong:
        raise CheckpointError(f"'{folder}': {', '.join(wrong)} changed since the export. Export again.")


def _read_temperature(folder: Path) -> float:
    return float(read_manifest(folder).get("temperature", 1.0))


def is_artefact_of(folder: Path, trained_sha256: str) -> bool:
    """Return whether a folder holds a sound artefact of a model, which is named by the hash of its train form."""
    try:
        manifest = read_manifest(folder)
        if manifest.get("trained_sha256") != trained_sha256:
            return False
        check_hashes(folder)
    except (OSError, ValueError, AttributeError, CheckpointError):
        return False
    return True


def _compare(result: Reproduction, site: str, logged: EvaluationTables, found: EvaluationTables) -> None:
    result.num_sites += 1
    result.num_images += found.num_images
    if logged.groups != found.groups:
        result.moved[site] = abs(logged.num_images - found.num_images)
        result.exact = False
        return
    pairs = {name: (array, found.to_arrays()[name]) for name, array in logged.to_arrays().items()}
    moved = int(np.abs(pairs["counts"][0] - pairs["counts"][1]).sum()) // 2
    if moved or logged.num_images != found.num_images:
        result.moved[site] = max(moved, abs(logged.num_images - found.num_images))
    result.exact &= all(np.array_equal(before, after) for before, after in pairs.values())


def _show(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4f}"
