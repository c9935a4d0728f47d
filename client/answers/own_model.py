"""A site's model of its own: trained on its images alone with the federation's budget, and never sent.

It begins with the federation's initial model and takes the same number of epochs at the same learning rates, with the
same loss and this site's own class counts. After every round it is scored on this site's validation images, and the
best state is kept. ::

    local/round_00007.safetensors    the best state so far: all tensors of the model, and the optimiser's
    local/round_00012.safetensors    the last one, with which the training goes on
"""

import hashlib
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import torch
from pydantic import JsonValue, TypeAdapter

from client.answers.losses import measure_risks
from client.hospital.site_data import Site
from fedmed.config import Plan
from fedmed.distillation.network import get_network
from fedmed.errors import TrainingError, WireError
from fedmed.metrics.classification import compute_figures
from fedmed.protocol.reading import explained
from fedmed.protocol.reports import LocalReport
from fedmed.protocol.tensors import load_state, select_state
from fedmed.storage.atomic_files import encode_json
from fedmed.storage.site_state import SiteState
from fedmed.training.evaluate import evaluate
from fedmed.training.fit import fit
from fedmed.training.network import Network

_logger = logging.getLogger("fedmed.client")
_MODEL, _MOMENTUM = "model/", "momentum/"
_DEFINING = {"seed", "rounds", "classes", "image_size", "augmentation", "model", "loss", "training", "fopro"}
"""Parts of a plan that define the training."""

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class LocalProgress:
    """How far a site's own model is."""

    rounds_done: int = 0
    best_round: int = 0
    """Round with the best balanced accuracy on validation images, the first of equals; the last one where there are
    no such images."""
    best_value: float | None = None
    train_s: float = 0.0
    """Seconds of training so far."""


_PROGRESS = TypeAdapter(LocalProgress)


class LocalTraining:
    """The training of a site's own model in one run.

    All randomness comes from streams of its own, named by site and round, so that how many rounds are trained at a time
    makes no difference.

    Parameters
    ----------
    site : Site
        Whose images and folder are used.
    plan : Plan
        What the federation trains.
    """

    def __init__(self, site: Site, plan: Plan) -> None:
        self._site = site
        # Nothing but the federation's rounds breaks the momentum off, and there is no global model to stay near to.
        settings = plan.training.model_copy(update={"keep_momentum": True, "proximal_mu": 0.0})
        self._plan = plan.model_copy(update={"training": settings, "divergence": "none"})
        self._network = get_network(plan)
        self._states = SiteState(site.files_of(plan).folder / "local")
        parts = _DEFINING if plan.fopro is not None else _DEFINING - {"fopro"}  # as runs before there were teachers
        defining = encode_json(plan.model_dump(mode="json", include=parts))
        self._digest = hashlib.sha256(defining.encode()).hexdigest()

    def train(self, initial: bytes | None, last_round: int, longest_s: float) -> LocalProgress | None:
        """Train all rounds that are left up to one, and save.

        Parameters
        ----------
        initial : bytes, optional
            The federation's initial model, as it travels; needed once.
        last_round : int
            Up to which round; the plan's last one at most.
        longest_s : float
            Seconds after which no further round is begun; one is trained in any case.

        Returns
        -------
        LocalProgress or None
            None if the initial model is needed.

        Raises
        ------
        TrainingError
            If the site has no training images or the loss is no longer a finite number.
        WireError
            If the run's plan is not the one that the training began with.
        """
        found = self._load()
        if found is None:
            if initial is None:
                return None
            self._network.fill(initial, {})
        progress, momentum = found or (LocalProgress(), {})
        best, begin, first = None, time.monotonic(), progress.rounds_done + 1
        for number in range(first, last_round + 1):
            if number > first and time.monotonic() - begin > longest_s:
                break
            progress, momentum = self._train_round(number, progress, momentum)
            if progress.best_round == number:
                best = progress, self._snapshot(momentum)
        if progress.rounds_done >= first:
            if best is not None and best[0].best_round < progress.rounds_done:
                self._save(*best)
            self._save(progress, self._snapshot(momentum))
        return progress

    def load_best(self, network: Network) -> LocalProgress | None:
        """Fill a network with the best state so far.

        Returns
        -------
        LocalProgress or None
            None, and an unchanged network, where there is no sound state.
        """
        last = self._read(self._plan.rounds)
        best = None if last is None else self._read(last[1].best_round)
        if last is None or best is None or best[1].rounds_done != last[1].best_round:
            return None
        load_state(network.whole.cpu(), _select(best[0], _MODEL), list(network.whole.state_dict()))
        return last[1]

    def describe(self, progress: LocalProgress) -> LocalReport:
        """Return what is told of the model, which itself never leaves.

        That is how far it is and, where the federation asks for the sites' losses, that of the best state on the
        training images, so that the federation's model can be compared with it.
        """
        loss = None
        if self._plan.losses == "site" and self.load_best(self._network) is not None:
            loss = measure_risks(self._network.model, self._plan, self._site).start_loss
        with explained(LocalReport, TrainingError):
            return LocalReport(rounds_done=progress.rounds_done, loss=loss, train_s=progress.train_s)

    def _train_round(
        self, number: int, progress: LocalProgress, momentum: Tensors
    ) -> tuple[LocalProgress, dict[str, torch.Tensor]]:
        site, plan, network = self._site, self._plan, self._network
        if not len(site.data.train):
            raise TrainingError("This site has no training image left, so it can train no model of its own.")
        result = fit(
            network.trainee,
            site.data.train,
            plan,
            site=f"{site.name} local",  # no site's name holds a space
            round_number=number,
            device=site.device,
            optimizer_state=dict(momentum),
            objective=network.objective,
        )
        tables = evaluate(network.model, site.data.validation, plan, group=site.name, device=site.device)
        value = compute_figures(tables)["balanced_accuracy"].value
        progress = replace(progress, rounds_done=number, train_s=progress.train_s + result.train_s)
        if value is None or progress.best_value is None or value > progress.best_value:
            progress = replace(progress, best_round=number, best_value=value)
        return progress, result.optimizer_state

    def _snapshot(self, momentum: Tensors) -> dict[str, torch.Tensor]:
        whole = self._network.whole
        state = select_state(whole, whole.state_dict())
        return {_MODEL + name: tensor for name, tensor in state.items()} | {
            _MOMENTUM + name: tensor for name, tensor in momentum.items()
        }

    def _save(self, progress: LocalProgress, tensors: Tensors) -> None:
        meta: dict[str, JsonValue] = {"plan": self._digest, "progress": asdict(progress)}
        self._states.save(progress.rounds_done, tensors, meta, keep=progress.best_round)

    def _load(self) -> tuple[LocalProgress, dict[str, torch.Tensor]] | None:
        """Fill the network with the last state; None if there is none, or the best one is lost."""
        found = self._read(self._plan.rounds)
        if found is None or not (self._states.root / f"round_{found[1].best_round:05d}.safetensors").is_file():
            return None
        load_state(self._network.whole.cpu(), _select(found[0], _MODEL), list(self._network.whole.state_dict()))
        return found[1], _select(found[0], _MOMENTUM)

    def _read(self, last_round: int) -> tuple[dict[str, torch.Tensor], LocalProgress] | None:
        """Return the newest sound state of a round up to one."""
        found = self._states.load_before(last_round + 1)
        for problem in self._states.problems:
            _logger.warning("%s: %s An older state is used.", self._site.name, problem)
        if found is None:
            return None
        tensors, meta = found
        if meta["plan"] != self._digest:
            raise WireError(
                "The plan of this run is not the one with which this site began to train its own model. Begin a new "
                "run."
            )
        return tensors, _PROGRESS.validate_python(meta["progress"])


def _select(tensors: Tensors, prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
