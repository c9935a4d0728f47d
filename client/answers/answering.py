"""What every answer begins and ends with: the request is read and checked, the model is at hand, the reply is packed.

A kind of message is answered by a handler in :mod:`client.site`, or by a file of this folder that has the name of its
row in :data:`fedmed.protocol.kinds.KINDS` and a function ``answer(message, context)``. It is imported at the first
request of that kind, and goes through the guard like the others.
"""

import importlib
import importlib.util
import logging
from collections.abc import Iterable, Mapping

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.guard.outside_code import check_code
from client.guard.requests import ModelMemory, Request, check_classes, read_request
from client.hospital.bounded import bound_batch, bound_groups
from client.hospital.site_data import Site, open_site
from fedmed.config import Plan
from fedmed.data import ImagePart
from fedmed.distillation.network import get_network
from fedmed.metrics.site_tables import SiteTables
from fedmed.protocol.kinds import KINDS
from fedmed.protocol.messages import REPORT, make_content
from fedmed.protocol.reports import MissingModel, Report
from fedmed.training.network import Network

_logger = logging.getLogger("fedmed.client")

memory = ModelMemory()
"""The model that was sent last: a request can name it by its hash."""


def open_request(message: Message, context: Context) -> tuple[Site, Request]:
    """Return the site and what is asked of it."""
    site = open_site(context.node_config)
    request = read_request(message)
    for plan in request.plans:  # at a hospital, the guard has done so; a simulation's workers may be other machines
        check_code(plan)
    check_classes(request, site.data.classes)
    return site, bound_request(request, site)


def bound_request(request: Request, site: Site) -> Request:
    """Return a request about the patient groups only that a hospital tells apart."""
    if not site.is_hospital:
        return request
    known, other = list(site.data.train.attributes), request.other
    if other is not None:
        other = other.model_copy(update={"plan": bound_groups(site.policy, other.plan, known)})
    return request.model_copy(update={"plan": bound_groups(site.policy, request.plan, known), "other": other})


def has_too_few_images(site: Site) -> bool:
    """Return whether a hospital has fewer training images than its policy wants."""
    return site.is_hospital and len(site.data.train) < site.policy.min_images


def has_too_few_patients(site: Site) -> bool:
    """Return whether a hospital has so few training images, or images of so few patients, that it only scores models.

    An update tells of the patients behind it, however many images each of them has.
    """
    few = site.is_hospital and site.count_patients("train") < site.policy.suppression.k
    return few or has_too_few_images(site)


def are_of_few(site: Site, part: ImagePart, places: Iterable[int]) -> bool:
    """Return whether images are of fewer patients than the site's k, so that no figure of them is told.

    Parameters
    ----------
    site : Site
        Whose images they are.
    part : ImagePart
        The part of the data.
    places : iterable of int
        Places of the images in it.
    """
    return len({site.patient_of(part.items[place]) for place in places}) < site.policy.suppression.k


def choose_batch(plan: Plan, site: Site) -> Plan:
    """Return a plan with the batch that a hospital trains with; in a simulation as it is."""
    return bound_batch(site.policy, plan, site.count_patients("train")) if site.is_hospital else plan


def fill_network(
    packed: bytes, request: Request, site: Site, *, before_round: int
) -> tuple[Network, dict[str, torch.Tensor]]:
    """Return the network with the message's values and the site's state from before a round."""
    network = get_network(request.plan)
    state = site.files_of(request.plan).state
    found = state.load_before(before_round)
    for problem in state.problems:
        _logger.warning("%s: %s An older state is used.", site.name, problem)
    kept = found[0] if found else {}
    network.fill(packed, kept)
    return network, kept


def reply(
    message: Message,
    told: Report,
    *,
    model: bytes | None = None,
    tables: SiteTables | None = None,
    sums: Mapping[str, torch.Tensor] | None = None,
) -> Message:
    """Return an answer with a report, and what goes beside it."""
    return Message(make_content(REPORT, told.to_values(), model=model, tables=tables, sums=sums), reply_to=message)


def ask_for_model(message: Message) -> Message:
    """Return the answer of a site that lacks the model."""
    return reply(message, MissingModel(missing_model=True))


def register_files(app: ClientApp, package: str = "client.answers") -> None:
    """Have an app answer the kinds that have a file of their own.

    Parameters
    ----------
    app : ClientApp
        Gets a handler for each.
    package : str
        Where the files are.
    """
    for name, kind in KINDS.items():
        module = f"{package}.{name}"
        if importlib.util.find_spec(module) is not None:
            category, _, action = kind.flower.partition(".")
            register = {"query": app.query, "train": app.train, "evaluate": app.evaluate}[category]
            register(action or "default")(_Late(module))


class _Late:
    """The handler in a file, which is imported when it is asked for the first time."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __call__(self, message: Message, context: Context) -> Message:
        answered: Message = importlib.import_module(self._module).answer(message, context)
        return answered
