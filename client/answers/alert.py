"""What a site tells of its alert scores, so that one threshold can be chosen; see :mod:`fedmed.clinical.scores`."""

import numpy as np
import torch
from flwr.app import Context, Message

from client.answers.answering import are_of_few, ask_for_model, fill_network, memory, open_request, reply
from client.guard.requests import Request
from client.hospital.site_data import Site
from fedmed.clinical.scores import NUMBER, AlertScores, alert_scores, count_scores
from fedmed.config import SITE_ATTRIBUTE, Plan
from fedmed.metrics.values import Array
from fedmed.protocol.messages import MODEL
from fedmed.protocol.reports import AlertReport
from fedmed.training.evaluate import compute_logits
from fedmed.training.network import hash_model


def answer(message: Message, context: Context) -> Message:
    """Answer with counts of alert scores over the validation images that may be counted; zeros for too few."""
    site, request = open_request(message, context)
    packed = memory.take(message, request)
    if packed is None:
        return ask_for_model(message)
    # What is kept in memory was hashed when it came.
    model_sha256 = hash_model(packed) if MODEL in message.content else str(request.model_sha256)
    n, counts = _count(packed, request, site)
    told = AlertReport(model_sha256=model_sha256, n=n)
    return reply(message, told, sums={"alerts": torch.from_numpy(counts)})


def find_alert_classes(plan: Plan) -> list[int]:
    """Return the places of the plan's alert classes."""
    assert plan.operating is not None, "the request was checked"
    return [plan.classes.index(name) for name in plan.operating.alert_classes]


def find_alerts(request: Request, logits_NK: torch.Tensor) -> AlertScores | None:
    """Return the alert scores of images where a test asks for alerts; else None.

    Parameters
    ----------
    request : Request
        Of a test.
    logits_NK : Tensor
        The federated model's outputs after the temperature.
    """
    if request.alert_threshold is None:
        return None
    classes = find_alert_classes(request.plan)
    return AlertScores(alert_scores(logits_NK, classes), request.alert_threshold, tuple(classes))


def _count(packed: bytes, request: Request, site: Site) -> tuple[int, Array]:
    """Return the number of images, rounded down to a multiple of this site's k, and their counts.

    They are the images that the tables of the whole site count class by class, so that no difference tells of others.
    """
    network, _ = fill_network(packed, request, site, before_round=request.round + 1)
    part, limits = site.data.validation, site.disclosure_of("validation")
    index = np.flatnonzero(site.count_part("validation", request.plan.fairness).plan.attributes[SITE_ATTRIBUTE].counted)
    logits_NK = compute_logits(network.model, part, request.plan, device=site.device)
    classes = find_alert_classes(request.plan)
    counts = count_scores(
        alert_scores(logits_NK, classes, request.temperature)[index],
        np.isin(part.labels.numpy()[index], classes),
        [site.patient_of(part.items[place]) for place in index.tolist()],
        k_bin=1 if limits.is_open else limits.k_bin,
        k_row=1 if limits.is_open else limits.k_row,
    )
    n = 0 if are_of_few(site, part, index.tolist()) else site.round_down(int(counts[..., NUMBER].sum()))
    return n, counts if n else np.zeros_like(counts)
