"""The findings: summary, headline figures, classes and sites."""

from collections.abc import Mapping

from fedmed.fairness.figures.ordinal import ORDINAL_FIGURES
from fedmed.report.drawing.markup import Cell, Numbers, Rows, Table, format_number, show_name
from fedmed.report.drawing.wording import (
    HEADLINE,
    LIKE,
    SAME_CLASSES,
    SUBSET_FIGURES,
    count,
    label_attribute,
    label_figure,
    label_rule,
    name_direction,
)
from fedmed.report.schema.document import SiteEntry
from fedmed.report.schema.figures import ClassFigure, FigureEntry
from fedmed.report.sections.benefit import summarise_benefit
from fedmed.report.sections.fairness_findings import summarise_fairness
from fedmed.report.sections.method import is_coarse
from fedmed.report.sections.patients import has_patients, head_ids, show_patients
from fedmed.report.sections.pooled_auc import describe_pooled_auc
from fedmed.report.sections.values import Values

CLASS_FIGURES = {
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "macro_precision": "Precision",
    "macro_f1": "F1",
    "auc": "AUC",
}
SHOWN_SITES = 20
SHOWN_AT_EACH_END = 6


def describe_summary(numbers: Numbers) -> Values:
    """Return what the findings in plain language need: first the model, then groups and sites."""
    ranked = [name for name in rank_sites(numbers) if _site_value(numbers, name) is not None]
    participants = numbers.get("participation", "sites")
    weakest = find_weakest_classes(numbers)
    return {
        "going_on": bool(numbers.get("groups")) and numbers.get("fairness_part") == "validation",
        "rule": _name_rule(numbers),
        "pooled": numbers.get("figures", "balanced_accuracy"),
        "num_sites": count(sum(_count_tested(site) > 0 for site in numbers.get("sites").values()), "site"),
        "chance": format_number(1 / len(numbers.get("classes")), 2),
        "weakest": weakest[0] if weakest else None,
        "as_weak": weakest[1:],
        "of_told": _lacks_class(numbers),
        "ends": (ranked[0], ranked[-1]) if is_ranked(numbers) and _differ(numbers, ranked) else None,
        "num_participants": len(participants),
        "num_missed": sum(site["missed_rounds"] > 0 for site in participants.values()),
        "fairness": summarise_fairness(numbers),
        "benefit": summarise_benefit(numbers),
    }


def _count_tested(site: SiteEntry) -> int:
    return site["test"]["accuracy"]["n"] or 0


def _differ(numbers: Numbers, ranked: list[str]) -> bool:
    return len(ranked) > 1 and _site_value(numbers, ranked[0]) != _site_value(numbers, ranked[-1])


def _lacks_class(numbers: Numbers) -> bool:
    """Return whether the sensitivity of some class is not known, which may be lower than all that are."""
    by_class = numbers.get("figures", "sensitivity").get("by_class", {})
    return any(entry["value"] is None for entry in by_class.values())


def find_weakest_classes(numbers: Numbers) -> list[str]:
    """Return the class with the lowest sensitivity on the test images, and others that have the same."""
    by_class = numbers.get("figures", "sensitivity").get("by_class", {})
    known = {name: entry["value"] for name, entry in by_class.items() if entry["value"] is not None}
    return [name for name, value in known.items() if value == min(known.values())]


def _name_rule(numbers: Numbers) -> str:
    rule = numbers.get("choose_by")
    if rule == numbers.get("course_figure"):
        return f"its pooled {label_rule(rule)}"
    return f"the {label_rule(rule)} (by {label_attribute(numbers.get('choose_attribute'))})"


def _site_value(numbers: Numbers, site: str) -> float | None:
    value: float | None = numbers.get("sites", site, "test", "balanced_accuracy", "value")
    return value


def is_ranked(numbers: Numbers) -> bool:
    """Return whether the balanced accuracies of all sites are over the same classes, so that sites can be ranked.

    Sites that tell or have images of different classes are compared over those that all have, in the part on groups.
    """
    tested = [site["test"] for site in numbers.get("sites").values()]
    if any("over_classes" in figures["balanced_accuracy"] for figures in tested):
        return False
    known = [figures for figures in tested if figures["balanced_accuracy"]["value"] is not None]
    classes = {tuple(_list_told(figures["sensitivity"].get("by_class", {}))) for figures in known}
    return len(classes) < 2


def _list_told(by_class: Mapping[str, ClassFigure]) -> list[str]:
    return [name for name, entry in by_class.items() if entry["value"] is not None]


def say_order(numbers: Numbers) -> str:
    """Return in which order :func:`rank_sites` has the sites, to end a caption with."""
    return "the best balanced accuracy first" if is_ranked(numbers) else "by name, since they tell different classes"


def rank_sites(numbers: Numbers) -> list[str]:
    """Return the sites by balanced accuracy on test, the best first and those without a value last.

    By name where these are over different classes.
    """
    if not is_ranked(numbers):
        return sorted(numbers.get("sites"))

    def order(name: str) -> tuple[bool, float, str]:
        value = _site_value(numbers, name)
        return value is None, -(value or 0.0), name

    return sorted(numbers.get("sites"), key=order)


def describe_results(numbers: Numbers) -> Values:
    """Return the pooled test figures of the chosen model."""
    figures = numbers.get("figures")
    first = [key for key in HEADLINE if key in figures]
    rest = [key for key in figures if key not in HEADLINE and key not in ORDINAL_FIGURES]
    return {
        "first": _list_figures(numbers, first, "Pooled over all sites; 95 % intervals."),
        "rest": _list_figures(numbers, rest, "Further pooled figures; 95 % intervals.") if rest else None,
        "pooled_auc": describe_pooled_auc(numbers),
    }


def _list_figures(numbers: Numbers, keys: list[str], caption: str) -> Table:
    rows: Rows = [
        [
            label_figure(key) + say_how(numbers.get("figures", key)),
            numbers.figure("figures", key),
            numbers.interval("figures", key),
            numbers.show("figures", key, "n"),
            name_direction(numbers.get("figures", key, "better")),
            numbers.strip("figures", key, largest=2.0 if key == "brier" else 1.0),
        ]
        for key in keys
    ]
    columns = ["Figure", "Value", "95 % interval", "Images", "Direction", "0 to 1 (Brier 0 to 2)"]
    return Table(caption, columns, rows, "figures")


def say_how(figure: FigureEntry) -> str:
    """Return how an AUC was computed, in brackets; nothing for other figures."""
    if figure.get("within_sites"):
        return " (within sites)"
    bound = figure.get("bound")
    return "" if bound is None else f" (at most {format_number(bound, 3)} off)"


def describe_classes(numbers: Numbers) -> Values:
    """Return the figures by class."""
    with_patients = has_patients(numbers) and numbers.get("flow", "patients", "part") == "test"
    rows: Rows = [
        [
            show_name(name),
            numbers.show("test_images", "by_class", name),
            *([show_patients(numbers, "by_class", name)] if with_patients else []),
            *(
                numbers.figure_and_interval("figures", key, "by_class", name, drawn=key == "sensitivity")
                for key in CLASS_FIGURES
            ),
        ]
        for name in numbers.get("classes")
    ]
    columns = ["Class", "Test images", *([head_ids(numbers)] if with_patients else []), *CLASS_FIGURES.values()]
    caption = "Each class against all others, pooled over all sites, with 95 % intervals; the scales go from 0 to 1."
    if is_coarse(numbers):
        caption += " Test images: those whose class the sites tell."
    if numbers.get("figures").get("worst_class_recall", {}).get("interval") is not None:
        caption += (
            " The interval of a class is for this class alone; that of the class that does worst is wider on the first "
            "page, since any class could have been named there and it holds for all at once."
        )
    if numbers.get("figures", "auc").get("within_sites"):
        caption += " AUC within sites."
    return {"table": Table(caption, columns, rows)}


def describe_sites(numbers: Numbers) -> Values:
    """Return the figures by site; of many sites the best and the worst, and the rest folded away."""
    ranked = rank_sites(numbers)
    if len(ranked) <= SHOWN_SITES:
        caption = f"All sites, {say_order(numbers)}."
        return {"spread": None, "tables": [_list_sites(numbers, ranked, caption)], "folded": None, "rest": ""}
    if not is_ranked(numbers):
        first, rest = ranked[:SHOWN_SITES], ranked[SHOWN_SITES:]
        return {
            "spread": None,
            "tables": [_list_sites(numbers, first, f"The first {SHOWN_SITES} sites, {say_order(numbers)}.")],
            "folded": _list_sites(numbers, rest, "The other sites, by name."),
            "rest": f"The other {count(len(rest), 'site')}",
        }
    top, middle, bottom = split_ends(ranked, SHOWN_AT_EACH_END)
    return {
        "spread": _list_spread(numbers, ranked),
        "tables": [
            _list_sites(numbers, top, f"The {len(top)} sites with the highest balanced accuracy."),
            _list_sites(numbers, bottom, f"The {len(bottom)} sites with the lowest balanced accuracy, or without one."),
        ],
        "folded": _list_sites(numbers, middle, "The other sites, the best balanced accuracy first."),
        "rest": f"The other {count(len(middle), 'site')}",
    }


def split_ends(names: list[str], size: int) -> tuple[list[str], list[str], list[str]]:
    """Return the first ``size`` names, those between, and the last ``size``."""
    return names[:size], names[size:-size], names[-size:]


def _list_spread(numbers: Numbers, ranked: list[str]) -> Values | None:
    """Return how many sites have a balanced accuracy, and highest, quartiles and lowest of it."""
    known = [name for name in ranked if _site_value(numbers, name) is not None]
    if not known:
        return None
    places = [(len(known) - 1) * quarter // 4 for quarter in range(5)]
    names = ("highest", "upper quarter", "median", "lower quarter", "lowest")
    return {
        "sites": count(len(known), "site"),
        "places": [(name, known[place]) for name, place in zip(names, places, strict=True)],
    }


def _list_sites(numbers: Numbers, names: list[str], caption: str) -> Table:
    patients = [head_ids(numbers)] if has_patients(numbers) else []
    columns = ["Site", "Train images", "Test images", *patients, *SUBSET_FIGURES.values()]
    rows = [_list_site(numbers, name) for name in names]
    if not is_ranked(numbers):
        caption += SAME_CLASSES
    if is_coarse(numbers) and has_patients(numbers):
        caption += f" {head_ids(numbers)}: of the test images whose class is told."
    return Table(f"{caption} With 95 % intervals; the scales go from 0 to 1.", columns, rows)


def _list_site(numbers: Numbers, name: str) -> list[Cell]:
    return [
        show_name(name),
        numbers.show("sites", name, "train_images"),
        numbers.show("sites", name, "test", "accuracy", "n"),
        *([show_patients(numbers, "sites", name)] if has_patients(numbers) else []),
        *(
            numbers.figure_and_interval(
                "sites", name, "test", key, drawn=key == "balanced_accuracy", like=LIKE.get(key, "")
            )
            for key in SUBSET_FIGURES
        ),
    ]
