"""The page's part on benefit: whether each hospital is better off with the federated model."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from fedmed.metrics.site_tables import FEDERATED
from fedmed.report.drawing.forest import ForestRow, render_forest
from fedmed.report.drawing.markup import Cell, Numbers, Table, join, show_name
from fedmed.report.drawing.templates import fill, render_macro
from fedmed.report.drawing.wording import MODEL_EXPLANATIONS, MODEL_NAMES, VERDICTS, count, label_figure
from fedmed.report.figures.benefit import DECIDING_FIGURES, UNKNOWN_VERDICT, decide
from fedmed.report.schema.figures import BenefitEntry, DifferenceEntry
from fedmed.report.sections.patients import has_patients
from fedmed.report.sections.values import Values

MOST_NAMED = 5
SHOWN_SITES = 20
FEWEST_PATIENTS = 6
"""Of fewer, no test that flips the signs of whole patients can come out below 5 %."""
PERSONALISED = {"batch_norm": "BatchNorm statistics of the site", "fine_tuned": "fine-tuning at the site"}


def describe_benefit(numbers: Numbers) -> Values | None:
    """Return the section on benefit, None where the run compared nothing."""
    benefit = numbers.get("benefit")
    if not benefit:
        return None
    ranked = rank_benefit(numbers)
    shown = {model for entry in benefit.values() for model in entry["models"]}
    with_models = [name for name in ranked if numbers.get("benefit", name, "models")]
    return {
        "summary": summarise_benefit(numbers),
        "findings": [finding for verdict in VERDICTS if (finding := _list_finding(numbers, verdict)) is not None],
        "personalised": [found for model in PERSONALISED if (found := _count_personalised(numbers, model)) is not None],
        "disagree": any(entry.get("disagree", False) for entry in benefit.values()),
        "pooled": [key for key, entry in _pooled(numbers).items() if entry["value"] is not None],
        "terms": [(MODEL_NAMES[model], MODEL_EXPLANATIONS[model]) for model in MODEL_NAMES if model in shown],
        # Only the federated model has a temperature.
        "with_temperature": numbers.get("calibration", "temperature") is not None and not shown <= {"federated"},
        "differences": [_draw_differences(numbers, part) for part in _split(ranked)],
        "models": [_list_models(numbers, part) for part in _split(with_models)],
        "rest": count(len(ranked) - SHOWN_SITES, "site"),
        "rest_with_models": count(len(with_models) - SHOWN_SITES, "site"),
        "against_personalised": _list_personalised(numbers, ranked),
    }


def _split(names: Sequence[str]) -> list[Sequence[str]]:
    """Return the first sites and, of many, the rest to fold away."""
    return [part for part in (names[:SHOWN_SITES], names[SHOWN_SITES:]) if part]


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


def summarise_benefit(numbers: Numbers) -> Values | None:
    """Return at how many sites the federated model is worse, better and undecided, None where nothing was compared."""
    if not numbers.get("benefit"):
        return None
    summary = numbers.get("benefit_summary")
    known = sum(len(summary[verdict]) for verdict in ("worse", "better", "undecided"))
    unknown = len(summary["unknown"])
    return {
        "known": known,
        "known_sites": count(known, "site"),
        "worse": _rank_within(numbers, "worse"),
        "most": MOST_NAMED,
        "num_better": len(summary["better"]),
        "num_undecided": len(summary["undecided"]),
        "unknown_sites": count(unknown, "site") if unknown else "",
    }


def _list_finding(numbers: Numbers, verdict: str) -> Values | None:
    names = _rank_within(numbers, verdict)
    if not names:
        return None
    more = len(names) - MOST_NAMED
    return {
        "verdict": verdict,
        "sites": count(len(names), "site"),
        "named": [_describe_site(numbers, name) for name in names[:MOST_NAMED]],
        "more": count(more, "further site") if more > 0 else "",
    }


def _describe_site(numbers: Numbers, site: str) -> Values:
    entry: BenefitEntry = numbers.get("benefit", site)
    key = entry["decided_by"]
    if key is None:
        return {"name": site, "reason": entry["reason"]}
    own = entry["differences"]["local"]
    return {
        "name": site,
        "reason": None,
        "shown": [
            {"key": shown, "label": label_figure(shown).lower(), "decides": shown == key}
            for shown in ("balanced_accuracy", "accuracy")
            if shown in own and own[shown]["value"] is not None
        ],
        "disagree": entry.get("disagree", False),
        "classes": [name for name, images in entry.get("images_by_class", {}).items() if images],
        "with_patients": has_patients(numbers) and "patients" in entry,
        "few_patients": has_few_patients(entry),
    }


def has_few_patients(entry: BenefitEntry) -> bool:
    """Return whether a site's patients with several images are so few that no difference can be told from chance."""
    images, patients = sum(entry.get("images_by_class", {}).values()), entry.get("patients", 0)
    return 0 < patients < min(FEWEST_PATIENTS, images)


def _pooled(numbers: Numbers) -> Mapping[str, DifferenceEntry]:
    pooled: Mapping[str, DifferenceEntry] = numbers.document.get("benefit_pooled") or {}  # type: ignore[assignment]
    return pooled


def _count_personalised(numbers: Numbers, model: str) -> Values | None:
    """Return at how many sites a personalised form beats the model as it is released, and the reverse."""
    verdicts = [verdict for _, verdict in _list_verdicts(numbers, model)]
    if not verdicts:
        return None
    # The difference is federated minus personalised, so "worse" means that personalising helps.
    helps, hurts = verdicts.count("worse"), verdicts.count("better")
    return {
        "method": PERSONALISED[model],
        "sites": count(len(verdicts), "site"),
        "helps": helps,
        "hurts": hurts,
        "undecided": len(verdicts) - helps - hurts,
    }


def _list_verdicts(numbers: Numbers, model: str) -> list[tuple[str, str]]:
    """Return the sites that compared it with the verdicts of the federated model, each on both figures together."""
    verdicts = [
        (site, decide(entry["differences"].get(model, {}))[0]) for site, entry in numbers.get("benefit").items()
    ]
    return [(site, verdict) for site, verdict in verdicts if verdict != UNKNOWN_VERDICT]


def _draw_differences(numbers: Numbers, ranked: Sequence[str]) -> Markup:
    rows = []
    for site in ranked:
        key = numbers.get("benefit", site, "decided_by")
        verdict = numbers.get("benefit", site, "verdict")
        if key is None:
            rows.append(ForestRow(show_name(site), [VERDICTS[verdict], "", "n/a"], None))
            continue
        path = ("benefit", site, "differences", "local", key)
        cells = [
            render_macro("flag", VERDICTS[verdict], verdict == "worse"),
            numbers.show(*path, "n"),
            _show_signed(numbers, *path),
        ]
        rows.append(ForestRow(show_name(site), cells, numbers.get(*path)))
    caption = (
        "Federated minus local-only, on the same test images, with 95 % intervals: right of the dashed zero the "
        "federated model is better, left of it worse. The figure is the one that the verdict rests on, else balanced "
        "accuracy; adjusted p: for both figures."
    )
    columns = ["Site", "Federated is", "Images", "Difference", "Drawn"]
    return render_forest(caption, columns, [("", rows)], 0.0)


def _show_signed(numbers: Numbers, *path: str) -> Markup:
    """Return a difference, its interval and its p-value, each on a line of its own."""
    is_adjusted = numbers.get(*path).get("family_p") is not None
    shown = numbers.show_chance(*path, "family_p" if is_adjusted else "p_value")
    chance = render_macro("interval", fill("adjusted {}", shown) if is_adjusted else shown)
    return join([numbers.show_signed(*path, "value"), numbers.interval(*path, signed=True), chance])


def _list_models(numbers: Numbers, names: Sequence[str]) -> Table:
    models = [model for model in MODEL_NAMES if any(model in numbers.get("benefit", name, "models") for name in names)]
    rows: list[list[Cell]] = []
    for name in names:
        own = numbers.get("benefit", name, "models")
        cells: list[Cell] = [_show_model(numbers, name, model) if model in own else "n/a" for model in models]
        images = numbers.show("benefit", name, "models", "federated", "accuracy", "n")
        rows.append([show_name(name), images, *cells, VERDICTS[numbers.get("benefit", name, "verdict")]])
    caption = "Balanced accuracy of each model on the site's test images; 95 % intervals, scales from 0 to 1."
    return Table(caption, ["Site", "Images", *(MODEL_NAMES[model] for model in models), "Federated is"], rows)


def _show_model(numbers: Numbers, site: str, model: str) -> Markup:
    """Return a model's balanced accuracy; all models of a site are over the classes of the first one, which says so."""
    path = ("benefit", site, "models", model, "balanced_accuracy")
    if model == FEDERATED or numbers.get(*path, "value") is None:
        return numbers.figure_and_interval(*path, drawn=True)
    return join([numbers.show(*path, "value"), numbers.interval(*path), numbers.strip(*path)])


def _list_personalised(numbers: Numbers, ranked: Sequence[str]) -> Table | None:
    models = [model for model in PERSONALISED if _list_verdicts(numbers, model)]
    if not models:
        return None
    rows = [
        [show_name(name), *(_show_difference(numbers, name, model) for model in models)]
        for name in ranked
        if any(model in numbers.get("benefit", name, "differences") for model in models)
    ]
    caption = (
        "Federated as it is released minus personalised on the same test images, with 95 % intervals and p-values "
        "adjusted for both figures, on which the verdict rests together. A negative difference: personalising helps."
    )
    return Table(caption, ["Site", *(f"Against {MODEL_NAMES[model]}" for model in models)], rows)


def _show_difference(numbers: Numbers, site: str, model: str) -> Markup:
    differences: dict[str, DifferenceEntry] = numbers.get("benefit", site, "differences").get(model, {})
    verdict, decided_by = decide(differences)
    if verdict == UNKNOWN_VERDICT:
        reasons = [one["reason"] for one in differences.values() if one["reason"]]
        return fill("n/a ({})", reasons[0]) if reasons else fill("n/a")
    words = {"worse": "personalising helps", "better": "personalising harms", "undecided": "undecided"}[verdict]
    shown = [key for key in DECIDING_FIGURES if key in differences and differences[key]["value"] is not None]
    if verdict != "undecided" and decided_by is not None and len(shown) > 1:
        words = f"{words}, by {label_figure(decided_by).lower()}"
    path = ("benefit", site, "differences", model)
    return join(
        [
            part
            for key in shown
            for part in (render_macro("interval", label_figure(key)), _show_signed(numbers, *path, key))
        ]
        + [words]
    )
