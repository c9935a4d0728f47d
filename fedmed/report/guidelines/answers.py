"""Answers to the items of guidelines, from ``report.json`` alone; None is not known to the software."""

from collections.abc import Callable, Mapping

from fedmed.report.drawing.wording import count, label_figure, label_rule
from fedmed.report.schema.document import Document
from fedmed.report.schema.figures import Drawn, FigureEntry
from fedmed.report.schema.flow import FoundEntry
from fedmed.report.sections.data_flow import REASONS

Answer = Callable[[Document], str | None]


def _setting(document: Document, *path: str) -> object:
    value: object = document["config"]
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def say_figure(figure: Drawn) -> str:
    """Return value and interval of a figure in words."""
    if figure["value"] is None:
        return "n/a"
    interval = figure["interval"]
    return f"{figure['value']:.3f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")


def _say(key: str, figure: FigureEntry) -> str:
    return f"{label_figure(key)} {say_figure(figure)} on {figure['n'] or 0:,} images"


def _flow(document: Document) -> str | None:
    flow = document.get("flow")
    if flow is None:
        return None
    total = flow["total"]
    shown = [f"{part} {'not known' if total[part] is None else format(total[part], ',')}" for part in total]
    found = flow.get("found")
    before = "excluded before that not known" if found is None else f"found {found['found']:,}{_say_excluded(found)}"
    return f"{count(len(flow['sites']), 'site')}; images (and scored patients): {before}, {', '.join(shown)}."


def _say_excluded(found: FoundEntry) -> str:
    reasons = [f"{number:,} {REASONS.get(name, name)}" for name, number in found["excluded"].items() if number]
    return f" (left out: {'; '.join(reasons)})" if reasons else " (none left out)"


def _say_missing(document: Document) -> str:
    """Return what is left out for missing data, and what is held back."""
    flow = document.get("flow")
    found = None if flow is None else flow.get("found")
    known = (
        "Images left out are not known" if found is None else f"Images found {found['found']:,}{_say_excluded(found)}"
    )
    return f"{known}. Values of attributes that are not known count as 'unknown'. {_thresholds(document)}"


def _model(document: Document) -> str | None:
    name = _setting(document, "model", "name")
    return (
        None if name is None else f"Neural network {name}, trained by {count(document['rounds'], 'federated round')}."
    )


def _fairness(document: Document) -> str:
    tested = {name: found["flagged"] for name, found in document["findings"].items() if found["flagged"] is not None}
    if not tested:
        return "No gap between groups could be tested."
    return "Gaps tested between groups of " + ", ".join(
        f"{name} ({'flagged' if flagged else 'not flagged'})" for name, flagged in tested.items()
    )


def _performance(document: Document) -> str:
    figures = document["figures"]
    told = [_say(key, figures[key]) for key in ("balanced_accuracy", "accuracy", "auc", "ece") if key in figures]
    return f"{'; '.join(told)}; 95 % intervals in brackets. {_fairness(document)}."


def _sites(document: Document) -> str:
    told = [f"{name} {say_figure(site['test']['balanced_accuracy'])}" for name, site in document["sites"].items()]
    return f"Balanced accuracy by site: {'; '.join(told)}." if told else "No site was tested."


def _events(document: Document) -> str:
    classes = document["test_images"]["by_class"]
    return "Test images by class: " + ", ".join(f"{name} {number:,}" for name, number in classes.items()) + "."


def _heterogeneity(document: Document) -> str:
    """Return how differences between sites were measured; the figures themselves are another item's."""
    measured = "Every site's figures are shown with intervals, and how far its images differ"
    summary = document["benefit_summary"]
    if not any(summary.values()):
        return f"{measured}."
    told = ", ".join(f"{verdict} at {len(sites)}" for verdict, sites in summary.items())
    return f"{measured}. Against a model of the site's own images alone: {told}."


def _choice(document: Document) -> str:
    rule = label_rule(document["choose_by"])
    return f"Round {document['chosen_round']} of {document['rounds']}, by {rule} on validation images."


def _failures(document: Document) -> str | None:
    by_class = document["figures"]["sensitivity"].get("by_class", {})
    known = {name: entry for name, entry in by_class.items() if entry["value"] is not None}
    if not known:
        return None
    worst = min(known, key=lambda name: known[name]["value"] or 0.0)
    lowest = document["figures"].get("worst_class_recall", known[worst])  # its interval allows for the choice
    return f"Lowest sensitivity: {worst} {say_figure(lowest)}. Confusion by class and site is in the report."


def _calibration(document: Document) -> str:
    temperature = document["calibration"]["temperature"]
    return "No temperature." if temperature is None else f"One temperature of {temperature['temperature']:.3f}."


def _sample(document: Document) -> str:
    return f"{document['test_images']['total']:,} test images; whether the size was calculated before is not known."


def _thresholds(document: Document) -> str:
    thresholds = document["thresholds"]
    if max(thresholds["k"], thresholds["k_row"]) <= 1:
        return "No group was withheld for being small; what cannot be computed is n/a."
    return (
        f"Groups of fewer than {thresholds['k']} and classes of fewer than {thresholds['k_row']} "
        f"{thresholds.get('unit', 'patients or images')} are withheld; figures without them are n/a."
    )


def _setting_line(words: str, *path: str) -> Answer:
    def answer(document: Document) -> str | None:
        value = _setting(document, *path)
        return None if value is None else f"{words}: {value}."

    return answer


def _constant(text: str) -> Answer:
    return lambda _: text


ANSWERS: Mapping[str, Answer] = {
    "title": lambda document: document["title"],
    "objective": _constant("Development in a federation, and internal evaluation on test images of the same sites."),
    "sources": lambda document: (
        "Synthetic phantom images." if document["synthetic"] else f"Images of {count(len(document['sites']), 'site')}."
    ),
    "centres": lambda document: f"{count(len(document['sites']), 'site')}: {', '.join(document['sites'])}.",
    "preparation": _setting_line("Images are scaled to this side in pixels", "data", "image_size"),
    "outcome": lambda document: f"Classes: {', '.join(document['classes'])}. How they were assessed is not known.",
    "predictors": _constant("The image alone."),
    "sample_size": _sample,
    "missing": _say_missing,
    "partitions": _flow,
    "disjoint": _constant("By the ids of a site's data, of patients or lesions, where it has them, else by image."),
    "model": _model,
    "heterogeneity": _heterogeneity,
    "measures": lambda document: ", ".join(label_figure(key) for key in document["figures"]) + ".",
    "updating": _calibration,
    "predictions": _constant("By each site on its own test images, with the model of the chosen round, once."),
    "imbalance": _setting_line("Terms of the loss", "loss"),
    "fairness": _fairness,
    "output": _constant("A probability for each class; the class with the largest one is the prediction."),
    "same_sites": _constant("Test images are of the sites that trained: no external evaluation."),
    "deidentification": _constant("How images were de-identified is not known; they stay at the sites."),
    "data_stay": _constant("Images stay at the sites; the server gets counts, sums and model updates."),
    "code": lambda document: f"fedmed; versions and hardware are in the report's appendix. Seed {document['seed']}.",
    "flow": _flow,
    "characteristics": lambda document: (
        "Groups compared: " + "; ".join(f"{name}: {', '.join(own)}" for name, own in document["groups"].items()) + "."
        if document["groups"]
        else None
    ),
    "comparison": lambda document: (
        "Images by class, part and site are in the report." if document["composition"] else None
    ),
    "events": _events,
    "specification": _constant("The exported model folder holds the network; the report holds its settings."),
    "performance": _performance,
    "site_performance": _sites,
    "limitations": lambda document: " ".join([_thresholds(document), *document["notes"]]),
    "initial": _setting_line("Weights at the start", "model", "weights"),
    "training": lambda document: f"{count(document['rounds'], 'round')}; all settings are in the report's appendix.",
    "choice": _choice,
    "ensemble": _constant("None; one network."),
    "uncertainty": _constant("95 % intervals of every figure; tests between groups against chance."),
    "parts_performance": lambda document: (
        f"Validation: {_say('balanced_accuracy', document['validation']['balanced_accuracy'])}. "
        f"Test: {_say('balanced_accuracy', document['figures']['balanced_accuracy'])}."
    ),
    "failures": _failures,
}
