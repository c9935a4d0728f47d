"""The comparison before a release: what a site says, how the answers are pooled, what becomes of the artefact.

In a real federation the server has no images. So it builds the artefact on its own proof, block by block on seeded
inputs, and every site compares train form, deploy form and ONNX file on its own test images. What leaves a site is a
:class:`fedmed.export.compare.FormComparison` with its floats rounded up to two digits: a value with all its digits
could carry more than a difference. A hospital tells powers of ten alone, and of forms that are not equal no more than
that: its largest logit and largest difference are those of single images.
"""

import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from decimal import ROUND_UP, Context, Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from fedmed.errors import WireError, tame
from fedmed.export.manifest import ManifestChanges, ModelManifest, PooledComparison, describe_errors, read_manifest
from fedmed.export.model_card import ReportData, write_model_card
from fedmed.fairness.disclosure.tables import Disclosure, counts_may_leave
from fedmed.protocol.release import CARD_FILE, MANIFEST_FILE
from fedmed.protocol.reports import FormDifference, FormsCompared, FormsProblem
from fedmed.reparameterization import Comparison, join
from fedmed.reparameterization.proof import PROBABILITY_FLOAT32, allowed_difference
from fedmed.storage.atomic_files import atomic_folder, hash_file, write_text_atomically

if TYPE_CHECKING:  # it imports the ONNX runtime, which is needed once, at the end of a run
    from fedmed.export.compare import FormComparison

_MOST_LETTERS = 500


def describe_comparison(comparison: "FormComparison", *, coarse: bool = False) -> FormsCompared:
    """Return a comparison as it leaves a site.

    Parameters
    ----------
    comparison : FormComparison
        What the site has found.
    coarse : bool
        Whether floats are rounded up to powers of ten, at most what is allowed of forms that are equal, and left out of
        others; else to two digits. Infinity is None.
    """
    deploy, onnx = (_describe(_blur(one) if coarse else one) for one in (comparison.deploy, comparison.onnx))
    return FormsCompared(deploy=deploy, onnx=onnx, paired=comparison.paired)


def describe_problem(text: str) -> FormsProblem:
    """Return what a site says of an artefact that it does not run at all."""
    return FormsProblem(problem=tame(text, _MOST_LETTERS - 1))


def read_answer(told: FormsCompared | FormsProblem, num_classes: int) -> "FormComparison | str":
    """Read what :func:`describe_comparison` or :func:`describe_problem` gave.

    Parameters
    ----------
    told : FormsCompared or FormsProblem
        As it arrived.
    num_classes : int
        K.

    Returns
    -------
    FormComparison or str
        The comparison, or what is wrong with the artefact.

    Raises
    ------
    WireError
        If it has another number of classes.
    """
    from fedmed.export.compare import FormComparison  # noqa: PLC0415

    if isinstance(told, FormsProblem):
        return tame(told.problem, _MOST_LETTERS)
    if len(told.paired) != num_classes:
        raise WireError(f"The comparison that arrived is malformed: {len(told.paired)} classes, not {num_classes}.")
    return FormComparison(_read(told.deploy), _read(told.onnx), told.paired)


def find_breach(comparison: "FormComparison", disclosure: Disclosure) -> str | None:
    """Return why a comparison must not leave a site, or None: too few images of a class or in all, or too exact."""
    counts = [sum(row) for row in comparison.paired]
    if not disclosure.is_open and describe_comparison(comparison, coarse=True) != describe_comparison(comparison):
        return "it tells differences more exactly than in powers of ten"
    return None if counts_may_leave(counts, disclosure) else "it is about fewer images than may be counted"


def pool(comparisons: Mapping[str, "FormComparison"]) -> PooledComparison:
    """Return the sites' comparisons together, for the manifest: largest errors, sums of counts, no site by itself."""
    found = list(comparisons.values())
    if not found:
        return {"num_sites": 0, "num_images": 0}
    onnx = describe_errors(join([one.onnx for one in found]))
    rows = zip(*(one.paired for one in found), strict=True)
    paired = [[sum(cells) for cells in zip(*of_class, strict=True)] for of_class in rows]
    return {
        "num_sites": len(found),
        "num_images": onnx["num_images"],
        "deploy_form": describe_errors(join([one.deploy for one in found])),
        "onnx": onnx,
        "paired": paired,
    }


def change_manifest(folder: Path, report: ReportData | None, changes: ManifestChanges) -> ModelManifest:
    """Change entries of an artefact's manifest and write its model card anew, both at once.

    Parameters
    ----------
    folder : Path
        An artefact, or a model in train form, which has no card.
    report : ReportData, optional
        Content of ``report.json``, for the card.
    changes : ManifestChanges
        New entries of the manifest; those of ``proof`` are added to it.

    Returns
    -------
    ModelManifest
        The new manifest.

    Raises
    ------
    CheckpointError
        If the disk is full or cannot be written; the folder is as it was.
    """
    manifest = read_manifest(folder)
    if "trained_sha256" in changes:
        manifest["trained_sha256"] = changes["trained_sha256"]
    if "release" in changes:
        manifest["release"] = changes["release"]
    if "proof" in changes:
        manifest["proof"]["sites"] = changes["proof"]["sites"]
    with atomic_folder(folder) as partial:
        for path in folder.iterdir():
            if path.name not in {MANIFEST_FILE, CARD_FILE}:
                place(path, partial / path.name)
        if (folder / CARD_FILE).is_file():
            write_text_atomically(partial / CARD_FILE, write_model_card(manifest, report))
            manifest["sha256"][CARD_FILE] = hash_file(partial / CARD_FILE)
        write_text_atomically(partial / MANIFEST_FILE, json.dumps(manifest, indent=2, ensure_ascii=False))
    return manifest


def place(source: Path, target: Path) -> None:
    """Link a file where possible: a model need not lie on the disk twice."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _blur(comparison: Comparison) -> Comparison:
    """Return a comparison whose floats hardly depend on any one image; it is within tolerance if it was."""
    probability = comparison.max_probability_error
    if comparison.failures():
        error = largest = math.inf
        probability = None if probability is None else math.inf
    else:
        largest = _find_power(comparison.largest_logit)
        error = min(_find_power(comparison.max_abs_error), allowed_difference(largest))
        probability = None if probability is None else min(_find_power(probability), PROBABILITY_FLOAT32)
    return replace(comparison, max_abs_error=error, largest_logit=largest, max_probability_error=probability)


def _find_power(value: float) -> float:
    """Return the smallest power of ten that is not below a number; 0 of 0."""
    if value == 0 or not math.isfinite(value):
        return value
    power = float(f"1e{Decimal(repr(value)).adjusted()}")
    return power if value <= power else float(f"1e{Decimal(repr(value)).adjusted() + 1}")


def _describe(comparison: Comparison) -> FormDifference:
    probability = comparison.max_probability_error
    told = {} if probability is None else {"max_probability_error": _round_up(probability)}
    return FormDifference(
        precision="float32",
        max_abs_error=_round_up(comparison.max_abs_error),
        largest_logit=_round_up(comparison.largest_logit),
        **told,
        num_images=comparison.num_images,
        num_ties=comparison.num_ties,
        num_agreeing=comparison.num_agreeing,
    )


def _read(told: FormDifference) -> Comparison:
    is_told = "max_probability_error" in told.model_fields_set
    return Comparison(
        told.precision,
        _or_infinite(told.max_abs_error),
        _or_infinite(told.largest_logit),
        told.num_images,
        told.num_ties,
        told.num_agreeing,
        max_probability_error=_or_infinite(told.max_probability_error) if is_told else None,
    )


def _or_infinite(value: float | None) -> float:
    return math.inf if value is None else value


def _round_up(value: float) -> float | None:
    if not math.isfinite(value):
        return None
    return float(Context(prec=2, rounding=ROUND_UP).create_decimal(repr(value)))
