"""What a site tells of a round's model on its validation images, so that the best round can be chosen: two figures.

::

    state_dir/runs/RUN_ID/figures.json    the classes of this run, and what was answered, by hash of the model

A model is scored once: asked again, the stored answer is given, unless a patient of it has withdrawn since. How many
models are scored in a run, the guard's ledger bounds.
"""

import numpy as np
from flwr.app import Context, Message

from client.answers.answering import are_of_few, ask_for_model, fill_network, memory, open_request, reply
from client.answers.figure_store import FigureStore, ToldFigures
from client.guard.requests import Request
from client.hospital.site_data import Site
from fedmed.config import SITE_ATTRIBUTE
from fedmed.metrics.rounding import round_down, round_number
from fedmed.protocol.messages import MODEL
from fedmed.protocol.reports import FigureReport
from fedmed.training.evaluate import compute_logits
from fedmed.training.network import hash_model

NOTHING = ToldFigures(n=0)


def answer(message: Message, context: Context) -> Message:
    """Answer with balanced accuracy, accuracy and number of images, or with the number 0 alone."""
    site, request = open_request(message, context)
    packed = memory.take(message, request)
    # What is kept in memory was hashed when it came.
    model_sha256 = hash_model(packed) if packed is not None and MODEL in message.content else str(request.model_sha256)
    store = FigureStore(site.files_of(request.plan).folder / "figures.json")
    limits = site.policy.suppression
    data = f"{site.digest_part('validation')} {limits.k} {limits.k_row}"
    told = store.find(model_sha256, data)
    if told is None:
        if packed is None:
            return ask_for_model(message)
        told = _measure(packed, request, site, store)
        store.keep(model_sha256, data, told)
    return reply(message, FigureReport(model_sha256=model_sha256, **told.to_values()))


def _measure(packed: bytes, request: Request, site: Site, store: FigureStore) -> ToldFigures:
    """Return the figures over the images that may be counted, of the run's classes."""
    part, limits = site.data.validation, site.policy.suppression
    counted_N = site.count_part("validation", request.plan.fairness).plan.attributes[SITE_ATTRIBUTE].counted
    labels_N = part.labels.numpy()
    patients_N = np.array([site.patient_of(item) for item in part.items], dtype=object)
    present = {
        label: len(set(patients_N[counted_N & (labels_N == label)])) for label in range(len(request.plan.classes))
    }
    classes = store.fix_classes([label for label, number in present.items() if number >= limits.k_row])
    chosen = np.flatnonzero(counted_N & np.isin(labels_N, classes))
    n = round_down(len(chosen), limits.k)
    # With another set of classes the figures of two rounds would not be comparable, and would differ by few patients.
    is_told = n and not are_of_few(site, part, chosen.tolist())
    if not is_told or any(present[label] < limits.k_row for label in classes):
        return NOTHING
    network, _ = fill_network(packed, request, site, before_round=request.round + 1)
    logits_NK = compute_logits(network.model, part, request.plan, device=site.device)
    # As the tables choose the class: of equal logits the first, which torch does not promise.
    right_N = logits_NK.double().numpy().argmax(axis=1)[chosen] == labels_N[chosen]
    recalls = [float(right_N[labels_N[chosen] == label].mean()) for label in classes]
    return ToldFigures(n, round_number(float(right_N.mean())), round_number(sum(recalls) / len(recalls)))
