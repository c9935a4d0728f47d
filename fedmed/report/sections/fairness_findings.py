"""What the fairness figures say, one sentence each with its uncertainty."""

from fedmed.report.drawing.markup import Numbers, escape, show_name
from fedmed.report.drawing.wording import ALARM_KINDS, count, head_attribute, label_attribute, label_figure
from fedmed.report.schema.figures import AlarmEntry, FindingEntry, GapEntry
from fedmed.report.sections.method import name_unit

MOST_FINDINGS = 12
MOST_ALARMS = 5
MOST_NAMES = 4


def list_findings(numbers: Numbers) -> list[str]:
    """Return the findings as HTML: flagged attributes first, then the others, what is kept back, and alarms."""
    findings: dict[str, FindingEntry] = numbers.get("findings")
    ranked = sorted(findings, key=lambda name: (not findings[name]["flagged"], list(findings).index(name)))
    sentences = [_say_attribute(numbers, attribute) for attribute in ranked[:MOST_FINDINGS]]
    if len(ranked) > MOST_FINDINGS:
        sentences.append(f"{count(len(ranked) - MOST_FINDINGS, 'further attribute')}, none of them flagged: below.")
    kept_back = [_say_hidden(numbers), _say_withheld(numbers)]
    return [*sentences, *(sentence for sentence in kept_back if sentence), *_list_alarms(numbers)]


def say_fairness(numbers: Numbers) -> str:
    """Return one sentence for the summary at the top of the page."""
    findings: dict[str, FindingEntry] = numbers.get("findings")
    flagged = [name for name, finding in findings.items() if finding["flagged"]]
    tested = [name for name, finding in findings.items() if finding["flagged"] is not None]
    if not tested:
        return ""
    if not flagged:
        names = join_names([label_attribute(name) for name in tested])
        return (
            f"No gap between the groups of {names} is larger than chance explains; with few images, a real one can be "
            "missed."
        )
    gaps = "; ".join(
        f"{show_name(label_attribute(name))} ({_quote_gap(numbers, name)})" for name in flagged[:MOST_NAMES]
    )
    more = f"; and {len(flagged) - MOST_NAMES} more" if len(flagged) > MOST_NAMES else ""
    return f"<strong>Between groups it differs by more than chance explains</strong>, by {gaps}{more}."


def _quote_gap(numbers: Numbers, attribute: str) -> str:
    key = numbers.get("findings", attribute, "figure")
    path = ("gaps", attribute, key)
    of_mean = numbers.get(*path)["mean"] is not None
    value = f", mean over the classes, {numbers.show(*path, 'mean')}" if of_mean else f" {numbers.figure(*path)}"
    interval = numbers.interval(*path, key="mean_interval" if of_mean else "interval")
    uncertainty = f", 95 % interval {interval}" if interval else ""
    return f"{_lower(label_figure(key))}{value}{uncertainty}"


def _lower(label: str) -> str:
    return label[:1].lower() + label[1:]


def _say_attribute(numbers: Numbers, attribute: str) -> str:
    finding: FindingEntry = numbers.get("findings", attribute)
    name, key = show_name(head_attribute(attribute)), finding["figure"]
    if key is None:
        reasons = [gap["reason"] for gap in numbers.get("gaps", attribute).values() if gap.get("reason")]
        why = f" ({escape(reasons[0])})" if reasons else ""
        return f"<strong>{name}: not compared</strong>{why}."
    verdict = {True: "flagged", False: "not flagged", None: "not tested"}[finding["flagged"]]
    css = ' class="flag"' if finding["flagged"] else ""
    gap = _quote_gap(numbers, attribute)
    return (
        f"<strong{css}>{name}: {verdict}.</strong> {gap[:1].upper()}{gap[1:]}{_say_chance(numbers, attribute, key)}"
        f"{_say_ends(numbers, attribute, key)}.{_say_other_figures(finding, key)}"
    )


def _say_chance(numbers: Numbers, attribute: str, key: str) -> str:
    gap: GapEntry = numbers.get("gaps", attribute, key)
    chance, value = ("chance", gap["chance"]) if gap["mean"] is None else ("chance_mean", gap["chance_mean"])
    parts = []
    if value is not None:
        parts.append(f"chance alone would give about {numbers.show('gaps', attribute, key, chance)}")
    if gap["p_value"] is not None:
        parts.append(numbers.show_chance("gaps", attribute, key, "p_value"))
    return f" ({', '.join(parts)})" if parts else ""


def _say_ends(numbers: Numbers, attribute: str, key: str) -> str:
    gap: GapEntry = numbers.get("gaps", attribute, key)
    figure = key.removeprefix("gap_")
    ends = []
    for place, group in (("lowest", gap["worst_group"]), ("highest", gap["best_group"])):
        if group is None:
            continue
        known = group in numbers.get("groups", attribute)
        if known and figure in numbers.get("groups", attribute, group):
            path = ("groups", attribute, group, figure)
            images = numbers.show(*path, "n")
            ends.append(f"{place} for {show_name(group)} at {numbers.figure(*path)} on {images} images")
        else:
            ends.append(f"{place} for {show_name(group)}")
    return f"; {', '.join(ends)}" if ends else ""


def _say_other_figures(finding: FindingEntry, key: str) -> str:
    others = [_lower(label_figure(other)) for other in finding["flagged_figures"] if other != key]
    return f" Also flagged: {', '.join(others)}." if others else ""


def _say_hidden(numbers: Numbers) -> str:
    hidden = {name: groups for name, groups in numbers.get("hidden_groups").items() if groups}
    if not hidden:
        return ""
    # Quotes, since the groups of a crossing have commas in their names.
    listed = "; ".join(
        f"{show_name(label_attribute(name))} {join_names([f'“{group}”' for group in groups])}"
        for name, groups in hidden.items()
    )
    number = sum(map(len, hidden.values()))
    return (
        f"<strong>{count(number, 'group')} hidden:</strong> {listed}. The images of a hidden group are of one site, "
        "or it would give away such a group by subtraction; hidden groups are left out of the gaps."
    )


def _say_withheld(numbers: Numbers) -> str:
    """Return what sites keep back for being small: rows (class in a group) and how many groups lack them."""
    rows, affected = 0, []
    for attribute, groups in numbers.get("groups").items():
        for group, figures in groups.items():
            withheld = figures["balanced_accuracy"]["n_withheld"]
            if withheld:
                rows += withheld
                affected.append((attribute, group))
    if not rows:
        return ""
    k, k_row = (numbers.show("thresholds", key) for key in ("k", "k_row"))
    return (
        f"<strong>Withheld for being small:</strong> {count(rows, 'row')} (a class of a group at a site) of "
        f"{count(len(affected), 'group')}, because fewer than {k} {name_unit(numbers)} are in the group or fewer "
        f"than {k_row} in the class. Figures of these groups lack them; a figure that lacks a whole class is n/a."
    )


def _list_alarms(numbers: Numbers) -> list[str]:
    alarms = numbers.get("alarms")
    if not alarms:
        return ["No alarm was raised in any round: no group's figure fell by more than chance allows."]
    shown = range(max(len(alarms) - MOST_ALARMS, 0), len(alarms))
    sentences = [_say_alarm(numbers, index) for index in reversed(shown)]
    if len(alarms) > MOST_ALARMS:
        sentences.append(f"{count(len(alarms) - MOST_ALARMS, 'earlier alarm')}: in report.json.")
    return sentences


def _say_alarm(numbers: Numbers, index: int) -> str:
    alarm: AlarmEntry = numbers.get("alarms", index)
    kind = ALARM_KINDS.get(str(alarm.get("kind")), "Alarm")
    opening = f"Alarm in round {numbers.show('alarms', index, 'round')}: {_lower(kind)}."
    return f'<strong class="flag">{opening}</strong> {escape(alarm.get("text", ""))}'


def join_names(names: list[str], most: int = MOST_NAMES) -> str:
    """Return names as HTML with commas and "and"; of many the first ones and how many more there are."""
    shown = [show_name(name) for name in names[:most]]
    if len(names) > most:
        shown.append(f"{len(names) - most} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
