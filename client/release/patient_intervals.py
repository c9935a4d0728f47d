"""Intervals of a site's own report: drawn anew over its patients, in place of those that follow from tables."""

from collections.abc import Mapping

from client.hospital.own_rows import OwnOutputs
from fedmed.fairness.chance.patient_bootstrap import PatientFigure, bootstrap_groups, bootstrap_patients
from fedmed.metrics.site_tables import FEDERATED, SITE_ATTRIBUTE
from fedmed.report.schema.document import Document
from fedmed.report.schema.figures import FigureEntries, FigureEntry

Found = Mapping[str, PatientFigure]


def use_patient_intervals(document: Document, site: str, outputs: OwnOutputs, seed: int) -> None:
    """Put the intervals into the test figures of a document, of the site and of its groups.

    Parameters
    ----------
    document : Document
        A site's own report; is changed in place. A figure that has no interval over patients has none afterwards. An
        AUC becomes that of all pairs of images.
    site : str
        Its name.
    outputs : OwnOutputs
        What the document's tables are of.
    seed : int
        Of the run.
    """
    z_NK, y_N = outputs.logits, outputs.labels
    if not len(y_N):
        return
    whole = bootstrap_patients(z_NK, y_N, outputs.patients, seed)
    calibration, classes = document["calibration"], document["classes"]
    entries = [document["figures"], document["sites"][site]["test"], calibration["after"]]
    entries += document["groups"].get(SITE_ATTRIBUTE, {}).values()
    entries += [one["after"] for one in calibration["groups"].get(SITE_ATTRIBUTE, {}).values()]
    entries += [one["models"][FEDERATED] for one in document["benefit"].values() if FEDERATED in one["models"]]
    for figures in entries:
        replace_intervals(figures, whole, classes)
    temperature = calibration["temperature"]
    scale = 1.0 if temperature is None else temperature["temperature"]
    if calibration["before"] is not None:
        replace_intervals(calibration["before"], bootstrap_patients(z_NK * scale, y_N, outputs.patients, seed), classes)
    for attribute, groups in document["groups"].items():
        if attribute != SITE_ATTRIBUTE and attribute in outputs.groups:
            _use_by_group(document, attribute, groups, outputs, scale, seed)
    document["notes"] = [*document["notes"], _say_patients(outputs)]


def _use_by_group(  # noqa: PLR0917
    document: Document,
    attribute: str,
    groups: Mapping[str, FigureEntries],
    outputs: OwnOutputs,
    scale: float,
    seed: int,
) -> None:
    names, classes = outputs.groups[attribute], document["classes"]
    found = bootstrap_groups(outputs.logits, outputs.labels, names, outputs.patients, seed)
    before = bootstrap_groups(outputs.logits * scale, outputs.labels, names, outputs.patients, seed)
    for group, figures in groups.items():
        replace_intervals(figures, found.get(group, {}), classes)
        calibrated = document["calibration"]["groups"].get(attribute, {}).get(group)
        if calibrated is not None:
            replace_intervals(calibrated["after"], found.get(group, {}), classes)
            if calibrated["before"] is not None:
                replace_intervals(calibrated["before"], before.get(group, {}), classes)


def replace_intervals(figures: FigureEntries, found: Found, classes: list[str]) -> None:
    """Put what was found into described figures, in place."""
    for key, entry in figures.items():
        own = found.get(key, PatientFigure(None))
        if entry["value"] is not None and own.value is not None:
            _replace_value(entry, own, classes)
        entry["interval"] = None if entry["value"] is None else own.interval
        for place, name in enumerate(classes):
            of_class = entry.get("by_class", {}).get(name)
            if of_class is not None:
                ends = None if own.by_class_interval is None else own.by_class_interval[place]
                of_class["interval"] = None if of_class["value"] is None else ends


def _replace_value(entry: FigureEntry, own: PatientFigure, classes: list[str]) -> None:
    entry["value"] = own.value
    entry.pop("bound", None)
    for name, value in zip(classes, own.by_class or (), strict=False):
        if value is not None and name in entry.get("by_class", {}):
            entry["by_class"][name]["value"] = value


def _say_patients(outputs: OwnOutputs) -> str:
    images, patients = len(outputs.labels), len(set(outputs.patients))
    if images == patients:
        return (
            f"Intervals of figures are drawn anew over this site's {images} test images, since its data names no "
            "patient with several of them."
        )
    return (
        f"Intervals of figures are drawn anew over this site's {patients} patients in the test, who have {images} "
        "images. Several images of one patient therefore count as what they are: less than as many patients. AUC "
        "compares all pairs of images."
    )
