"""The common model, split into what travels and what stays at a site."""

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from fedmed.config import FoproPlan, Plan
from fedmed.distillation import (
    DistillationStudent,
    FourierPrompt,
    FrozenTeacherClassifier,
    find_classifier,
    make_prompt,
    take_teacher,
)
from fedmed.models import create_model
from fedmed.protocol.tensors import load_state, pack_tensors, select_state, unpack_tensors
from fedmed.seeding import seeded_torch
from fedmed.training.batch_norm_policy import shared_names
from fedmed.training.devices import use_channels_last

_LOCAL, _PLAIN, PROMPT = "local/", "model.", "fpg."


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


class Network:
    """A model with its BatchNorm policy and, where the plan has a teacher, what its distillation trains beside it.

    Parameters
    ----------
    plan : Plan
        Names the model, the policy, the teacher and the seed; equal plans give equal initial values.
    **local_options
        Further options of the model that only this process needs, such as ``pretrained_backbone``.

    Attributes
    ----------
    model : nn.Module
        The network that is evaluated and released.
    trainee : nn.Module
        What is trained at a site: the same, or a :class:`fedmed.distillation.DistillationStudent` around it.
    prompt : FourierPrompt, optional
        A reconstruction, on the teacher's images alone; None without a distillation.
    whole : nn.Module
        Holds all tensors. With a distillation they are named ``model.*``, ``projector.*``, ``auxiliary.*`` and, those
        of the prompt, ``fpg.*``.

    Raises
    ------
    TeacherUnavailableError
        If the plan has a teacher that is not here.
    FourierPromptError
        If the teacher cannot guide the prompt.
    """

    def __init__(self, plan: Plan, **local_options: Any) -> None:
        options = plan.model.options | local_options
        with seeded_torch(plan.seed, "model"):
            model = create_model(plan.model.name, len(plan.classes), **options)
        self.model: nn.Module = use_channels_last(model)
        self.trainee: nn.Module = self.model
        self.whole: nn.Module = self.model
        self.prompt: FourierPrompt | None = None
        if plan.fopro is not None:
            with seeded_torch(plan.seed, "distillation"):
                student = DistillationStudent(
                    self.model,
                    _count_features(self.model, plan.fopro),
                    hidden=plan.fopro.hidden,
                    auxiliary=plan.fopro.auxiliary,
                )
                self.prompt = make_prompt(plan.fopro.prompt.options)
            self.trainee, self.whole = student, _Whole(student, self.prompt)
        moving = set(self.whole.state_dict()) - _find_frozen(self.whole)
        moving_now = moving - _find_kept_heads(self.whole, plan)
        self.shared = [name for name in shared_names(self.whole, plan.batch_norm) if name in moving_now]
        self.local = sorted(moving - set(self.shared))
        self._initial_local = select_state(self.whole, self.local)
        self._received: tuple[bytes, dict[str, torch.Tensor]] | None = None

    @property
    def parameter_names(self) -> frozenset[str]:
        """Names of what travels and is trained with the labels; the prompt's scale is another."""
        names = {name for name, parameter in self.whole.named_parameters() if parameter.requires_grad}
        return frozenset(name for name in names if name in self.shared and not name.startswith(PROMPT))

    def pack(self) -> bytes:
        """Return what travels as bytes."""
        state = self.whole.state_dict()
        return pack_tensors({name: state[name] for name in self.shared})

    def fill(self, packed: bytes, kept: Mapping[str, torch.Tensor]) -> None:
        """Set every parameter and buffer: shared ones from a message, local ones from the site's state.

        Parameters
        ----------
        packed : bytes
            From :meth:`pack` of an equal network.
        kept : mapping of str to Tensor
            From :meth:`local_state`; what it lacks takes the network's initial value.

        Raises
        ------
        WireError
            If the bytes do not fit the model.
        """
        self.whole.cpu()
        if self._received is None or self._received[0] is not packed:
            load_state(self.whole, unpack_tensors(packed), self.shared)
            self._received = packed, select_state(self.whole, self.shared)
        else:  # a process with many sites gets the same bytes for each; these copies are already in the model's layout
            load_state(self.whole, self._received[1], self.shared)
        load_state(self.whole, {name: self._find_kept(name, kept) for name in self.local}, self.local)

    def _find_kept(self, name: str, kept: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return a tensor of a site's state, which may be that of a distillation whose plain network this is."""
        found = kept.get(_LOCAL + name)
        if found is None and self.whole is self.model:
            found = kept.get(_LOCAL + _PLAIN + name)
        return self._initial_local[name] if found is None else found

    def reset_prompt(self, packed: bytes) -> None:
        """Set the prompt to that of a message, for a site that keeps its own to itself."""
        tensors = unpack_tensors(packed)
        names = [name for name in self.shared if name.startswith(PROMPT)]
        load_state(self.whole, {name: tensors[name] for name in names}, names)

    def local_state(self) -> dict[str, torch.Tensor]:
        """Return what stays at the site; empty unless BatchNorm is local, or ``fopro.exchange`` keeps a head there."""
        return {_LOCAL + name: tensor for name, tensor in select_state(self.whole, self.local).items()}

    def digest(self) -> str:
        """Return a hash of names, shapes and types of all that travels; equal definitions have equal hashes."""
        state = self.whole.state_dict()
        text = "\n".join(f"{name} {tuple(state[name].shape)} {state[name].dtype}" for name in self.shared)
        return hashlib.sha256(text.encode()).hexdigest()


def _count_features(model: nn.Module, fopro: FoproPlan) -> int:
    """Return the number of the teacher's features; for ``self`` those of the network."""
    return find_classifier(model)[1].in_features if fopro.teacher.is_self else take_teacher(fopro).num_features


def _find_kept_heads(whole: nn.Module, plan: Plan) -> set[str]:
    """Return what stays at a site by ``fopro.exchange``: projector and auxiliary head, or the network's last layer."""
    if plan.fopro is None or plan.fopro.exchange == "both":
        return set()
    prefixes: tuple[str, ...] = ("projector.", "auxiliary.")
    if plan.fopro.exchange == "aux":
        model = whole.get_submodule(_PLAIN.removesuffix("."))
        prefixes = (f"{_PLAIN}{find_classifier(model)[0]}.",)
    return {name for name in whole.state_dict() if name.startswith(prefixes)}


def _find_frozen(whole: nn.Module) -> set[str]:
    """Return names of tensors that never change and that every process has: those of a frozen teacher in a model."""
    return {
        f"{name}.teacher.{tensor}" if name else f"teacher.{tensor}"
        for name, module in whole.named_modules()
        if isinstance(module, FrozenTeacherClassifier)
        for tensor in module.teacher.state_dict()
    }


def strip_packed(packed: bytes, plan: Plan) -> bytes:
    """Return a packed model as a network of :meth:`Plan.plain` takes it: without projector, auxiliary head and prompt.

    Needs no teacher. With ``fopro.exchange: aux`` it lacks the last layer; :func:`add_last_layer` adds a site's own.
    """
    if plan.fopro is None:
        return packed
    tensors = unpack_tensors(packed)
    return pack_tensors({name.removeprefix(_PLAIN): t for name, t in tensors.items() if name.startswith(_PLAIN)})


def add_last_layer(packed: bytes, network: Network, kept: Mapping[str, torch.Tensor]) -> bytes:
    """Return a packed model of a plain network with what it lacks of it from the state of a site.

    Parameters
    ----------
    packed : bytes
        From :func:`strip_packed`.
    network : Network
        That of :meth:`Plan.plain`.
    kept : mapping of str to Tensor
        From :meth:`Network.local_state` of the site; what it lacks too, stays missing.
    """
    tensors = unpack_tensors(packed)
    own = {name: kept.get(_LOCAL + _PLAIN + name) for name in network.shared if name not in tensors}
    return pack_tensors(tensors | {name: tensor for name, tensor in own.items() if tensor is not None})


class _LastHash:
    """Remembers one hash, because a process with many sites is asked about the same bytes again and again."""

    def __init__(self) -> None:
        self._packed, self._digest = b"", ""

    def __call__(self, packed: bytes) -> str:
        """Return the SHA-256 of a packed model."""
        if packed is not self._packed:
            self._packed, self._digest = packed, hashlib.sha256(packed).hexdigest()
        return self._digest


hash_model = _LastHash()


@lru_cache(maxsize=2)
def _build_network(plan_json: str) -> Network:
    return Network(Plan.model_validate_json(plan_json))


def get_network(plan: Plan) -> Network:
    """Return this process's network for a plan; the next caller gets the same object, so fill it before use."""
    return _build_network(plan.model_dump_json())
