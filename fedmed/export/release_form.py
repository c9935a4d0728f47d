"""The comparison before a release: what a site says, how the answers are pooled, what becomes of the artefact.

In a real federation the server has no images. So it builds the artefact on its own proof, block by block on seeded
inputs, and every site compares train form, deploy form and ONNX file on its own test images. What leaves a site is a
:class:`fedmed.export.compare.FormComparison` with its floats rounded up to two digits: a value with all its digits
could carry more than a difference.
"""

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from decimal import ROUND_UP, Context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmed.errors import WireError, tame
from fedmed.export.manifest import MANIFEST_FILE, MODEL_FILE, ONNX_FILE
from fedmed.export.model_card import CARD_FILE, write_model_card
from fedmed.fairness.disclosure.tables import Release, counts_may_leave
from fedmed.reparameterization import Comparison, join
from fedmed.storage.atomic_files import atomic_folder, hash_file, write_text_atomically

if TYPE_CHECKING:  # it imports the ONNX runtime, which is needed once, at the end of a run
    from fedmed.export.compare import FormComparison

LIMITS = {MANIFEST_FILE: 2**24, MODEL_FILE: 2**31, ONNX_FILE: 2**31}
"""Files that a site needs for the comparison, and the most bytes of each. Programs never travel."""
PROBLEM = "problem"
_FORMS = ("deploy", "onnx")
_FLOATS, _COUNTS = ("max_abs_error", "largest_logit"), ("num_images", "num_ties", "num_agreeing")
_LATER_FLOAT = "max_probability_error"
"""Lacks in what an earlier version wrote."""
_MOST_IMAGES = 10**8
_MOST_LETTERS = 500


def describe_comparison(comparison: "FormComparison") -> dict[str, Any]:
    """Return a comparison as it leaves a site: plain JSON, floats rounded up to two digits, infinity as None."""
    values = comparison.to_values()
    for form in _FORMS:
        if values[form][_LATER_FLOAT] is None:
            del values[form][_LATER_FLOAT]
        values[form] |= {name: _round_up(values[form][name]) for name in _list_floats(values[form])}
    return values


def describe_problem(text: str) -> dict[str, Any]:
    """Return what a site says of an artefact that it does not run at all."""
    return {PROBLEM: tame(text, _MOST_LETTERS - 1)}


def read_answer(values: object, num_classes: int) -> "FormComparison | str":
    """Read what :func:`describe_comparison` or :func:`describe_problem` gave; nothing that arrives is believed.

    Parameters
    ----------
    values : object
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
        If the values are none of both, or contradict themselves.
    """
    from fedmed.export.compare import read_comparison  # noqa: PLC0415

    if isinstance(values, dict) and set(values) == {PROBLEM} and isinstance(values[PROBLEM], str):
        return tame(values[PROBLEM], _MOST_LETTERS)
    malformed = WireError("The comparison that arrived is malformed. Server and site must run the same version.")
    if not isinstance(values, dict) or set(values) != {*_FORMS, "paired"}:
        raise malformed
    rows = values["paired"]
    if not isinstance(rows, list) or len(rows) != num_classes or not all(map(_is_row, rows)):
        raise malformed
    if not all(_is_form(values[form], sum(map(sum, rows))) for form in _FORMS):
        raise malformed
    forms = {form: {name: _to_float(value) for name, value in values[form].items()} for form in _FORMS}
    return read_comparison({**forms, "paired": rows})


def find_breach(comparison: "FormComparison", release: Release) -> str | None:
    """Return why a comparison must not leave a site, or None: a class or all of them with too few images."""
    counts = [sum(row) for row in comparison.paired]
    return None if counts_may_leave(counts, release) else "it is about fewer images than may be counted"


def pool(comparisons: Mapping[str, "FormComparison"]) -> dict[str, Any]:
    """Return the sites' comparisons together, for the manifest: largest errors, sums of counts, no site by itself."""
    found = list(comparisons.values())
    if not found:
        return {"num_sites": 0, "num_images": 0}
    deploy, onnx = (_show(join([getattr(one, form) for one in found])) for form in _FORMS)
    rows = zip(*(one.paired for one in found), strict=True)
    paired = [[sum(cells) for cells in zip(*of_class, strict=True)] for of_class in rows]
    return {
        "num_sites": len(found),
        "num_images": onnx["num_images"],
        "deploy_form": deploy,
        "onnx": onnx,
        "paired": paired,
    }


def change_manifest(folder: Path, report: Mapping[str, Any] | None, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Change entries of an artefact's manifest and write its model card anew, both at once.

    Parameters
    ----------
    folder : Path
        An artefact, or a model in train form, which has no card.
    report : mapping, optional
        Content of ``report.json``, for the card.
    changes : mapping
        New entries of the manifest; those of ``proof`` are added to it.

    Returns
    -------
    dict
        The new manifest.

    Raises
    ------
    CheckpointError
        If the disk is full or cannot be written; the folder is as it was.
    """
    manifest: dict[str, Any] = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    proof = {**manifest.get("proof", {}), **changes.get("proof", {})}
    manifest |= {**changes, **({"proof": proof} if proof else {})}
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


def _show(comparison: Comparison) -> dict[str, Any]:
    return {name: getattr(comparison, name) for name in (*_FLOATS, _LATER_FLOAT, *_COUNTS)}


def _list_floats(values: Mapping[str, Any]) -> list[str]:
    return [*_FLOATS, *([_LATER_FLOAT] if _LATER_FLOAT in values else [])]


def _round_up(value: float) -> float | None:
    if not math.isfinite(value):
        return None
    return float(Context(prec=2, rounding=ROUND_UP).create_decimal(repr(value)))


def _to_float(value: Any) -> Any:
    return math.inf if value is None else value


def _is_row(row: object) -> bool:
    return isinstance(row, list) and len(row) == 4 and all(map(_is_count, row))


def _is_form(values: object, num_images: int) -> bool:
    if not isinstance(values, dict) or set(values) != {"precision", *_list_floats(values), *_COUNTS}:
        return False
    if values["precision"] != "float32" or not all(_is_count(values[name]) for name in _COUNTS):
        return False
    numbers: Sequence[object] = [values[name] for name in _list_floats(values)]
    if not all(one is None or (isinstance(one, float) and math.isfinite(one) and one >= 0) for one in numbers):
        return False
    fits: bool = values["num_ties"] + values["num_agreeing"] <= values["num_images"] == num_images
    return fits


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_IMAGES
