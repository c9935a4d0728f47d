"""Which rows this site holds back once models have answered, since integers would give hidden rows away.

::

    state_dir/told_rows/test.told.json    the numbers that were told of each model, and what was held back

See :mod:`fedmed.fairness.reconstruction.hold`. What was decided for models stays; what was told counts for later ones.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from client.hospital.told_rows import CountedPart
from fedmed.config import SITE_ATTRIBUTE
from fedmed.data import ImagePart
from fedmed.errors import RunFolderError
from fedmed.fairness.disclosure.row_span import Mask
from fedmed.fairness.disclosure.rows import Disclosure
from fedmed.fairness.reconstruction.exchange import ReaderView, view_class
from fedmed.fairness.reconstruction.held import Held, hold_rows
from fedmed.fairness.reconstruction.hold import find_held
from fedmed.fairness.reconstruction.statement import ALERTS, ToldPart, combine_told, is_alerts, state_plan
from fedmed.fairness.reconstruction.statement_file import decode_held, decode_told, encode_held, encode_told
from fedmed.metrics.values import Array
from fedmed.processes import private_folder, write_secret


def hold_part(  # noqa: PLR0917
    counted: CountedPart,
    part: ImagePart,
    logits: Mapping[str, torch.Tensor],
    disclosure: Disclosure,
    record: Path,
    alerts: Mask | None = None,
) -> CountedPart:
    """Return what of a part is counted without the rows that must be held back; the same again for the same answers.

    Parameters
    ----------
    counted : CountedPart
        What would be counted.
    part : ImagePart
        The images.
    logits : mapping of str to Tensor, each of shape (N,K)
        Output of each model.
    disclosure : Disclosure
        The site's thresholds; with thresholds of 1 nothing is held back.
    record : Path
        File that keeps what was told; it is on the disk when this returns.
    alerts : ndarray of bool, shape (N,), optional
        Whether the federated model raises an alert for each image, where that is told.

    Raises
    ------
    RunFolderError
        If the file cannot be read.
    """
    if max(disclosure.k, disclosure.k_row) <= 1 or not len(part):
        return counted
    labels = part.labels.numpy().astype(np.int64)
    num_classes = next(iter(logits.values())).shape[1]
    # As the tables choose the class: of equal logits the first.
    answers = {model: z_NK.double().numpy().argmax(axis=1) for model, z_NK in logits.items()}
    seen = answers if alerts is None else {**answers, ALERTS: np.where(alerts, labels, -1)}
    name = _name_answers(seen, counted)
    decided, told = read_held(record)
    if name not in decided:
        patients = None if counted.unit == "images" else counted.patients
        now = state_plan(
            counted.plan,
            labels,
            counted.groups,
            answers,
            patients,
            num_classes,
            disclosure.k_row,
            prefix=f"{name}/",
            alerts=alerts,
        )
        viewer = _Viewer(counted, labels, np.column_stack([*answers.values()]), seen.get(ALERTS))
        held = find_held(now, told, disclosure.k_row, viewer)
        decided[name] = held
        told = combine_told([*told, held.cut(now)])
        _write(record, decided, told)
    return replace(counted, plan=hold_rows(counted.plan, labels.tolist(), counted.groups, decided[name]))


class _Viewer:
    """A class as a reader may take it to be."""

    def __init__(self, counted: CountedPart, labels: Array, answers: Array, alerts: Array | None = None) -> None:
        self._counted, self._labels, self._answers, self._alerts = counted, labels, answers, alerts
        self._patients = np.unique(np.array(counted.patients, dtype=str), return_inverse=True)[1].reshape(-1)

    def __call__(self, told: ToldPart, label: int, is_folded: bool) -> ReaderView:
        plans, answers = self._counted.plan.attributes, self._answers
        if self._alerts is not None and _tells_alerts(told, label):
            answers = np.column_stack([answers, self._alerts])
        return view_class(
            told,
            label,
            self._labels,
            self._counted.groups,
            answers,
            self._patients,
            {attribute: plan.counted for attribute, plan in plans.items()},
            is_folded=is_folded,
        )


def _tells_alerts(told: ToldPart, label: int) -> bool:
    """Return whether alerts of groups are told; of the site as a whole they say nothing of groups."""
    return any(
        row.label == label and row.attribute != SITE_ATTRIBUTE
        for name, model in told.models.items()
        if is_alerts(name)
        for row in model.rows
    )


def _name_answers(answers: Mapping[str, Array], counted: CountedPart) -> str:
    """Return a name for answers on the images that are counted, which is the same for the same."""
    digest = hashlib.blake2b(digest_size=12)
    arrays: Sequence[tuple[str, Array]] = [
        *sorted(answers.items()),
        *((name, plan.counted) for name, plan in sorted(counted.plan.attributes.items())),
    ]
    for name, array in arrays:
        digest.update(name.encode() + b"\0" + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def read_held(record: Path) -> tuple[dict[str, Held], list[ToldPart]]:
    """Return what was decided for models, and what has been told; RunFolderError if the file cannot be read."""
    try:
        values = json.loads(record.read_bytes())
        return {name: decode_held(one) for name, one in values["held"].items()}, list(map(decode_told, values["told"]))
    except FileNotFoundError:
        return {}, []
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunFolderError(
            f"{record}, in which this site keeps the numbers that it has told so far, cannot be read "
            f"({type(error).__name__}). No tables are sent without it, because they could give single patients away "
            "together with earlier ones. Put it back from a backup. Move it away only between studies."
        ) from error


def _write(record: Path, decided: Mapping[str, Held], told: Sequence[ToldPart]) -> None:
    values = {
        "held": {name: encode_held(held) for name, held in decided.items()},
        "told": list(map(encode_told, told)),
    }
    private_folder(record.parent)
    write_secret(record, json.dumps(values, separators=(",", ":")).encode())
