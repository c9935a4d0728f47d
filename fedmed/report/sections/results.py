"""The findings: summary, headline figures, classes and sites."""

from fedmed.fairness.figures.ordinal import ORDINAL_FIGURES
from fedmed.report.drawing.markup import (
    Numbers,
    escape,
    format_number,
    render_fold,
    render_section,
    render_table,
    show_name,
)
from fedmed.report.drawing.wording import (
    HEADLINE,
    SUBSET_FIGURES,
    count,
    label_attribute,
    label_figure,
    label_rule,
    name_direction,
)
from fedmed.report.schema.figures import FigureEntry
from fedmed.report.sections.benefit import say_benefit
from fedmed.report.sections.fairness_findings import say_fairness

CLASS_FIGURES = {
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "macro_precision": "Precision",
    "macro_f1": "F1",
    "auc": "AUC",
}
SHOWN_SITES = 20
SHOWN_AT_EACH_END = 6


def render_summary(numbers: Numbers) -> str:
    """Return the findings in plain language: first the model, then groups and sites."""
    sentences = [
        _say_choice(numbers),
        _say_pooled(numbers),
        _say_weakest_class(numbers),
        _say_sites(numbers),
        _say_participation(numbers),
    ]
    groups = [say_fairness(numbers), say_benefit(numbers)]
    return "\n".join(
        f'<p class="summary">{" ".join(sentence for sentence in paragraph if sentence)}</p>'
        for paragraph in (sentences, groups)
        if any(paragraph)
    )


def _say_choice(numbers: Numbers) -> str:
    if numbers.get("groups") and numbers.get("fairness_part") == "validation":
        return (
            f"The run is still going on. Round {numbers.show('chosen_round')} is the last one that is done; groups are "
            "compared on its validation images, and the test images are scored at the end."
        )
    if numbers.get("rounds") == 1:
        return "The run has one round; its model was scored once on the test images."
    return (
        f"Of {numbers.show('rounds')} rounds, round {numbers.show('chosen_round')} was chosen by {_name_rule(numbers)} "
        "on the validation images; its model was then scored once on the test images."
    )


def _name_rule(numbers: Numbers) -> str:
    rule = numbers.get("choose_by")
    if rule == numbers.get("course_figure"):
        return f"its pooled {label_rule(rule)}"
    return f"the {label_rule(rule)} (by {escape(label_attribute(numbers.get('choose_attribute')))})"


def _say_pooled(numbers: Numbers) -> str:
    figure: FigureEntry = numbers.get("figures", "balanced_accuracy")
    if figure["value"] is None:
        return f"Its balanced accuracy is n/a ({escape(figure['reason'])})."
    sites = sum(site["test"]["accuracy"]["n"] > 0 for site in numbers.get("sites").values())
    chance = format_number(1 / len(numbers.get("classes")), 2)
    interval = numbers.interval("figures", "balanced_accuracy")
    return (
        f"On {numbers.show('figures', 'balanced_accuracy', 'n')} test images of {count(sites, 'site')} it reaches a "
        f"balanced accuracy of <strong>{numbers.figure('figures', 'balanced_accuracy')}</strong>"
        + (f" (95 % interval {interval})" if interval else "")
        + f"; guessing would give {chance}."
    )


def _say_weakest_class(numbers: Numbers) -> str:
    by_class = numbers.get("figures", "sensitivity").get("by_class", {})
    known = {name: entry["value"] for name, entry in by_class.items() if entry["value"] is not None}
    if not known:
        return ""
    name = min(known, key=lambda item: known[item])
    path = ("figures", "sensitivity", "by_class", name)
    return (
        f"The class that is recognised least often is {show_name(name)} (sensitivity {numbers.figure(*path)}, "
        f"{numbers.show('test_images', 'by_class', name)} images)."
    )


def _say_sites(numbers: Numbers) -> str:
    ranked = [name for name in rank_sites(numbers) if _site_value(numbers, name) is not None]
    if len(ranked) < 2:
        return ""
    best, worst = (
        f"{show_name(name)} ({numbers.figure('sites', name, 'test', 'balanced_accuracy')}, "
        f"{numbers.show('sites', name, 'test', 'balanced_accuracy', 'n')} images)"
        for name in (ranked[0], ranked[-1])
    )
    return (
        f"Among the sites, balanced accuracy is highest at {best} and lowest at {worst}; part of such a difference is "
        "chance, and more so the fewer images a site has."
    )


def _say_participation(numbers: Numbers) -> str:
    sites = numbers.get("participation", "sites")
    missed = sum(site["missed_rounds"] > 0 for site in sites.values())
    if not sites:
        return ""
    if missed == 0:
        return "Every site took part in every round." if len(sites) > 1 else "The site took part in every round."
    return f"{missed:,} of {count(len(sites), 'site')} missed at least one round."


def _site_value(numbers: Numbers, site: str) -> float | None:
    value: float | None = numbers.get("sites", site, "test", "balanced_accuracy", "value")
    return value


def rank_sites(numbers: Numbers) -> list[str]:
    """Return the sites by balanced accuracy on test, the best first and those without a value last."""

    def order(name: str) -> tuple[bool, float, str]:
        value = _site_value(numbers, name)
        return value is None, -(value or 0.0), name

    return sorted(numbers.get("sites"), key=order)


def render_headline(numbers: Numbers) -> str:
    """Return the table of the pooled test figures of the chosen model."""
    figures = numbers.get("figures")
    first = [key for key in HEADLINE if key in figures]
    rest = [key for key in figures if key not in HEADLINE and key not in ORDINAL_FIGURES]
    return render_section(
        "results",
        "Results on the test images",
        _render_figures(numbers, first, "Pooled over all sites; 95 % intervals."),
        render_fold("Further figures", _render_figures(numbers, rest, "Further pooled figures; 95 % intervals."))
        if rest
        else "",
    )


def _render_figures(numbers: Numbers, keys: list[str], caption: str) -> str:
    rows = [
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
    return render_table(caption, columns, rows, "figures")


def say_how(figure: FigureEntry) -> str:
    """Return how an AUC was computed, in brackets; nothing for other figures."""
    if figure.get("within_sites"):
        return " (within sites)"
    bound = figure.get("bound")
    return "" if bound is None else f" (at most {format_number(bound, 3)} off)"


def render_classes(numbers: Numbers) -> str:
    """Return the table of figures by class."""
    rows = [
        [
            show_name(name),
            numbers.show("test_images", "by_class", name),
            *(
                numbers.figure_and_interval("figures", key, "by_class", name, drawn=key == "sensitivity")
                for key in CLASS_FIGURES
            ),
        ]
        for name in numbers.get("classes")
    ]
    columns = ["Class", "Test images", *CLASS_FIGURES.values()]
    caption = "Each class against all others, pooled over all sites, with 95 % intervals; the scales go from 0 to 1."
    if numbers.get("figures", "auc").get("within_sites"):
        caption += " AUC within sites."
    return render_section("classes", "Results by class", render_table(caption, columns, rows))


def render_sites(numbers: Numbers) -> str:
    """Return the table of figures by site; of many sites the best and the worst, and the rest folded away."""
    ranked = rank_sites(numbers)
    if len(ranked) <= SHOWN_SITES:
        tables = [_render_site_rows(numbers, ranked, "All sites, the best balanced accuracy first.")]
    else:
        top, middle, bottom = split_ends(ranked, SHOWN_AT_EACH_END)
        tables = [
            _say_spread(numbers, ranked),
            _render_site_rows(numbers, top, f"The {len(top)} sites with the highest balanced accuracy."),
            _render_site_rows(
                numbers, bottom, f"The {len(bottom)} sites with the lowest balanced accuracy, or without one."
            ),
            render_fold(
                f"The other {count(len(middle), 'site')}",
                _render_site_rows(numbers, middle, "The other sites, the best balanced accuracy first."),
            ),
        ]
    return render_section("sites", "Results by site", *tables)


def split_ends(names: list[str], size: int) -> tuple[list[str], list[str], list[str]]:
    """Return the first ``size`` names, those between, and the last ``size``."""
    return names[:size], names[size:-size], names[-size:]


def _say_spread(numbers: Numbers, ranked: list[str]) -> str:
    known = [name for name in ranked if _site_value(numbers, name) is not None]
    if not known:
        return ""
    places = [(len(known) - 1) * quarter // 4 for quarter in range(5)]
    shown = [numbers.figure("sites", known[place], "test", "balanced_accuracy") for place in places]
    names = ("highest", "upper quarter", "median", "lower quarter", "lowest")
    listed = ", ".join(f"{name} {value}" for name, value in zip(names, shown, strict=True))
    return f"<p>Balanced accuracy of {count(len(known), 'site')}: {listed}.</p>"


def _render_site_rows(numbers: Numbers, names: list[str], caption: str) -> str:
    rows = [_render_site(numbers, name) for name in names]
    columns = ["Site", "Train images", "Test images", *SUBSET_FIGURES.values()]
    return render_table(f"{caption} With 95 % intervals; the scales go from 0 to 1.", columns, rows)


def _render_site(numbers: Numbers, name: str) -> list[str]:
    return [
        show_name(name),
        numbers.show("sites", name, "train_images"),
        numbers.show("sites", name, "test", "accuracy", "n"),
        *(
            numbers.figure_and_interval("sites", name, "test", key, drawn=key == "balanced_accuracy")
            for key in SUBSET_FIGURES
        ),
    ]
