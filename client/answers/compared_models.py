"""Is this hospital better off? The models with which a site compares the federation's, on its own test images.

=================  ==================================================================================
``batch_norm``     the federation's model with BatchNorm's statistics of this site's training images
``fine_tuned``     the federation's model, trained on for one round on them, like the run's last one
``local``          the model that was trained on them alone, see :mod:`client.answers.own_model`
=================  ==================================================================================

Nothing is selected on test images: the first two have no choice to make, and the best round of the third is chosen on
validation images. None of these models leaves the site.
"""

import logging
from collections.abc import Callable

import torch
from torch import nn

from client.answers.own_model import LocalTraining
from client.guard.requests import Request
from client.hospital.site_data import Site
from fedmed.config import Plan
from fedmed.data import make_batches, make_eval_transform
from fedmed.distillation.network import get_network
from fedmed.errors import FedmedError, TrainingError
from fedmed.metrics.site_tables import BATCH_NORM, FINE_TUNED, LOCAL
from fedmed.protocol.tensors import load_state, select_state
from fedmed.reparameterization import apply_sums, collect_sums
from fedmed.reparameterization.statistics import Sums, tracked_norms
from fedmed.seeding import make_rng
from fedmed.training.evaluate import compute_logits
from fedmed.training.fit import fit
from fedmed.training.network import Network

_logger = logging.getLogger("fedmed.client")

_BATCH = 64


def compute_compared_logits(network: Network, request: Request, site: Site) -> dict[str, torch.Tensor]:
    """Return the outputs of the models with which the federation's is compared, for this site's test images.

    Parameters
    ----------
    network : Network
        Filled with the federation's final model and what this site keeps; is left so, in evaluation mode.
    request : Request
        Its ``compare`` says which models are asked for.
    site : Site
        Whose images are used.

    Returns
    -------
    dict of str to Tensor
        By name of the model, float32 (N, K). A model that cannot be had is left out, and the site's log says why.
    """
    if not site.policy.benefit:
        return {}
    # The site's own model is of the network that was trained, also where a smaller one is released.
    trained = request.plan if request.other is None else request.other.plan
    makers: dict[str, Callable[[], Network]] = {
        BATCH_NORM: lambda: _renew_batch_norm(network, request, site),
        FINE_TUNED: lambda: _fine_tune(network, request, site),
        LOCAL: lambda: _take_local(network if trained == request.plan else get_network(trained), trained, site),
    }
    names = list(network.whole.state_dict())
    federated = select_state(network.whole, names)
    found: dict[str, torch.Tensor] = {}
    for name in request.compare:
        try:
            compared = makers[name]()
            found[name] = compute_logits(compared.model, site.data.test, request.plan, device=site.device)
        except FedmedError as error:
            _logger.warning("%s: the federation is not compared with '%s': %s", site.name, name, error)
        finally:
            load_state(network.whole.cpu(), federated, names)
            network.model.eval()
    return found


def collect_norm_sums(model: nn.Module, request: Request, site: Site, purpose: str) -> Sums:
    """Return the sums of what every BatchNorm gets from a site's training images, without changing anything.

    Parameters
    ----------
    model : nn.Module
        Train form.
    request : Request
        Names round and plan.
    site : Site
        Whose images are used.
    purpose : str
        Names the stream that draws which images are in one batch.
    """
    part, plan = site.data.train, request.plan
    transform = make_eval_transform(plan.augmentation, plan.image_size)
    order = make_rng(plan.seed, site.name, request.round, purpose).permutation(len(part))
    if len(order) == 1:  # a single image has no variance in a layer of one position; twice, it has the variance 0
        order = order.repeat(2)
    batches = (transform(part.images(batch)).to(site.device) for batch in make_batches(order, _BATCH))
    return collect_sums(model.to(site.device), batches, batch_statistics=True)


def plan_fine_tuning(plan: Plan) -> Plan:
    """Return a plan whose last round is the one of fine-tuning: as in the federation, but with no anchor.

    Notes
    -----
    The learning rates are those of the last round. Higher ones throw away what the schedule has reached: on validation
    images of the default simulation (cosine schedule, four sites) the mean balanced accuracy was 0.780 before, 0.792
    with the last rate, which is 1.7 % of the base rate, and 0.769, 0.694 and 0.435 with 10, 30 and 100 %.
    """
    changes = {"proximal_mu": 0.0, "keep_momentum": False}
    return plan.model_copy(update={"training": plan.training.model_copy(update=changes)})


def _renew_batch_norm(network: Network, request: Request, site: Site) -> Network:
    _require_images(site)
    if not tracked_norms(network.model):
        raise TrainingError("The network has no BatchNorm.")
    apply_sums(network.model, collect_norm_sums(network.model, request, site, "batch_norm"))
    return network


def _fine_tune(network: Network, request: Request, site: Site) -> Network:
    _require_images(site)
    fit(
        network.trainee,
        site.data.train,
        plan_fine_tuning(request.plan),
        site=f"{site.name} fine-tuned",  # a stream of its own: no site's name holds a space
        round_number=request.plan.rounds,
        device=site.device,
        objective=network.objective,
    )
    return network


def _take_local(network: Network, plan: Plan, site: Site) -> Network:
    progress = LocalTraining(site, plan).load_best(network)
    if progress is None:
        raise TrainingError("This site has no sound model of its own.")
    if progress.rounds_done < plan.rounds:
        raise TrainingError(
            f"This site's own model has had {progress.rounds_done} of {plan.rounds} rounds, so it would be no fair "
            "comparison."
        )
    return network


def _require_images(site: Site) -> None:
    if not len(site.data.train):
        raise TrainingError("This site has no training image left.")
