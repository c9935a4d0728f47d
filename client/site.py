"""The ClientApp: a site's answers to describe, fit and evaluate.

The same object runs in a simulation's worker and in a hospital's process, where :mod:`client.guard` checks and records
all that comes in and goes out.
"""

import logging
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.guard import guard_messages
from client.local import Site, open_site
from client.request import ModelMemory, Request, check_classes, read_request
from fedmed.compression import compress_update
from fedmed.config import Plan
from fedmed.data import ImagePart, count_classes, make_eval_transform
from fedmed.fairness.suppression import Release, count_released, counts_may_leave, release_tables
from fedmed.metrics.tables import EvaluationTables, tables_from_logits
from fedmed.network import Network, get_network, hash_model
from fedmed.reparameterization import collect_sums
from fedmed.seeding import make_rng
from fedmed.training import TrainingError, compute_logits, fit, make_batches
from fedmed.wire import MODEL, REPORT, make_content, read_artefact, select_state, unpack_tensors

_logger = logging.getLogger("fedmed.client")
_memory = ModelMemory()

_MOMENTUM, _RESIDUAL = "momentum/", "residual/"
_BATCH = 64

app = ClientApp(mods=[guard_messages])


@app.query()
def describe(message: Message, context: Context) -> Message:
    """Answer who this site is, how many images it has and which versions it runs.

    Of validation and test, only images that may be counted are told, since a total would give away what the tables
    hold back.
    """
    site, request = _open(message, context)
    data, release = site.data, site.release_of("validation")
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    counts = {name: count_classes(part, len(data.classes)) for name, part in parts.items()}
    values: dict[str, Any] = {
        "site": site.name,
        "num_images": {
            name: len(part) if name == "train" else count_released(counts[name], release)
            for name, part in parts.items()
        },
        "model_digest": get_network(request.plan).digest(),
        "versions": {package: metadata.version(package) for package in ("fedmed", "flwr", "torch")},
        "class_counts": counts if _may_tell_counts(site, counts, release) else None,
        "synthetic": site.synthetic,
        "thresholds": {"k": release.k, "k_row": release.k_row},
    }
    return Message(make_content(REPORT, values), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the global model on this site's images and answer with the update."""
    site, request = _open(message, context)
    if not len(site.data.train):
        raise TrainingError("This site has no training image left; all that it had belong to patients who withdrew.")
    packed = _memory.take(message, request)
    if packed is None:
        return _ask_for_model(message)
    network, kept = _fill_network(packed, request, site, before_round=request.round)
    momentum = _select(kept, _MOMENTUM)
    result = fit(
        network.model,
        site.data.train,
        request.plan,
        site=site.name,
        round_number=request.round,
        device=site.device,
        optimizer_state=momentum if request.plan.training.keep_momentum else None,
    )
    update, residual = _pack_update(network, packed, request.plan, kept)
    state = network.local_state() | {_MOMENTUM + name: t for name, t in result.optimizer_state.items()} | residual
    if state:
        site.files_of(request.plan).state.save(request.round, state, {}, keep=request.best_round)
    values = {
        "num_images": result.num_images,
        "loss": result.loss,
        "learning_rate": result.learning_rate,
        "train_s": result.train_s,
    }
    return Message(make_content(REPORT, values, model=update), reply_to=message)


@app.evaluate()
def score(message: Message, context: Context) -> Message:
    """Score a global model on this site's validation or test images and answer with tables.

    Test tables are computed once for a model and stored; asked again, the stored answer is given, unless test images
    are left out since because patients withdrew.
    """
    site, request = _open(message, context)
    packed = _memory.take(message, request)
    # What is kept in memory was hashed when it came.
    arrived = packed if MODEL in message.content else None
    model_sha256 = str(request.model_sha256) if arrived is None else hash_model(arrived)
    tables = None
    if request.part == "test":
        tables = site.files_of(request.plan).read_test_tables(model_sha256, site.release_of("test"))
    if tables is None:
        if packed is None:
            return _ask_for_model(message)
        tables = _compute_tables(packed, model_sha256, request, site)
    return Message(make_content(REPORT, {"model_sha256": model_sha256}, tables=tables), reply_to=message)


@app.evaluate("recalibrate")
def sum_norm_inputs(message: Message, context: Context) -> Message:
    """Answer with the sums of what every BatchNorm gets from this site's training images, without changing anything."""
    site, request = _open(message, context)
    packed = _memory.take(message, request)
    if packed is None:
        return _ask_for_model(message)
    network, _ = _fill_network(packed, request, site, before_round=request.round + 1)
    part, plan = site.data.train, request.plan
    transform = make_eval_transform(plan.augmentation, plan.image_size)
    order = make_rng(plan.seed, site.name, request.round, "recalibrate").permutation(len(part))
    batches = (transform(part.images(batch)).to(site.device) for batch in make_batches(order, _BATCH))
    sums = collect_sums(network.model.to(site.device), batches, batch_statistics=True)
    return Message(make_content(REPORT, {"model_sha256": hash_model(packed)}, sums=sums), reply_to=message)


@app.evaluate("release")
def compare_forms(message: Message, context: Context) -> Message:
    """Compare the chosen model with its deployable artefact on this site's test images, and answer with differences."""
    # Imported late: the ONNX runtime is needed for this alone.
    from client.candidate import compare_candidate  # noqa: PLC0415

    site, request = _open(message, context)
    artefact = read_artefact(message)
    packed = _memory.take(message, request)
    if packed is None:
        return _ask_for_model(message)
    network, _ = _fill_network(packed, request, site, before_round=request.round + 1)
    values = {
        "model_sha256": hash_model(packed),
        "artefact_sha256": request.artefact_sha256,
        "comparison": compare_candidate(artefact, network.model, request, site),
    }
    return Message(make_content(REPORT, values), reply_to=message)


def _open(message: Message, context: Context) -> tuple[Site, Request]:
    site = open_site(context.node_config)
    request = read_request(message)
    check_classes(request, site.data.classes)
    return site, request


def _pack_update(
    network: Network, packed: bytes, plan: Plan, kept: Mapping[str, torch.Tensor]
) -> tuple[bytes, dict[str, torch.Tensor]]:
    """Return the trained model as it travels, and what its rounding has left out for the next round."""
    if plan.compression == "none":
        return network.pack(), {}
    new = select_state(network.model, network.shared)
    update, residual = compress_update(new, unpack_tensors(packed), _select(kept, _RESIDUAL), plan.compression)
    return update, {_RESIDUAL + name: tensor for name, tensor in residual.items()}


def _select(kept: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in kept.items() if name.startswith(prefix)}


def _ask_for_model(message: Message) -> Message:
    return Message(make_content(REPORT, {"missing_model": True}), reply_to=message)


def _may_tell_counts(site: Site, counts: dict[str, list[int]], release: Release) -> bool:
    if not site.share_class_counts:
        return False
    if all(counts_may_leave(of_part, release) for of_part in counts.values()):
        return True
    _logger.warning(
        "share_class_counts is true, but a class has fewer images than policy.suppression.k_row = %d or a part fewer "
        "than k = %d; no class counts are told.",
        release.k_row,
        release.k,
    )
    return False


def _compute_tables(packed: bytes, model_sha256: str, request: Request, site: Site) -> EvaluationTables:
    """Return the tables that may leave; those of a test are stored, also in full for the site's own report."""
    plan = request.plan
    network, _ = _fill_network(packed, request, site, before_round=request.round + 1)
    is_test = request.part == "test"
    part: ImagePart = site.data.test if is_test else site.data.validation
    logits, groups = compute_logits(network.model, part, plan, device=site.device), [site.name] * len(part)
    tables = release_tables(logits, part.labels, groups, site.release_of("test" if is_test else "validation"))
    if is_test:
        own = tables_from_logits(logits, part.labels, groups) if site.is_hospital else None
        site.files_of(plan).store_test_tables(model_sha256, tables, own)
    return tables


def _fill_network(
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
