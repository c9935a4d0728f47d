"""The common model, split into what travels and what stays at a site."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fedmed.config import Plan
from fedmed.models import create_model
from fedmed.protocol.tensors import load_state, pack_tensors, select_state, unpack_tensors
from fedmed.seeding import seeded_torch
from fedmed.training.batch_norm_policy import shared_names
from fedmed.training.devices import use_channels_last
from fedmed.training.objective import MakeObjective, PlainObjective

LOCAL = "local/"
"""Begins the names of what stays at a site, in the site's state."""


class Network:
    """A model with its BatchNorm policy.

    A module of the model may name parts of itself that never change and that every process has, in an attribute
    ``frozen_parts``: they neither travel nor stay in a site's state.

    Parameters
    ----------
    plan : Plan
        Names the model, the policy and the seed; equal plans give equal initial values.
    **local_options
        Further options of the model that only this process needs, such as ``pretrained_backbone``.

    Attributes
    ----------
    model : nn.Module
        The network that is evaluated and released.
    trainee : nn.Module
        What is trained at a site: the same, or a module around it.
    whole : nn.Module
        Holds all tensors that travel, under the names by which they do.
    objective : callable
        Makes what a site's training minimises.

    Notes
    -----
    A plan with a distillation needs the network of :func:`fedmed.distillation.network.build_network`.
    """

    def __init__(self, plan: Plan, **local_options: Any) -> None:
        options = plan.model.options | local_options
        with seeded_torch(plan.seed, "model"):
            model = create_model(plan.model.name, len(plan.classes), **options)
        self.model: nn.Module = use_channels_last(model)
        self.objective: MakeObjective = PlainObjective
        self.trainee, self.whole = self._wrap(plan)
        moving = set(self.whole.state_dict()) - _find_frozen(self.whole)
        moving_now = moving - self._find_kept(plan)
        self.shared = [name for name in shared_names(self.whole, plan.batch_norm) if name in moving_now]
        self.local = sorted(moving - set(self.shared))
        self._initial_local = select_state(self.whole, self.local)
        self._received: tuple[bytes, dict[str, torch.Tensor]] | None = None

    def _wrap(self, plan: Plan) -> tuple[nn.Module, nn.Module]:
        """Return ``trainee`` and ``whole``, once the model is there."""
        assert plan == plan.plain(), "a plan with a distillation needs fedmed.distillation.network.build_network"
        return self.model, self.model

    def _find_kept(self, plan: Plan) -> set[str]:
        """Return names of what stays at a site, beside BatchNorm."""
        return set()

    @property
    def parameter_names(self) -> frozenset[str]:
        """Names of what travels and is trained with the labels."""
        names = {name for name, parameter in self.whole.named_parameters() if parameter.requires_grad}
        return frozenset(name for name in names if name in self.shared)

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
        own = {name: kept.get(LOCAL + name, self._initial_local[name]) for name in self.local}
        load_state(self.whole, own, self.local)

    def withhold(self, packed: bytes, num_images: int) -> None:
        """Take back, after a training on so few images, what would tell about them; nothing in a plain network.

        Parameters
        ----------
        packed : bytes
            From which the training began.
        num_images : int
            Training images of the site.
        """

    def local_state(self) -> dict[str, torch.Tensor]:
        """Return what stays at the site; empty unless BatchNorm is local, or another part of the network is."""
        return {LOCAL + name: tensor for name, tensor in select_state(self.whole, self.local).items()}

    def digest(self) -> str:
        """Return a hash of names, shapes and types of all that travels; equal definitions have equal hashes."""
        state = self.whole.state_dict()
        text = "\n".join(f"{name} {tuple(state[name].shape)} {state[name].dtype}" for name in self.shared)
        return hashlib.sha256(text.encode()).hexdigest()


def _find_frozen(whole: nn.Module) -> set[str]:
    """Return names of tensors that never change and that every process has."""
    return {
        f"{name}.{part}.{tensor}" if name else f"{part}.{tensor}"
        for name, module in whole.named_modules()
        for part in getattr(module, "frozen_parts", ())
        for tensor in module.get_submodule(part).state_dict()
    }


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
