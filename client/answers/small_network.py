"""A site's part in the compression of the aggregated network into a small one.

It scores both networks on the same images, tells how far its images are from the large one's BatchNorm statistics, and,
where the coordinating site has no images to distil on, trains the small one against the frozen large one. The
projector that this takes stays here, in ``distil/`` of the run's folder.
"""

import time

import numpy as np
import torch
from torch import nn

from client.answers.answering import choose_batch
from client.guard.requests import Request
from client.hospital.site_data import Site
from fedmed.config import SITE_ATTRIBUTE, Plan
from fedmed.data import count_classes, make_batches, make_eval_transform, make_train_transform
from fedmed.distillation import CoDistiller, StatisticsMatch, measure_mismatch
from fedmed.distillation.at_sites.ekd import DistillationStudent
from fedmed.distillation.network import get_network
from fedmed.distillation.pixels import held_still
from fedmed.distillation.teachers.classifier import find_classifier
from fedmed.errors import TrainingError
from fedmed.losses import build_loss
from fedmed.metrics.rounding import round_number
from fedmed.protocol.tensors import load_state, select_state
from fedmed.reparameterization.statistics import tracked_norms
from fedmed.seeding import make_rng, seeded_torch
from fedmed.storage.site_state import SiteState
from fedmed.training.batch_norm_policy import set_train_mode
from fedmed.training.evaluate import compute_logits
from fedmed.training.fit import FitResult
from fedmed.training.optimizers import set_learning_rate

MISMATCH_BATCH = 64
"""Images at a time, here and on the proxy images: the statistics of few images are far from any others."""
_HIDDEN = 256


def compute_other_logits(packed: bytes, request: Request, site: Site, part: str) -> dict[str, torch.Tensor]:
    """Return the outputs of the second model of a request for this site's validation or test images.

    Returns
    -------
    dict of str to Tensor
        By the model's name, float32 (N,K).
    """
    assert request.other is not None, "a request without a second model is not asked about it"
    model = _fill_other(packed, request)
    return {request.other.name: compute_logits(model, getattr(site.data, part), request.plan, device=site.device)}


def measure_own_mismatch(model: nn.Module, request: Request, site: Site) -> float | None:
    """Return how far this site's validation images are from a network's BatchNorm statistics, one number.

    Only images that the tables count class by class take part.

    Returns
    -------
    float or None
        None where there are fewer than the site's own threshold, or the network has no such statistics.
    """
    part, plan = site.data.validation, request.plan
    counted = site.count_part("validation", plan.fairness).plan.attributes[SITE_ATTRIBUTE].counted
    indices = np.flatnonzero(counted)
    num_patients = len({site.patient_of(part.items[place]) for place in indices})
    if len(indices) < 2 or num_patients < site.policy.suppression.k or not tracked_norms(model):
        return None
    transform = make_eval_transform(plan.augmentation, plan.image_size)
    batches = (transform(part.images(batch)).to(site.device) for batch in make_batches(indices, MISMATCH_BATCH))
    distance = measure_mismatch(StatisticsMatch(model.to(site.device).eval()), batches)
    return distance if site.policy.suppression.k <= 1 else round_number(distance)


def train_student(student: nn.Module, large: bytes, request: Request, site: Site) -> FitResult:
    """Train a small network in place on this site's images for one round, against the frozen large one.

    Parameters
    ----------
    student : nn.Module
        Holds the values of the federation's student.
    large : bytes
        The large network, packed.
    request : Request
        Its plan's rounds are those of this training alone.
    site : Site
        Whose images are used.

    Returns
    -------
    FitResult

    Raises
    ------
    TrainingError
        If the loss is no longer a finite number.
    """
    assert request.distil is not None, "the request was checked"
    start, plan, part = time.perf_counter(), request.plan, site.data.train
    teacher = _fill_other(large, request).to(site.device)
    state = SiteState(site.files_of(plan).folder / "distil")
    wrapper = _wrap(student, teacher, plan, state, request.round).to(site.device)
    main_loss = build_loss(plan.loss, count_classes(part, len(plan.classes))).to(site.device)
    with held_still(teacher):  # the network is this process's, for other requests as well
        distiller = CoDistiller(wrapper, teacher, main_loss, **request.distil.model_dump())
        mean_loss, rate = _run_epochs(distiller, request, site)
    if not np.isfinite(mean_loss):
        raise TrainingError(f"The distillation's loss is no finite number in round {request.round}. Lower its 'lr'.")
    state.save(request.round, select_state(wrapper.projector, wrapper.projector.state_dict()), {}, keep=None)
    return FitResult(len(part), mean_loss, rate, time.perf_counter() - start, {})


def _fill_other(packed: bytes, request: Request) -> nn.Module:
    assert request.other is not None, "the request was checked"
    network = get_network(request.other.plan)
    network.fill(packed, {})
    return network.model


def _wrap(
    student: nn.Module, teacher: nn.Module, plan: Plan, state: SiteState, round_number: int
) -> DistillationStudent:
    """Return the student with the projector of the round before, which is this site's own."""
    _, classifier = find_classifier(teacher)
    with seeded_torch(plan.seed, "distil", "projector"):
        wrapper = DistillationStudent(student, classifier.in_features, hidden=_HIDDEN, auxiliary=False)
    found = state.load_before(round_number)
    if found is not None:
        load_state(wrapper.projector, found[0], list(wrapper.projector.state_dict()))
    return wrapper


def _run_epochs(distiller: CoDistiller, request: Request, site: Site) -> tuple[float, float]:
    """Return the mean loss of an image, and the last learning rate."""
    plan, part, wrapper = request.plan, site.data.train, distiller.student
    settings, rate, total = choose_batch(plan, site).training, plan.training.optimizer.lr, 0.0
    optimizer = torch.optim.Adam(wrapper.parameters(), lr=rate)
    transform = make_train_transform(plan.augmentation, plan.image_size)
    set_train_mode(wrapper, len(part))
    num_images = 0
    with seeded_torch(plan.seed, site.name, request.round, "distil"):
        for local_epoch in range(settings.epochs_per_round):
            rate = set_learning_rate(optimizer, plan, request.round, local_epoch)
            order = make_rng(plan.seed, site.name, request.round, local_epoch, "distil").permutation(len(part))
            for indices in make_batches(order, settings.batch_size):
                x_B3HW = transform(part.images(indices)).to(site.device)
                loss = distiller(x_B3HW, part.labels[indices].to(site.device)).total
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                total, num_images = total + float(loss.detach()) * len(indices), num_images + len(indices)
    return total / num_images, rate
