"""The gate: whether a compact student may take the place of the network it was distilled from.

Compression harms rare classes and small groups first, so the mean does not decide. Judged are the sites' validation
images, through paired tables: teacher and student on the same images. The rule is our own, not a publication's.

Letters: G groups, K classes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import comb

import numpy as np

from fedmed.metrics.site_tables import SITE_ATTRIBUTE, UNKNOWN, PairedTables
from fedmed.metrics.values import Array
from fedmed.storage.records import CheckRecord, DecisionRecord, LimitsRecord, SupportRecord

TEACHER_RIGHT, STUDENT_RIGHT = 0, 1  # which axis of a class's (2,2) cells says whether that model is right


@dataclass(frozen=True)
class GateLimits:
    """How much worse the student may be, in shares of one.

    Attributes
    ----------
    balanced_accuracy : float
        Loss of balanced accuracy over all images.
    worst_class : float
        Loss of the lowest recall of all classes; and of the recall of any one class, where the paired images leave no
        doubt (exact one-sided McNemar test at ``level``).
    gap : float
        Growth of the largest difference in balanced accuracy between the sites, or the groups of an attribute.
    level : float
        Of the test.
    """

    balanced_accuracy: float = 0.02
    worst_class: float = 0.05
    gap: float = 0.02
    level: float = 0.05

    def to_json(self) -> LimitsRecord:
        """Return plain values."""
        return {
            "balanced_accuracy": self.balanced_accuracy,
            "worst_class": self.worst_class,
            "gap": self.gap,
            "level": self.level,
        }


@dataclass(frozen=True)
class Support:
    """The images of which a single one moves a figure most, and how many of them its limit amounts to.

    Attributes
    ----------
    label : str
        Their class.
    group : str, optional
        Their group, where the figure compares groups.
    num_images : int
        How many there are.
    limit_images : float
        The limit in such images; below 1, one of them alone can exceed it.

    Notes
    -----
    With one of n images, a recall moves by 1/n; a balanced accuracy over C classes, and a gap of such, by 1/(n C).
    """

    label: str
    group: str | None
    num_images: int
    limit_images: float

    def to_json(self) -> SupportRecord:
        """Return plain values."""
        return {
            "label": self.label,
            "group": self.group,
            "num_images": self.num_images,
            "limit_images": self.limit_images,
        }


@dataclass(frozen=True)
class GateCheck:
    """One condition.

    Attributes
    ----------
    name : str
        ``balanced_accuracy``, ``worst_class``, ``class`` or ``gap``.
    subject : str
        The class or the attribute that it is about, or ``all``.
    teacher, student : float
        The figure of both.
    loss : float
        How much worse the student is; negative where it is better.
    limit : float
        The most that is allowed.
    passed : bool
        Whether the condition holds.
    p_value : float, optional
        Of the test, where there is one.
    rests_on : Support, optional
        On how few images; None where there is no group to compare.
    """

    name: str
    subject: str
    teacher: float
    student: float
    loss: float
    limit: float
    passed: bool
    p_value: float | None = None
    rests_on: Support | None = None

    def to_json(self) -> CheckRecord:
        """Return plain values."""
        return {
            "name": self.name,
            "subject": self.subject,
            "teacher": self.teacher,
            "student": self.student,
            "loss": self.loss,
            "limit": self.limit,
            "passed": self.passed,
            "p_value": self.p_value,
            "rests_on": None if self.rests_on is None else self.rests_on.to_json(),
        }


@dataclass(frozen=True)
class GateDecision:
    """Whether the student is accepted, and every number that it rests on.

    Attributes
    ----------
    accepted : bool
        Whether all conditions hold.
    checks : tuple of GateCheck
        In the order: all images, worst class, each class, each attribute.
    reason : str
        One sentence for the report.
    num_images : int
        Images that were compared.
    """

    accepted: bool
    checks: tuple[GateCheck, ...]
    reason: str
    num_images: int

    def to_json(self) -> DecisionRecord:
        """Return plain values."""
        return {
            "accepted": self.accepted,
            "checks": [check.to_json() for check in self.checks],
            "reason": self.reason,
            "num_images": self.num_images,
        }


def decide_gate(
    tables: Mapping[str, PairedTables], classes: tuple[str, ...], limits: GateLimits | None = None
) -> GateDecision:
    """Decide from paired tables of all sites together.

    Parameters
    ----------
    tables : mapping of str to PairedTables
        Attribute to tables; the attribute ``site`` is always there. The first model is the teacher ("federated"), the
        other one the student.
    classes : tuple of str
        Names of the K classes.
    limits : GateLimits, optional
        How much worse the student may be.

    Returns
    -------
    GateDecision
        Rejected where there is no image to judge by.

    Raises
    ------
    ValueError
        If the attribute ``site`` is missing, or the tables have another number of classes.

    Notes
    -----
    A balanced accuracy of a group is the mean recall of the classes that it has. A gap is the largest minus the
    smallest over the known groups with images; it is the same images for both models.
    """
    limits = limits or GateLimits()
    if SITE_ATTRIBUTE not in tables or any(table.cells.shape[1] != len(classes) for table in tables.values()):
        raise ValueError(
            f"Paired tables of {', '.join(sorted(tables)) or 'nothing'} were found. Needed: the attribute "
            f"'{SITE_ATTRIBUTE}', and {len(classes)} classes in each."
        )
    cells_K22 = tables[SITE_ATTRIBUTE].cells.sum(axis=0)
    num_images = int(cells_K22.sum())
    if not num_images:
        return GateDecision(False, (), "No validation image was compared, so the student cannot be accepted.", 0)
    checks = [*_check_classes(cells_K22, classes, limits)]
    checks += [_check_gap(attribute, tables[attribute], classes, limits) for attribute in tables]
    failed = [check for check in checks if not check.passed]
    reason = "All conditions hold." if not failed else "; ".join(_describe(check) for check in failed) + "."
    return GateDecision(not failed, tuple(checks), reason, num_images)


def _recalls(cells_K22: Array, model: int) -> Array:
    """Return (K,): the share of each class's images that a model has right; NaN for a class without images."""
    right_K = cells_K22[:, 1, :].sum(axis=1) if model == TEACHER_RIGHT else cells_K22[:, :, 1].sum(axis=1)
    counts_K = cells_K22.sum(axis=(1, 2))
    recalls_K: Array = np.divide(right_K, counts_K, out=np.full(len(counts_K), np.nan), where=counts_K > 0)
    return recalls_K


def _check_classes(cells_K22: Array, classes: tuple[str, ...], limits: GateLimits) -> list[GateCheck]:
    teacher_K, student_K = _recalls(cells_K22, TEACHER_RIGHT), _recalls(cells_K22, STUDENT_RIGHT)
    counts_K = cells_K22.sum(axis=(1, 2))
    worst = int(np.nanargmin(student_K))
    checks = [
        _compare(
            "balanced_accuracy",
            "all",
            float(np.nanmean(teacher_K)),
            float(np.nanmean(student_K)),
            limits.balanced_accuracy,
            _find_support([(None, counts_K)], classes, limits.balanced_accuracy),
        ),
        _compare(
            "worst_class",
            "all",
            float(np.nanmin(teacher_K)),
            float(np.nanmin(student_K)),
            limits.worst_class,
            _support_class(classes[worst], int(counts_K[worst]), limits.worst_class),
        ),
    ]
    for index, name in enumerate(classes):
        if np.isnan(teacher_K[index]):
            continue
        p_value = _sign_test(int(cells_K22[index, 1, 0]), int(cells_K22[index, 0, 1]))
        support = _support_class(name, int(counts_K[index]), limits.worst_class)
        check = _compare("class", name, float(teacher_K[index]), float(student_K[index]), limits.worst_class, support)
        checks.append(replace(check, passed=check.passed or p_value >= limits.level, p_value=p_value))
    return checks


def _check_gap(attribute: str, table: PairedTables, classes: tuple[str, ...], limits: GateLimits) -> GateCheck:
    known = zip(table.groups, table.cells, strict=True)
    cells = {group: cells for group, cells in known if group != UNKNOWN and cells.sum()}
    teacher, student = (
        [float(np.nanmean(_recalls(group, model))) for group in cells.values()]
        for model in (TEACHER_RIGHT, STUDENT_RIGHT)
    )
    spread = (max(teacher) - min(teacher), max(student) - min(student)) if cells else (0.0, 0.0)
    loss = spread[1] - spread[0]
    counts = [(group, cells_K22.sum(axis=(1, 2))) for group, cells_K22 in cells.items()]
    support = _find_support(counts, classes, limits.gap) if len(cells) > 1 else None
    return GateCheck("gap", attribute, *spread, loss, limits.gap, _is_within(loss, limits.gap), rests_on=support)


def _support_class(label: str, num_images: int, limit: float) -> Support:
    """Return on what the recall of one class rests."""
    return Support(label, None, num_images, limit * num_images)


def _find_support(counts: Iterable[tuple[str | None, Array]], classes: Sequence[str], limit: float) -> Support:
    """Return which images move a balanced accuracy of some group most, from numbers of images (K) by group."""
    found = [
        Support(classes[index], group, int(counts_K[index]), limit * int(counts_K[index]) * int((counts_K > 0).sum()))
        for group, counts_K in counts
        for index in map(int, np.flatnonzero(counts_K))
    ]
    return min(found, key=lambda support: support.limit_images)


def _compare(  # noqa: PLR0917  (the fields of a check)
    name: str, subject: str, teacher: float, student: float, limit: float, support: Support
) -> GateCheck:
    loss = teacher - student
    return GateCheck(name, subject, teacher, student, loss, limit, _is_within(loss, limit), rests_on=support)


def _is_within(loss: float, limit: float) -> bool:
    return loss <= limit + 1e-9  # a loss of exactly the limit, in floating point


def _sign_test(num_lost: int, num_won: int) -> float:
    """Return the chance of at least so many losses among all images on which the models differ, if both are as good."""
    num = num_lost + num_won
    return float(sum(comb(num, losses) for losses in range(num_lost, num + 1)) / 2**num)


def _describe(check: GateCheck) -> str:
    what = {
        "balanced_accuracy": "balanced accuracy",
        "worst_class": "lowest recall of a class",
        "class": f"recall of '{check.subject}'",
        "gap": f"gap between groups of '{check.subject}'",
    }[check.name]
    change = "grows" if check.name == "gap" else "falls"
    return (
        f"The {what} {change} from {100 * check.teacher:.1f} to {100 * check.student:.1f} points, by more than "
        f"{100 * check.limit:g}{_describe_support(check.rests_on)}"
    )


def _describe_support(support: Support | None) -> str:
    if support is None:
        return ""
    where = f"class '{support.label}'" + (f" in '{support.group}'" if support.group is not None else "")
    return f" ({support.limit_images:.1f} of the {support.num_images} images of {where})"
