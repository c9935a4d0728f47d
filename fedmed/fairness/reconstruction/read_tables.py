"""What the tables of a site tell, as a statement."""

from collections.abc import Mapping

import numpy as np

from fedmed.fairness.reconstruction.links import Mark, find_links
from fedmed.fairness.reconstruction.statement import ALERTS, Answers, Rare, Row, ToldPart, tell_alerts
from fedmed.metrics.clusters import PATIENTS, SIZES
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
    alerts = _read_alerts(federated)
    return ToldPart(
        groups={attribute: own.groups for attribute, own in federated.items()},
        num_classes=tables.site.num_classes,
        images=images,
        patients={} if patients == images else patients,
        rare=rare,
        models={prefix + name: of_model for name, of_model in {**answers, **alerts}.items()},
        pairs={
            (prefix + FEDERATED, prefix + name): _read_pairs(by_attribute)
            for name, by_attribute in tables.paired.items()
        },
        same=find_links(_mark_rows(tables, answers)),
    )


def _read_alerts(federated: Mapping[str, EvaluationTables]) -> dict[str, Answers]:
    """Return the alerts as those of a model of their own; empty where none are told."""
    rows = {}
    for attribute, own in federated.items():
        for g, label in np.argwhere(own.alerts[..., 0]).tolist():
            row = Row(attribute, own.groups[g], label)
            rows[row] = tell_alerts(row, own.num_classes, *map(int, own.alerts[g, label]))
    return {ALERTS: Answers(rows)} if rows else {}


def _mark_rows(tables: SiteTables, answers: Mapping[str, Answers]) -> dict[Row, Mark]:
    """Return what is told of each row, to find rows of different attributes that may be the same images."""
    marks = {}
    for row in answers[FEDERATED].rows:
        counts: list[object] = []
        sums, of_group, is_telling = [], [], False
        for model, by_attribute in tables.models.items():
            own = by_attribute[row.attribute]
            g = own.groups.index(row.group)
            patients, areas = own.patients[g, row.label], own.areas[g, row.label]
            scores = own.calibration[g, row.label, :, 1].sum()
            counts += [answers[model].rows[row], int(patients[PATIENTS])]
            sums += [*patients[1:].tolist(), *areas.tolist(), float(scores)]
            of_group += own.brier[g].tolist()
            # With one image of each patient, how answers vary between patients follows from how many are right.
            has_several = patients[SIZES] not in {0, sum(answers[model].rows[row])}
            is_telling |= bool(has_several or scores % 1 or (areas % 1).any())
        marks[row] = Mark(tuple(counts), tuple(sums), tuple(of_group), is_telling)
    return marks


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
