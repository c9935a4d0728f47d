"""The network of a plan; with a distillation, what it trains at the sites stands beside the model.

With one, tensors travel as ``model.*``, ``projector.*``, ``auxiliary.*`` and, those of the prompt, ``fpg.*``.
"""

from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

import torch
from torch import nn

from fedmed.config import FoproPlan, Plan
from fedmed.distillation.at_sites.ekd import MIN_IMAGES_TO_SHARE_PROMPT, DistillationStudent
from fedmed.distillation.at_sites.objective import DistillationObjective
from fedmed.distillation.prompt.fourier_prompt import FourierPrompt, make_prompt
from fedmed.distillation.teachers.cache import take_teacher
from fedmed.distillation.teachers.classifier import find_classifier
from fedmed.protocol.tensors import load_state, pack_tensors, unpack_tensors
from fedmed.seeding import seeded_torch
from fedmed.training.network import LOCAL, Network

_PLAIN, PROMPT = "model.", "fpg."


class _Whole(nn.Module):
    """All that a distillation trains, under the names by which it travels."""

    def __init__(self, student: DistillationStudent, prompt: FourierPrompt) -> None:
        super().__init__()
        self.model, self.projector, self.auxiliary, self.fpg = (
            student.model,
            student.projector,
            student.auxiliary,
            prompt,
        )


class DistilledNetwork(Network):
    """A network and what its distillation trains beside it.

    Parameters
    ----------
    plan : Plan
        With ``fopro``; equal plans give equal initial values.
    **local_options
        As for :class:`Network`.

    Attributes
    ----------
    prompt : FourierPrompt
        A reconstruction, on the teacher's images alone.

    Raises
    ------
    TeacherUnavailableError
        If the teacher is not here.
    FourierPromptError
        If the teacher cannot guide the prompt.
    """

    prompt: FourierPrompt

    def _wrap(self, plan: Plan) -> tuple[nn.Module, nn.Module]:
        assert plan.fopro is not None, "the plan has a teacher"
        with seeded_torch(plan.seed, "distillation"):
            student = DistillationStudent(
                self.model,
                _count_features(self.model, plan.fopro),
                hidden=plan.fopro.hidden,
                auxiliary=plan.fopro.auxiliary,
            )
            self.prompt = make_prompt(plan.fopro.prompt.options)
        self.objective = partial(DistillationObjective, prompt=self.prompt)
        return student, _Whole(student, self.prompt)

    def _find_kept(self, plan: Plan) -> set[str]:
        """Return what stays by ``fopro.exchange``: projector and auxiliary head, or the network's last layer."""
        if plan.fopro is None or plan.fopro.exchange == "both":
            return set()
        prefixes: tuple[str, ...] = ("projector.", "auxiliary.")
        if plan.fopro.exchange == "aux":
            prefixes = (f"{_PLAIN}{find_classifier(self.model)[0]}.",)
        return {name for name in self.whole.state_dict() if name.startswith(prefixes)}

    @property
    def parameter_names(self) -> frozenset[str]:
        """Names of what travels and is trained with the labels; the prompt's scale is another."""
        return frozenset(name for name in super().parameter_names if not name.startswith(PROMPT))

    def withhold(self, packed: bytes, num_images: int) -> None:
        """Set the prompt back to the one that came, where a site has too few images to share its own."""
        if num_images >= MIN_IMAGES_TO_SHARE_PROMPT:
            return
        tensors = unpack_tensors(packed)
        names = [name for name in self.shared if name.startswith(PROMPT)]
        load_state(self.whole, {name: tensors[name] for name in names}, names)


def build_network(plan: Plan, **local_options: Any) -> Network:
    """Return a new network for a plan, with what its distillation needs where it has one.

    Parameters
    ----------
    plan : Plan
        Names the model, the policy, the teacher and the seed; equal plans give equal initial values.
    **local_options
        As for :class:`Network`.

    Raises
    ------
    TeacherUnavailableError
        If the plan has a teacher that is not here.
    FourierPromptError
        If the teacher cannot guide the prompt.
    """
    make = Network if plan.fopro is None else DistilledNetwork
    return make(plan, **local_options)


@lru_cache(maxsize=2)
def _keep_network(plan_json: str) -> Network:
    return build_network(Plan.model_validate_json(plan_json))


def get_network(plan: Plan) -> Network:
    """Return this process's network for a plan; the next caller gets the same object, so fill it before use."""
    return _keep_network(plan.model_dump_json())


def strip_packed(packed: bytes, plan: Plan) -> bytes:
    """Return a packed model as a network of :meth:`Plan.plain` takes it: without projector, auxiliary head and prompt.

    Needs no teacher. With ``fopro.exchange: aux`` it lacks the last layer; :func:`add_last_layer` adds a site's own.
    """
    if plan.fopro is None:
        return packed
    tensors = unpack_tensors(packed)
    return pack_tensors({name.removeprefix(_PLAIN): t for name, t in tensors.items() if name.startswith(_PLAIN)})


def strip_state(kept: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a site's state as a network of :meth:`Plan.plain` takes it, whether or not there was a distillation.

    Parameters
    ----------
    kept : mapping of str to Tensor
        With the entries of :meth:`Network.local_state` of the site.
    """
    prefix = LOCAL + _PLAIN
    plain = {LOCAL + name.removeprefix(prefix): t for name, t in kept.items() if name.startswith(prefix)}
    return plain | dict(kept)


def add_last_layer(packed: bytes, network: Network, kept: Mapping[str, torch.Tensor]) -> bytes:
    """Return a packed model of a plain network with what it lacks of it from the state of a site.

    Parameters
    ----------
    packed : bytes
        From :func:`strip_packed`.
    network : Network
        That of :meth:`Plan.plain`.
    kept : mapping of str to Tensor
        From :func:`strip_state`; what it lacks too, stays missing.
    """
    tensors = unpack_tensors(packed)
    own = {name: kept.get(LOCAL + name) for name in network.shared if name not in tensors}
    return pack_tensors(tensors | {name: tensor for name, tensor in own.items() if tensor is not None})


def _count_features(model: nn.Module, fopro: FoproPlan) -> int:
    """Return the number of the teacher's features; for ``self`` those of the network."""
    return find_classifier(model)[1].in_features if fopro.teacher.is_self else take_teacher(fopro).num_features
