"""The ClientApp: a site's answers to describe, fit and evaluate.

The same object runs in a simulation's worker and in a hospital's process, where :mod:`client.guard.guard` checks and
records all that comes in and goes out.
"""

import logging
from collections.abc import Iterable, Mapping

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.answers.alert import find_alerts
from client.answers.answering import (
    ask_for_model,
    choose_batch,
    fill_network,
    has_too_few_images,
    has_too_few_patients,
    memory,
    open_request,
    register_files,
    reply,
)
from client.answers.compared_models import compute_compared_logits
from client.answers.losses import (
    count_for_prompt,
    measure_risks,
    require_images,
    tell_distillation,
    tell_training,
    weigh_images,
)
from client.answers.norm_sums import tell_norm_sums
from client.answers.own_model import LocalTraining
from client.answers.small_network import compute_other_logits, measure_own_mismatch, train_student
from client.answers.temperature_sums import collect_temperature_sums
from client.guard.guard import guard_messages
from client.guard.leaving import warn_of_tables
from client.guard.requests import Request
from client.guard.second_model import take_other
from client.hospital.measurements import refuse_measurements
from client.hospital.own_rows import encode_rows
from client.hospital.site_data import Site
from client.hospital.told_rows import CountedPart
from fedmed.config import SITE_ATTRIBUTE, FairnessConfig, Plan
from fedmed.data import ImagePart, count_classes
from fedmed.distillation import describe_teacher
from fedmed.distillation.network import get_network
from fedmed.errors import TrainingError
from fedmed.fairness.disclosure.tables import disclose_tables, tell_everything
from fedmed.metrics.site_tables import FEDERATED, UNCALIBRATED, SiteTables
from fedmed.protocol.kinds import ScoredPart
from fedmed.protocol.messages import MODEL, read_artefact
from fedmed.protocol.quantisation import compress_update
from fedmed.protocol.reports import (
    Declined,
    FormsReport,
    NormSumsReport,
    Part,
    ScoreReport,
    SiteDescription,
    TemperatureReport,
    Thresholds,
)
from fedmed.protocol.tensors import select_state, unpack_tensors
from fedmed.training.evaluate import compute_logits
from fedmed.training.fit import fit
from fedmed.training.network import Network, hash_model
from fedmed.versions import find_versions

_logger = logging.getLogger("fedmed.client")

_MOMENTUM, _RESIDUAL = "momentum/", "residual/"

app = ClientApp(mods=[guard_messages])


@app.query()
def describe(message: Message, context: Context) -> Message:
    """Answer who this site is, how many images it has and which versions it runs.

    Of validation and test, only images that may be counted are told, since a total would give away what the tables
    hold back.
    """
    site, request = open_request(message, context)
    if site.is_hospital:  # in a simulation they have been cut at the quartiles of all sites
        refuse_measurements(site.data, request.plan.fairness)
    release = site.disclosure_of("validation")
    parts: tuple[ScoredPart, ...] = ("validation", "test")
    scored = {name: site.count_part(name, request.plan.fairness) for name in parts}
    told = SiteDescription(
        site=site.name,
        num_images={
            "train": site.count_told("train"),
            **{name: site.round_down(part.plan.num_told) for name, part in scored.items()},
        },
        model_digest=get_network(request.plan).digest(),
        teacher=describe_teacher(request.plan.fopro),
        versions=find_versions("fedmed", "flwr", "torch"),
        class_counts=_count_classes(site) if _may_tell_counts(site, scored.values()) else None,
        attributes=[name for name in scored["validation"].groups if name != SITE_ATTRIBUTE],
        validation_scores=site.policy.validation_scores,
        validation_tables=site.policy.validation_tables,
        show_alone=site.policy.show_alone,
        synthetic=site.synthetic,
        unit=scored["test"].unit,
        thresholds=Thresholds(k=release.k, k_row=release.k_row, k_bin=1 if release.is_open else release.k_bin),
    )
    warn_of_tables(request.plan, site.policy)
    return reply(message, told)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the global model on this site's images and answer with the update."""
    site, request = open_request(message, context)
    if has_too_few_patients(site):  # none is left, too, where patients have withdrawn
        return reply(message, Declined(declined=True))
    require_images(site)
    packed = memory.take(message, request)
    if packed is None:
        return ask_for_model(message)
    network, kept = fill_network(packed, request, site, before_round=request.round)
    risks = measure_risks(network.model, request.plan, site)
    momentum = _select(kept, _MOMENTUM)
    result = fit(
        network.trainee,
        site.data.train,
        choose_batch(request.plan, site),
        site=site.name,
        round_number=request.round,
        device=site.device,
        optimizer_state=momentum if request.plan.training.keep_momentum else None,
        image_weights=weigh_images(request.plan, site, request.group_weights),
        objective=network.objective,
    )
    network.withhold(packed, count_for_prompt(result, site))
    update, residual = _pack_update(network, packed, request.plan, kept)
    state = network.local_state() | {_MOMENTUM + name: t for name, t in result.optimizer_state.items()} | residual
    if state:
        site.files_of(request.plan).state.save(request.round, state, {}, keep=request.best_round)
    return reply(message, tell_training(result, risks, site), model=update)


@app.train("local")
def train_alone(message: Message, context: Context) -> Message:
    """Train this site's model of its own, which stays here, and answer how far it is.

    Begins no further round after half of the time in which the server waits; it asks again then.
    """
    site, request = open_request(message, context)
    if not site.policy.benefit:
        return reply(message, Declined(declined=True))
    training = LocalTraining(site, request.plan)
    progress = training.train(memory.take(message, request), request.round, message.metadata.ttl / 2)
    if progress is None:
        return ask_for_model(message)
    return reply(message, training.describe(progress))


@app.train("distil")
def train_small(message: Message, context: Context) -> Message:
    """Train the small network on this site's images against the frozen large one, and answer with the update."""
    site, request = open_request(message, context)
    if has_too_few_patients(site):  # none is left, too, where patients have withdrawn
        return reply(message, Declined(declined=True))
    require_images(site)
    packed, large = memory.take(message, request), take_other(message, request.other)
    if packed is None or large is None:
        return ask_for_model(message)
    network = get_network(request.plan)
    network.fill(packed, {})
    result = train_student(network.model, large, request, site)
    return reply(message, tell_distillation(result, site), model=network.pack())


@app.evaluate()
def score(message: Message, context: Context) -> Message:
    """Score a global model on this site's validation or test images and answer with tables.

    Test tables are computed once for a model and stored; asked again, the stored answer is given, also with another
    temperature, since many of them would tell single scores. Only if the site has raised its thresholds or a patient
    has withdrawn since, they are computed anew.
    """
    site, request = open_request(message, context)
    packed = memory.take(message, request)
    # What is kept in memory was hashed when it came.
    arrived = packed if MODEL in message.content else None
    model_sha256 = str(request.model_sha256) if arrived is None else hash_model(arrived)
    tables = None
    if request.part == "test":
        data = site.digest_part("test")
        tables = site.files_of(request.plan).read_test_tables(model_sha256, data, site.disclosure_of("test"), site.name)
    if tables is None:
        if packed is None:
            return ask_for_model(message)
        tables = _compute_tables(packed, model_sha256, request, site, take_other(message, request.other))
    told = ScoreReport(model_sha256=model_sha256)
    if packed is not None and request.part == "validation" and request.other is not None:
        network, _ = fill_network(packed, request, site, before_round=request.round + 1)
        mismatch = measure_own_mismatch(network.model, request, site)
        told = ScoreReport(model_sha256=model_sha256, mismatch=mismatch)
    return reply(message, told, tables=tables)


@app.evaluate("recalibrate")
def sum_norm_inputs(message: Message, context: Context) -> Message:
    """Answer with the sums of what every BatchNorm gets from this site's training images, without changing anything."""
    site, request = open_request(message, context)
    if has_too_few_images(site):
        raise TrainingError("This site has fewer training images than its policy.min_images; no sums of them leave.")
    packed = memory.take(message, request)
    if packed is None:
        return ask_for_model(message)
    network, _ = fill_network(packed, request, site, before_round=request.round + 1)
    sums = tell_norm_sums(network.model, request, site)
    return reply(message, NormSumsReport(model_sha256=hash_model(packed)), sums=sums)


@app.evaluate("calibrate")
def sum_likelihoods(message: Message, context: Context) -> Message:
    """Answer with the sums from which a temperature is fitted, over the validation images that may be counted."""
    site, request = open_request(message, context)
    packed = memory.take(message, request)
    if packed is None:
        return ask_for_model(message)
    network, _ = fill_network(packed, request, site, before_round=request.round + 1)
    n, sums = collect_temperature_sums(network.model, request, site)
    told = TemperatureReport(model_sha256=hash_model(packed), n=n)
    return reply(message, told, sums={"temperature": sums} if n else None)


@app.evaluate("release")
def compare_forms(message: Message, context: Context) -> Message:
    """Compare the chosen model with its deployable artefact on this site's test images, and answer with differences."""
    # Imported late: the ONNX runtime is needed for this alone.
    from client.answers.compare_forms import compare_candidate  # noqa: PLC0415

    site, request = open_request(message, context)
    artefact = read_artefact(message)
    packed = memory.take(message, request)
    if packed is None:
        return ask_for_model(message)
    network, _ = fill_network(packed, request, site, before_round=request.round + 1)
    told = FormsReport(
        model_sha256=hash_model(packed),
        artefact_sha256=request.artefact_sha256,
        comparison=compare_candidate(artefact, network.model, request, site),
    )
    return reply(message, told)


def _pack_update(
    network: Network, packed: bytes, plan: Plan, kept: Mapping[str, torch.Tensor]
) -> tuple[bytes, dict[str, torch.Tensor]]:
    """Return the trained model as it travels, and what its rounding has left out for the next round."""
    if plan.compression == "none":
        return network.pack(), {}
    new = select_state(network.whole, network.shared)
    update, residual = compress_update(new, unpack_tensors(packed), _select(kept, _RESIDUAL), plan.compression)
    return update, {_RESIDUAL + name: tensor for name, tensor in residual.items()}


def _select(kept: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in kept.items() if name.startswith(prefix)}


def _may_tell_counts(site: Site, scored: Iterable[CountedPart]) -> bool:
    """Return whether no class of any part is small, nor has become known before with few images more or less."""
    if not site.share_class_counts:
        return False
    train = site.count_part("train", FairnessConfig(attributes=[], intersections="none"))
    if all(part.plan.is_complete for part in (train, *scored)):
        return True
    _logger.warning(
        "share_class_counts is true, but a class has fewer images than policy.suppression.k_row = %d, a part fewer "
        "than k = %d, or the difference from earlier numbers is that small; no class counts are told.",
        site.policy.suppression.k_row,
        site.policy.suppression.k,
    )
    return False


def _count_classes(site: Site) -> dict[Part, list[int]]:
    data = site.data
    parts: dict[Part, ImagePart] = {"train": data.train, "validation": data.validation, "test": data.test}
    return {name: count_classes(part, len(data.classes)) for name, part in parts.items()}


def _compute_tables(packed: bytes, model_sha256: str, request: Request, site: Site, other: bytes | None) -> SiteTables:
    """Return the tables that may leave; those of a test are stored, also in full for the site's own report."""
    network, _ = fill_network(packed, request, site, before_round=request.round + 1)
    is_test = request.part == "test"
    name = "test" if is_test else "validation"
    counted = site.count_part(name, request.plan.fairness)
    part: ImagePart = getattr(site.data, name)
    logits = {FEDERATED: compute_logits(network.model, part, request.plan, device=site.device)}
    if is_test and request.temperature is not None:
        # In float64, in which two different logits stay different when they are divided.
        plain_NK = logits[FEDERATED]
        logits = {FEDERATED: plain_NK.double() / request.temperature, UNCALIBRATED: plain_NK}
    if is_test and request.compare:
        logits |= compute_compared_logits(network, request, site)
    if other is not None:
        logits |= compute_other_logits(other, request, site, name)
    alerts = find_alerts(request, logits[FEDERATED])
    counted, told = (
        site.hold_rows(name, counted, logits, None if alerts is None else alerts.raised),
        site.disclosure_of(name),
    )
    tables = disclose_tables(logits, part.labels, counted.groups, counted.plan, told, part.patients, alerts)
    if is_test:
        files, data = site.files_of(request.plan), site.digest_part("test")
        if site.is_hospital:
            own = tell_everything(logits, part.labels, counted.groups, part.patients, alerts)
            rows = encode_rows(logits, part.labels, counted.groups, part.patients)
            files.store_test_tables(model_sha256, data, tables, own, rows)
        else:
            files.store_test_tables(model_sha256, data, tables)
    return tables


register_files(app)
