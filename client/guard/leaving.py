"""What is looked at in a reply before it leaves a hospital: every part, every number and what it rests on.

The lists of all that may leave are in :mod:`fedmed.protocol.kinds`; :mod:`client.guard.guard` sends nothing that this
module finds something against.
"""

import logging
from collections.abc import Mapping

import torch
from flwr.app import Message

from client.guard.message_parts import Part
from client.guard.policy import check_choice
from client.guard.requests import Request
from client.hospital.site_data import choose_disclosure
from fedmed.aggregation.divergence_rule import find_divergence_breach
from fedmed.clinical.scores import NUMBER, SUM
from fedmed.config import Plan
from fedmed.config.client import PolicyConfig
from fedmed.distillation import MIN_IMAGES_TO_SHARE_PROMPT
from fedmed.errors import WireError
from fedmed.export import release_form
from fedmed.fairness.disclosure.rows import Disclosure
from fedmed.fairness.disclosure.tables import find_breach
from fedmed.fairness.figures.group_losses import find_loss_breach
from fedmed.metrics.rounding import DIGITS, has_digits, is_rounded
from fedmed.protocol.kinds import KINDS, REPORT, SUMS, TABLES
from fedmed.protocol.messages import read_sums, read_tables, read_values
from fedmed.protocol.reports import (
    AlertReport,
    DistilReport,
    FigureReport,
    FormsReport,
    Report,
    ScoreReport,
    SiteDescription,
    TemperatureReport,
    TrainReport,
)

_logger = logging.getLogger("fedmed.client")


def find_stranger(kind: str, parts: list[Part]) -> str | None:
    """Return what in a reply is not on the list; without its name, which might tell something itself."""
    allowed = KINDS[kind].leaving
    if not parts or any(part["name"] not in allowed or part["sha256"] is None for part in parts):
        return "it holds a part that is not on the list of what may leave, or none"
    strangers = [key for part in parts for key in part.get("keys", []) if key not in allowed[part["name"]]]
    return f"its report holds {len(strangers)} keys that are not on the list of what may leave" if strangers else None


def find_reply_breach(policy: PolicyConfig, request: Request, reply: Message, site: str) -> str | None:
    """Return why what is on the list must not leave this time; every number is checked, whatever was asked for.

    Parameters
    ----------
    policy : PolicyConfig
        What the site allows.
    request : Request
        What was asked for.
    reply : Message
        About to leave.
    site : str
        The name that its tables bear.
    """
    k = policy.suppression.k
    try:
        told = KINDS[request.kind].read_report(read_values(reply, REPORT))
    except WireError:  # its text quotes what must not leave
        return "its report is malformed"
    match told:
        case TrainReport():
            return find_loss_breach(told, k) or find_divergence_breach(told, k) or find_training_breach(told, k)
        case FigureReport():
            return find_figure_breach(told) or find_number_breach(told, k)
        case FormsReport():
            return _find_breach_of_comparison(policy, request, told)
        case TemperatureReport() | AlertReport() if SUMS in reply.content:
            limits = choose_disclosure(policy, "validation")
            find = find_alert_breach if isinstance(told, AlertReport) else find_sums_breach
            return find_number_breach(told, k) or find(told, read_sums(reply), limits)
    breach = find_number_breach(told, k)
    return (
        _find_breach_of_tables(policy, request, reply, told, site) if not breach and TABLES in reply.content else breach
    )


def _find_breach_of_tables(
    policy: PolicyConfig, request: Request, reply: Message, told: Report, site: str
) -> str | None:
    tables, k = read_tables(reply), policy.suppression.k
    breach = find_breach(tables, choose_disclosure(policy, request.part), site)
    if breach is not None:
        return f"its tables must not leave, because {breach}"
    if not isinstance(told, ScoreReport) or told.mismatch is None or tables.site.row_images.sum() >= k:
        return None
    return f"its distance is of fewer than k = {k} images"


def _find_breach_of_comparison(policy: PolicyConfig, request: Request, told: FormsReport) -> str | None:
    try:
        found = release_form.read_answer(told.comparison, len(request.plan.classes))
    except WireError:
        return "its comparison of the model's forms is malformed"
    if isinstance(found, str):  # words of ours about what the server has sent
        return None
    breach = release_form.find_breach(found, choose_disclosure(policy, request.part))
    return None if breach is None else f"its comparison must not leave, because {breach}"


def find_bands_breach(told: TrainReport) -> str | None:
    """Return why a report about a training must not leave, or None.

    A site with few images tells nothing of its prompt, not even the few gains of a report, since they summarise the
    spectra of its images.
    """
    if told.prompt_bands is None or told.num_images >= MIN_IMAGES_TO_SHARE_PROMPT:
        return None
    return f"its prompt is of fewer than {MIN_IMAGES_TO_SHARE_PROMPT} images"


def find_training_breach(told: TrainReport, k: int) -> str | None:
    """Return why a report about a training must not leave because of its prompt or its number of images, or None."""
    return find_bands_breach(told) or find_number_breach(told, k)


def find_figure_breach(told: FigureReport) -> str | None:
    """Return why figures of validation images must not leave, or None.

    Parameters
    ----------
    told : FigureReport
        About to leave.
    """
    figures = [figure for figure in (told.accuracy, told.balanced_accuracy) if figure is not None]
    return None if all(map(has_digits, figures)) else "its figures have more than 3 digits"


def warn_of_tables(plan: Plan, policy: PolicyConfig) -> None:
    """Say at the site, when it joins, that the plan foresees tables that this site does not let leave."""
    for refusal in check_choice(policy, plan):
        _logger.warning("This site cannot take part as the federation is planned: %s", refusal)


def find_number_breach(told: Report, k: int) -> str | None:
    """Return why a report must not leave because of a number of images in it, or None.

    Parameters
    ----------
    told : Report
        About to leave.
    k : int
        Numbers of images are multiples of it.
    """
    match told:
        case SiteDescription():
            numbers = list(told.num_images.values())
        case DistilReport():
            numbers = [told.num_images]
        case FigureReport() | TemperatureReport() | AlertReport():
            numbers = [told.n]
        case _:
            numbers = []
    return f"a number of images is no multiple of k = {k}" if any(number % k for number in numbers) else None


def find_sums_breach(
    told: TemperatureReport | AlertReport, sums: Mapping[str, torch.Tensor], disclosure: Disclosure
) -> str | None:
    """Return why sums for the temperature must not leave, or None: too few images, or so exact that they name some."""
    if told.n < disclosure.k:
        return f"its sums are over fewer than k = {disclosure.k} images"
    if disclosure.is_open or all(is_rounded(tensor.numpy()) for tensor in sums.values()):
        return None
    return f"a sum over images has more than {DIGITS} digits"


def find_alert_breach(
    told: TemperatureReport | AlertReport, sums: Mapping[str, torch.Tensor], disclosure: Disclosure
) -> str | None:
    """Return why counts of alert scores must not leave, or None: they are other ones, too small or too exact."""
    if set(sums) != {"alerts"}:
        return "it holds other sums than counts of alert scores"
    values = sums["alerts"].numpy()
    if values.any() and told.n < disclosure.k:
        return f"its counts of alert scores are over fewer than k = {disclosure.k} images"
    number, total = values[..., NUMBER], values[..., SUM]
    rows = number.sum(axis=-1)
    if ((rows > 0) & (rows < disclosure.k_row)).any():
        return f"its counts of alert scores are of fewer than k_row = {disclosure.k_row} images"
    if disclosure.is_open:
        return None
    if ((number > 0) & (number < disclosure.k_bin)).any() or (total[number == 0] != 0).any():
        return f"a bin of alert scores has fewer than k_bin = {disclosure.k_bin} images"
    return None if is_rounded(total) else f"a sum over images has more than {DIGITS} digits"
