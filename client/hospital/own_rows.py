"""What each test image was taken for: kept at the site, to check its own report with another library.

::

    state_dir/runs/RUN_ID/own_tables/HASH.rows.json    labels, predictions by model, groups by attribute, outputs of the
                                                       federated model, numbers of the patients; mode 0600
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fedmed.errors import FedmedError, RunFolderError
from fedmed.metrics.classification import compute_figures
from fedmed.metrics.clusters import number_patients
from fedmed.metrics.site_tables import FEDERATED, SiteTables
from fedmed.metrics.tables import Array, EvaluationTables
from fedmed.processes import read_secret

TOLERANCE = 1e-9

Rates = dict[tuple[str, str], float | None]
"""Figure and group to value; None where there is no image to compute it from."""


class OwnReportError(FedmedError):
    """A figure of the site's own report is not what another library computes from the images."""


@dataclass(frozen=True)
class OwnOutputs:
    """What the federated model answers to each of this site's N test images."""

    logits: torch.Tensor
    """float64 (N, K), after the temperature."""
    labels: torch.Tensor
    """int64 (N,)."""
    groups: Mapping[str, Sequence[str]]
    """Attribute to the group of each image."""
    patients: Sequence[str]
    """Number of each image's patient, counted from 0; no id."""


def encode_rows(
    logits: Mapping[str, torch.Tensor],
    labels: torch.Tensor,
    groups: Mapping[str, Sequence[str]],
    patients: Sequence[str] | None = None,
) -> bytes:
    """Return labels, predictions and groups of images as bytes for a file.

    Parameters
    ----------
    logits : mapping of str to Tensor, each of shape (N,K)
        Output of each model.
    labels : Tensor of integers, shape (N,)
        True classes.
    groups : mapping of str to sequence of str
        Attribute to the group of each image.
    patients : sequence of str, optional
        Whose image each is; told as numbers. Without, every image is taken for a patient's only one.
    """
    predictions = {model: z_NK.double().numpy().argmax(axis=1).tolist() for model, z_NK in logits.items()}
    values = {
        "labels": labels.tolist(),
        "predictions": predictions,
        "groups": dict(groups),
        "logits": logits[FEDERATED].double().tolist(),
        "patients": number_patients(patients, len(labels)).tolist(),
    }
    return json.dumps(values, separators=(",", ":")).encode()


def read_outputs(path: Path) -> OwnOutputs | None:
    """Return what :func:`encode_rows` has written; None where there is no such file, or one of before.

    Raises
    ------
    RunFolderError
        If the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        values = json.loads(read_secret(path))
        if not {"logits", "patients"} <= set(values):
            return None
        return OwnOutputs(
            torch.tensor(values["logits"], dtype=torch.float64),
            torch.tensor(values["labels"], dtype=torch.int64),
            values["groups"],
            [str(number) for number in values["patients"]],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RunFolderError(
            f"The file {path} is damaged ({type(error).__name__}). Remove it and type flower-client "
            "--site-report, which makes it anew."
        ) from error


def check_rows(path: Path, tables: SiteTables) -> None:
    """Compare tables with fairlearn's ``MetricFrame`` over the images that they count.

    Accuracy by group for every model; for the federated one also selection rate, true and false positive rate by group,
    one class against the rest.

    Parameters
    ----------
    path : Path
        What :func:`encode_rows` gave. Without the file there is nothing to compare.
    tables : SiteTables
        With nothing held back.

    Raises
    ------
    OwnReportError
        If a figure differs by more than 1e-9.
    RunFolderError
        If the file does not fit the tables.
    """
    if not path.is_file():
        return
    try:
        values = json.loads(read_secret(path))
        y_N, groups = np.array(values["labels"], np.int64), values["groups"]
        predictions = {model: np.array(found, np.int64) for model, found in values["predictions"].items()}
        if set(predictions) != set(tables.models) or set(groups) != set(tables.attributes):
            raise ValueError("other models or attributes")
        for model, by_attribute in tables.models.items():
            for attribute, own in by_attribute.items():
                _compare(own, y_N, predictions[model], groups[attribute], model, attribute)
    except (KeyError, TypeError, ValueError) as error:
        raise RunFolderError(
            f"The file {path} does not fit the tables beside it ({type(error).__name__}), so this site's report cannot "
            "be checked. Look who changed the one or the other."
        ) from error


def _compare(  # noqa: PLR0917
    tables: EvaluationTables, y_N: Array, predicted_N: Array, groups: Sequence[str], model: str, attribute: str
) -> None:
    classes = range(tables.num_classes) if model == FEDERATED else range(0)
    ours, theirs = _read_rates(tables, classes), _ask_fairlearn(y_N, predicted_N, groups, classes)
    if set(ours) != set(theirs):
        raise ValueError("other groups")
    for key, value in ours.items():
        other = theirs[key]
        if value is not None and (other is None or not abs(value - other) <= TOLERANCE):
            figure, group = key
            raise OwnReportError(
                f"This site's own report was not written: for '{group}' ({attribute}, model '{model}') the {figure} is "
                f"{value!r} in its tables and {other!r} computed by fairlearn from the same images. One of the two is "
                "wrong. Nothing has left the site because of this; please report it, with the versions of fedmed and "
                "fairlearn."
            )


def _read_rates(tables: EvaluationTables, classes: range) -> Rates:
    rates: Rates = {}
    for position, group in enumerate(tables.groups):
        counts_KK = tables.counts[position]
        figures = compute_figures(tables.select(group))
        rates["accuracy", group] = figures["accuracy"].value
        for label in classes:
            sensitivity, specificity = (
                (figures[key].by_class or (None,) * len(classes))[label] for key in ("sensitivity", "specificity")
            )
            rates[f"selection rate of class {label + 1}", group] = float(counts_KK[:, label].sum() / counts_KK.sum())
            rates[f"true positive rate of class {label + 1}", group] = sensitivity
            rates[f"false positive rate of class {label + 1}", group] = None if specificity is None else 1 - specificity
    return rates


def _ask_fairlearn(y_N: Array, predicted_N: Array, groups: Sequence[str], classes: range) -> Rates:
    # Imported late: pandas and scikit-learn take seconds, once at the end of a run.
    from fairlearn.metrics import MetricFrame, false_positive_rate, selection_rate, true_positive_rate  # noqa: PLC0415
    from sklearn.metrics import accuracy_score  # noqa: PLC0415

    metrics = {
        "selection rate": selection_rate,
        "true positive rate": true_positive_rate,
        "false positive rate": false_positive_rate,
    }
    sensitive = np.array(groups, dtype=object)
    frame = MetricFrame(metrics=accuracy_score, y_true=y_N, y_pred=predicted_N, sensitive_features=sensitive)
    rates: Rates = {("accuracy", str(group)): float(value) for group, value in frame.by_group.items()}
    for label in classes:
        one = MetricFrame(
            metrics=metrics, y_true=y_N == label, y_pred=predicted_N == label, sensitive_features=sensitive
        ).by_group
        for name in metrics:
            rates |= {(f"{name} of class {label + 1}", str(group)): float(value) for group, value in one[name].items()}
    return rates
