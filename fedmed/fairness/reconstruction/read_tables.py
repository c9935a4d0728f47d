"""What the tables of a site tell, as a statement."""

from collections.abc import Mapping

import numpy as np

from fedmed.config import SITE_ATTRIBUTE
from fedmed.fairness.figures.groups import is_crossing
from fedmed.fairness.reconstruction.statement import Answers, Rare, Row, ToldPart
from fedmed.metrics.site_tables import FEDERATED, PairedTables, SiteTables
from fedmed.metrics.tables import EvaluationTables
from fedmed.metrics.values import Array


def read_told(tables: SiteTables, prefix: str = "") -> ToldPart:
    """Return what the tables of a site tell.

    Parameters
    ----------
    tables : SiteTables
        Of one request.
    prefix : str
        Before the models' names, so that several requests can be put together.
    """
    federated = tables.models[FEDERATED]
    images, patients, rare = {}, {}, {}
    for attribute, own in federated.items():
        sizes_GK, patients_GK, (rare_G, _) = _count_images(own), _count_patients(own), _count_rare(own)
        for g, group in enumerate(own.groups):
            for label in np.flatnonzero(sizes_GK[g]).tolist():
                images[Row(attribute, group, label)] = int(sizes_GK[g, label])
                if patients_GK is not None:
                    patients[Row(attribute, group, label)] = int(patients_GK[g, label])
            if rare_G[g]:
                rare[Rare(attribute, group)] = int(rare_G[g])
    answers = {name: _read_answers(by_attribute) for name, by_attribute in tables.models.items()}
    return ToldPart(
        groups={attribute: own.groups for attribute, own in federated.items()},
        num_classes=tables.site.num_classes,
        images=images,
        patients={} if patients == images else patients,
        rare=rare,
        models={prefix + name: of_model for name, of_model in answers.items()},
        pairs={
            (prefix + FEDERATED, prefix + name): _read_pairs(by_attribute)
            for name, by_attribute in tables.paired.items()
        },
        same=_suspect_same(tables, answers),
    )


def _suspect_same(tables: SiteTables, answers: Mapping[str, Answers]) -> frozenset[tuple[Row, Row]]:
    """Return rows of different attributes that agree in all that is told of them, sums of scores among it."""
    found: dict[tuple[object, ...], Row] = {}
    pairs = set()
    for row in answers[FEDERATED].rows:
        if row.attribute == SITE_ATTRIBUTE or is_crossing(row.attribute):
            continue
        marks: list[object] = [row.label]
        is_marked = False
        for model, by_attribute in tables.models.items():
            own = by_attribute[row.attribute]
            g = own.groups.index(row.group)
            sums = np.asarray(
                own.areas if hasattr(own, "areas") else own.calibration[..., 1].sum(axis=-1, keepdims=True)
            )[g, row.label]
            is_marked = is_marked or bool((np.nan_to_num(sums) % 1 != 0).any())
            marks += [answers[model].rows[row], tuple(float(f"{value:.6g}") for value in np.nan_to_num(sums).ravel())]
        other = found.setdefault(tuple(marks), row)
        if is_marked and other.attribute != row.attribute:
            pairs.add((other, row))
    return frozenset(pairs)


def _read_answers(by_attribute: Mapping[str, EvaluationTables]) -> Answers:
    rows, rare = {}, {}
    for attribute, own in by_attribute.items():
        sizes_GK, (rare_G, right_G) = _count_images(own), _count_rare(own)
        other_GK = getattr(own, "other_wrong", np.zeros_like(sizes_GK))
        for g, group in enumerate(own.groups):
            for label in np.flatnonzero(sizes_GK[g]).tolist():
                cells = own.counts[g, label].tolist()
                rows[Row(attribute, group, label)] = (*map(int, cells), int(other_GK[g, label]))
            if rare_G[g]:
                rare[Rare(attribute, group)] = int(right_G[g])
    return Answers(rows, rare)


def _read_pairs(by_attribute: Mapping[str, PairedTables]) -> dict[Row, int]:
    return {
        Row(attribute, group, label): int(own.cells[g, label, 1, 1])
        for attribute, own in by_attribute.items()
        for g, group in enumerate(own.groups)
        for label in np.flatnonzero(own.cells[g].sum(axis=(1, 2))).tolist()
    }


def _count_images(own: EvaluationTables) -> Array:
    sizes_GK: Array = own.counts.sum(axis=-1)
    other_GK = getattr(own, "other_wrong", None)  # wrong answers that are too few for their class
    return sizes_GK if other_GK is None else sizes_GK + other_GK


def _count_patients(own: EvaluationTables) -> Array | None:
    patients = getattr(own, "patients", None)
    return None if patients is None else np.asarray(patients)[..., 0].round().astype(np.int64)


def _count_rare(own: EvaluationTables) -> tuple[Array, Array]:
    """Return images and right answers of rare classes, each of shape (G,)."""
    rare = np.asarray(own.rare)
    if rare.ndim == 2:
        return rare[:, 0].round().astype(np.int64), rare[:, 1].round().astype(np.int64)
    sums = rare.sum(axis=1).round().astype(np.int64)
    return sums[:, 0], sums[:, 2]
