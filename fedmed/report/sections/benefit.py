"""The page's part on benefit: whether each hospital is better off with the federated model."""

from collections.abc import Sequence, Set

from fedmed.report.drawing.markup import Numbers, escape, render_fold, render_section, render_table, show_name
from fedmed.report.drawing.wording import MODEL_EXPLANATIONS, MODEL_NAMES, VERDICTS, count, label_figure
from fedmed.report.schema.figures import BenefitEntry, DifferenceEntry
from fedmed.report.sections.forest import ForestRow, render_forest

MOST_NAMED = 5
SHOWN_SITES = 20
NAMED_VERDICTS = {
    "worse": 'The federated model is <strong class="flag">worse than the site\'s own model</strong> at',
    "better": "It is <strong>better than the site's own model</strong> at",
    "undecided": "The difference may be chance (<strong>undecided</strong>) at",
    "unknown": "There is <strong>no comparison</strong> of",
}
_UNDECIDED_HINT = " An undecided site may be better or worse off; its test images are too few to tell."
_CHANCE_HINT = (
    "Each site is judged by itself, by the interval of the difference and by a test at 5 %: where the models are "
    "equally good, about one site in twenty is still called better or worse by chance."
)


def render_benefit(numbers: Numbers) -> str:
    """Return the section on benefit, or nothing where the run compared nothing."""
    benefit = numbers.get("benefit")
    if not benefit:
        return ""
    ranked = rank_benefit(numbers)
    return render_section(
        "benefit",
        "Is each hospital better off?",
        f"<p>{say_benefit(numbers)}</p>",
        f'<ul class="findings">{_list_findings(numbers)}</ul>',
        f"<p>{_explain(numbers)} {_CHANCE_HINT}</p>",
        _render_differences(numbers, ranked),
        _render_models(numbers, ranked),
        _render_personalised(numbers, ranked),
    )


def rank_benefit(numbers: Numbers) -> list[str]:
    """Return the sites by verdict, the worse ones first, and within a verdict the largest loss first."""
    return [name for verdict in VERDICTS for name in _rank_within(numbers, verdict)]


def _rank_within(numbers: Numbers, verdict: str) -> list[str]:
    def loss(name: str) -> tuple[float, str]:
        difference = _deciding(numbers, name)
        return (0.0 if difference is None else difference["value"] or 0.0), name

    return sorted(numbers.get("benefit_summary", verdict), key=loss)


def _deciding(numbers: Numbers, site: str) -> DifferenceEntry | None:
    """Return the difference from local-only on which a site's verdict rests."""
    entry: BenefitEntry = numbers.get("benefit", site)
    key = entry["decided_by"]
    return None if key is None else entry["differences"]["local"][key]


def say_benefit(numbers: Numbers) -> str:
    """Return in one sentence at how many sites the federated model is worse, better and undecided, worse first."""
    summary = numbers.get("benefit_summary")
    if not numbers.get("benefit"):
        return ""
    known = sum(len(summary[verdict]) for verdict in ("worse", "better", "undecided"))
    if known == 0:
        return "Whether the sites are better off than with models of their own is not known: none has compared them."
    named = [show_name(name) for name in _rank_within(numbers, "worse")]
    more = f" and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
    worse = f" ({', '.join(named[:MOST_NAMED])}{more})" if named else ""
    missing = f"; {count(len(summary['unknown']), 'site')} without a comparison" if summary["unknown"] else ""
    return (
        "Compared with a model trained on the site's own images alone, the federated model is "
        f"<strong>worse at {len(summary['worse'])} of {count(known, 'site')}</strong>{worse}, better at "
        f"{len(summary['better'])} and undecided at {len(summary['undecided'])}{missing}."
    )


def _list_findings(numbers: Numbers) -> str:
    items = []
    for verdict, opening in NAMED_VERDICTS.items():
        names = _rank_within(numbers, verdict)
        if not names:
            continue
        told = [_say_site(numbers, name) for name in names[:MOST_NAMED]]
        if len(names) > MOST_NAMED:
            told.append(f"and {count(len(names) - MOST_NAMED, 'further site')} in the table below")
        hint = _UNDECIDED_HINT if verdict == "undecided" else ""
        items.append(f"<li>{opening} {count(len(names), 'site')}: {'; '.join(told)}.{hint}</li>")
    return "".join(items + _list_personalised_findings(numbers))


def _say_site(numbers: Numbers, site: str) -> str:
    entry: BenefitEntry = numbers.get("benefit", site)
    key = entry["decided_by"]
    if key is None:
        return f"{show_name(site)} ({escape(entry['reason'])})"
    path = ("benefit", site, "differences", "local", key)
    values = [numbers.figure("benefit", site, "models", model, key) for model in ("federated", "local")]
    interval = numbers.interval(*path, signed=True)
    return (
        f"{show_name(site)} ({label_figure(key).lower()} {values[0]} against {values[1]} for local-only, difference "
        f"{numbers.show_signed(*path, 'value')}"
        + (f", 95 % interval {interval}" if interval else "")
        + f", {numbers.show('benefit', site, 'differences', 'local', key, 'n')} images)"
    )


def _list_personalised_findings(numbers: Numbers) -> list[str]:
    """Return for each personalised form at how many sites it beats the model as it is released, and the reverse."""
    items = []
    for model in ("batch_norm", "fine_tuned"):
        verdicts = [verdict for _, verdict in _list_verdicts(numbers, model)]
        if not verdicts:
            continue
        # The difference is federated minus personalised, so "worse" means that personalising helps.
        helps, hurts = verdicts.count("worse"), verdicts.count("better")
        items.append(
            f"<li>Personalised by {_name_method(model)}, the model does better than as it is released at "
            f"{helps} of {count(len(verdicts), 'site')}, worse at {hurts}, undecided at "
            f"{len(verdicts) - helps - hurts}.</li>"
        )
    return items


def _name_method(model: str) -> str:
    return "BatchNorm statistics of the site" if model == "batch_norm" else "fine-tuning at the site"


def _list_verdicts(numbers: Numbers, model: str) -> list[tuple[str, str]]:
    found = []
    for site, entry in numbers.get("benefit").items():
        differences = entry["differences"].get(model, {})
        known = [value["verdict"] for value in differences.values() if value["value"] is not None]
        if known:
            found.append((site, known[0]))
    return found


def _explain(numbers: Numbers) -> str:
    shown = {model for entry in numbers.get("benefit").values() for model in entry["models"]}
    terms = " ".join(f"{MODEL_NAMES[model]} is {MODEL_EXPLANATIONS[model]}." for model in MODEL_NAMES if model in shown)
    return f"All models of a site answer the same test images of that site. {terms}{_say_calibration(numbers, shown)}"


def _say_calibration(numbers: Numbers, shown: Set[str]) -> str:
    """Return what must not be compared where one side alone has a temperature."""
    if numbers.get("calibration", "temperature") is None or shown <= {"federated"}:
        return ""
    return (
        " Their calibration is not compared here: only the federated model has a temperature. What report.json says of "
        "the calibration of the others is without one."
    )


def _render_differences(numbers: Numbers, ranked: Sequence[str]) -> str:
    rows = []
    for site in ranked:
        key = numbers.get("benefit", site, "decided_by")
        verdict = numbers.get("benefit", site, "verdict")
        if key is None:
            rows.append(ForestRow(show_name(site), [VERDICTS[verdict], "", "n/a"], None))
            continue
        path = ("benefit", site, "differences", "local", key)
        css = ' class="flag"' if verdict == "worse" else ""
        cells = [
            f"<strong{css}>{VERDICTS[verdict]}</strong>",
            numbers.show(*path, "n"),
            f"{numbers.show_signed(*path, 'value')}{numbers.interval(*path, signed=True)}"
            f'<span class="interval">{numbers.show_chance(*path, "p_value")}</span>',
        ]
        rows.append(ForestRow(show_name(site), cells, numbers.get(*path)))
    caption = (
        "Federated minus local-only, on the same test images, with 95 % intervals: right of the dashed zero the "
        "federated model is better, left of it worse. The figure is balanced accuracy, or accuracy where that is n/a."
    )
    columns = ["Site", "Federated is", "Images", "Difference", "Drawn"]
    shown = render_forest(caption, columns, [("", rows[:SHOWN_SITES])], 0.0)
    if len(rows) > SHOWN_SITES:
        rest = render_forest(caption, columns, [("", rows[SHOWN_SITES:])], 0.0)
        shown += render_fold(f"The other {count(len(rows) - SHOWN_SITES, 'site')}", rest)
    return f"<h3>Federated against local-only</h3>\n{shown}"


def _render_models(numbers: Numbers, ranked: Sequence[str]) -> str:
    shown = [name for name in ranked if numbers.get("benefit", name, "models")]
    if not shown:
        return ""
    tables = [_list_models(numbers, shown[:SHOWN_SITES])]
    if len(shown) > SHOWN_SITES:
        rest = _list_models(numbers, shown[SHOWN_SITES:])
        tables.append(render_fold(f"The other {count(len(shown) - SHOWN_SITES, 'site')}", rest))
    return "<h3>All models at every site</h3>\n" + "\n".join(tables)


def _list_models(numbers: Numbers, names: Sequence[str]) -> str:
    models = [model for model in MODEL_NAMES if any(model in numbers.get("benefit", name, "models") for name in names)]
    rows = []
    for name in names:
        own = numbers.get("benefit", name, "models")
        cells = [
            numbers.figure_and_interval("benefit", name, "models", model, "balanced_accuracy", drawn=True)
            if model in own
            else "n/a"
            for model in models
        ]
        images = numbers.show("benefit", name, "models", "federated", "accuracy", "n")
        rows.append([show_name(name), images, *cells, VERDICTS[numbers.get("benefit", name, "verdict")]])
    caption = "Balanced accuracy of each model on the site's test images; 95 % intervals, scales from 0 to 1."
    columns = ["Site", "Images", *(MODEL_NAMES[model] for model in models), "Federated is"]
    return render_table(caption, columns, rows)


def _render_personalised(numbers: Numbers, ranked: Sequence[str]) -> str:
    models = [model for model in ("batch_norm", "fine_tuned") if _list_verdicts(numbers, model)]
    if not models:
        return ""
    rows = [
        [show_name(name), *(_show_difference(numbers, name, model) for model in models)]
        for name in ranked
        if any(model in numbers.get("benefit", name, "differences") for model in models)
    ]
    caption = (
        "Federated as it is released minus personalised, balanced accuracy on the same test images, with 95 % "
        "intervals. A negative difference: personalising helps."
    )
    columns = ["Site", *(f"Against {MODEL_NAMES[model]}" for model in models)]
    table = render_table(caption, columns, rows)
    return render_fold("Differences from the personalised models", table)


def _show_difference(numbers: Numbers, site: str, model: str) -> str:
    path = ("benefit", site, "differences", model, "balanced_accuracy")
    if model not in numbers.get("benefit", site, "differences"):
        return "n/a"
    difference: DifferenceEntry = numbers.get(*path)
    if difference["value"] is None:
        return f"n/a ({escape(difference['reason'])})"
    words = {"worse": "personalising helps", "better": "personalising harms", "undecided": "undecided"}
    chance = f'<span class="interval">{numbers.show_chance(*path, "p_value")}</span>'
    shown = f"{numbers.show_signed(*path, 'value')}{numbers.interval(*path, signed=True)}{chance}"
    return f"{shown}{words[difference['verdict']]}"
