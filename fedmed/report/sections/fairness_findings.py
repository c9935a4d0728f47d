"""What the fairness figures say, one finding each with its uncertainty; ``templates/findings.html`` words them."""

from fedmed.report.drawing.markup import Numbers
from fedmed.report.drawing.wording import ALARM_KINDS, count, head_attribute, label_attribute, label_figure
from fedmed.report.schema.figures import AlarmEntry, FindingEntry, GapEntry
from fedmed.report.sections.method import name_unit
from fedmed.report.sections.values import Values

MOST_FINDINGS = 12
MOST_ALARMS = 3
MOST_NAMES = 4
CLASS_GAP = "class_sensitivity_gap"


def list_findings(numbers: Numbers) -> list[Values]:
    """Return the findings: flagged attributes first, then the others, what is kept back, and alarms.

    ``kind`` of each says by which macro of the template it is worded.
    """
    findings: dict[str, FindingEntry] = numbers.get("findings")
    ranked = sorted(findings, key=lambda name: (not findings[name]["flagged"], list(findings).index(name)))
    found = [_describe_attribute(numbers, attribute) for attribute in ranked[:MOST_FINDINGS]]
    if len(ranked) > MOST_FINDINGS:
        found.append({"kind": "more", "number": count(len(ranked) - MOST_FINDINGS, "further attribute")})
    kept_back = [_describe_hidden(numbers), _describe_withheld(numbers)]
    return [*found, *(one for one in kept_back if one is not None), *_list_alarms(numbers)]


def summarise_fairness(numbers: Numbers) -> Values | None:
    """Return what the summary at the top of the page says of groups, None where no gap could be tested."""
    findings: dict[str, FindingEntry] = numbers.get("findings")
    flagged = [name for name, finding in findings.items() if finding["flagged"]]
    tested = [name for name, finding in findings.items() if finding["flagged"] is not None]
    if not tested:
        return None
    return {
        "flagged": [_describe_gap(numbers, name) for name in flagged[:MOST_NAMES]],
        "more": max(len(flagged) - MOST_NAMES, 0),
        "tested": [label_attribute(name) for name in tested],
        "most": MOST_NAMES,
    }


def _describe_gap(numbers: Numbers, attribute: str) -> dict[str, object]:
    key = numbers.get("findings", attribute, "figure")
    gap: GapEntry = numbers.get("gaps", attribute, key)
    return {
        "attribute": attribute,
        "name": label_attribute(attribute),
        "key": key,
        "label": lower_first(label_figure(key)),
        "of_mean": gap["mean"] is not None,
        "worst_class": gap["worst_class"] if key == CLASS_GAP else None,
    }


def lower_first(label: str) -> str:
    """Return a label with a small first letter, to go on in a sentence with."""
    return label[:1].lower() + label[1:]


def _describe_attribute(numbers: Numbers, attribute: str) -> Values:
    finding: FindingEntry = numbers.get("findings", attribute)
    name, key = head_attribute(attribute), finding["figure"]
    if key is None:
        reasons = [gap["reason"] for gap in numbers.get("gaps", attribute).values() if gap.get("reason")]
        return {"kind": "not_compared", "name": name, "reason": reasons[0] if reasons else ""}
    gap: GapEntry = numbers.get("gaps", attribute, key)
    chance = "chance" if gap["mean"] is None else "chance_mean"
    compared = gap.get("over_classes")
    others = [other for other in finding["flagged_figures"] if other != key]
    return {
        **_describe_gap(numbers, attribute),
        "kind": "gap",
        "name": name,
        "label": label_figure(key),
        "flagged": finding["flagged"],
        "verdict": {True: "flagged", False: "not flagged", None: "not tested"}[finding["flagged"]],
        "chance": chance if numbers.get("gaps", attribute, key, chance) is not None else None,
        "adjusted": gap["family_p"] is not None,
        "limit": gap.get("limit"),
        "left_out": gap["left_out"],
        "without": [] if compared is None else [name for name in numbers.get("classes") if name not in compared],
        "most": MOST_NAMES,
        "ends": _list_ends(numbers, attribute, key),
        "others": [lower_first(label_figure(other)) for other in others],
    }


def _list_ends(numbers: Numbers, attribute: str, key: str) -> list[Values]:
    """Return the lowest and the highest group, and the figure to show for it where its value is known.

    None of a gap over some classes only: the figures of the groups are over all that they have.
    """
    gap: GapEntry = numbers.get("gaps", attribute, key)
    if not gap["value"]:  # all groups have the same
        return []
    figure = key.removeprefix("gap_")
    is_partial = len(gap.get("over_classes", numbers.get("classes"))) < len(numbers.get("classes"))
    groups = {} if is_partial else numbers.get("groups", attribute)
    return [
        {
            "place": place,
            "group": group,
            "figure": figure if figure in groups.get(group, {}) else None,
            "of_class": key == CLASS_GAP and group in groups,
        }
        for place, group in (("lowest", gap["worst_group"]), ("highest", gap["best_group"]))
        if group is not None
    ]


def _describe_hidden(numbers: Numbers) -> Values | None:
    hidden = {name: groups for name, groups in numbers.get("hidden_groups").items() if groups}
    if not hidden:
        return None
    # Quotes, since the groups of a crossing have commas in their names.
    listed = [(label_attribute(name), [f"“{group}”" for group in groups]) for name, groups in hidden.items()]
    return {
        "kind": "hidden",
        "number": count(sum(map(len, hidden.values())), "group"),
        "listed": listed,
        "most": MOST_NAMES,
    }


def _describe_withheld(numbers: Numbers) -> Values | None:
    """Return what sites keep back for being small: rows (class in a group) and how many groups lack them."""
    rows, affected = 0, 0
    for groups in numbers.get("groups").values():
        for figures in groups.values():
            withheld = figures["balanced_accuracy"]["n_withheld"]
            rows, affected = rows + (withheld or 0), affected + bool(withheld)
    if not rows:
        return None
    return {
        "kind": "withheld",
        "rows": count(rows, "row"),
        "groups": count(affected, "group"),
        "unit": name_unit(numbers),
    }


def _list_alarms(numbers: Numbers) -> list[Values]:
    alarms: list[AlarmEntry] = numbers.get("alarms")
    if not alarms:
        return [{"kind": "no_alarm"}]
    shown = range(max(len(alarms) - MOST_ALARMS, 0), len(alarms))
    found: list[Values] = [
        {
            "kind": "alarm",
            "index": index,
            "what": lower_first(ALARM_KINDS.get(str(alarms[index].get("kind")), "Alarm")),
            "text": alarms[index].get("text", ""),
        }
        for index in reversed(shown)
    ]
    if len(alarms) > MOST_ALARMS:
        found.append({"kind": "more_alarms", "number": count(len(alarms) - MOST_ALARMS, "earlier alarm")})
    return found
