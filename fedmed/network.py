"""The common model, split into what travels and what stays at a site."""

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from fedmed.aggregation import shared_names
from fedmed.config import Plan
from fedmed.models import create_model
from fedmed.seeding import seeded_torch
from fedmed.training import use_channels_last
from fedmed.wire import load_state, pack_tensors, select_state, unpack_tensors

_LOCAL = "local/"


class Network:
    """A model with its BatchNorm policy.

    Parameters
    ----------
    plan : Plan
        Names the model, the policy and the seed; equal plans give equal initial values.
    **local_options
        Further options of the model that only this process needs, such as ``pretrained_backbone``.
    """

    def __init__(self, plan: Plan, **local_options: Any) -> None:
        options = plan.model.options | local_options
        with seeded_torch(plan.seed, "model"):
            model = create_model(plan.model.name, len(plan.classes), **options)
        self.model: nn.Module = use_channels_last(model)
        self.shared = shared_names(self.model, plan.batch_norm)
        self.local = sorted(set(self.model.state_dict()) - set(self.shared))
        self._initial_local = select_state(self.model, self.local)
        self._received: tuple[bytes, dict[str, torch.Tensor]] | None = None

    def pack(self) -> bytes:
        """Return what travels as bytes."""
        state = self.model.state_dict()
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
        self.model.cpu()
        if self._received is None or self._received[0] is not packed:
            load_state(self.model, unpack_tensors(packed), self.shared)
            self._received = packed, select_state(self.model, self.shared)
        else:  # a process with many sites gets the same bytes for each; these copies are already in the model's layout
            load_state(self.model, self._received[1], self.shared)
        local = {name: kept.get(_LOCAL + name, self._initial_local[name]) for name in self.local}
        load_state(self.model, local, self.local)

    def local_state(self) -> dict[str, torch.Tensor]:
        """Return what stays at the site; empty unless BatchNorm is local."""
        return {_LOCAL + name: tensor for name, tensor in select_state(self.model, self.local).items()}

    def digest(self) -> str:
        """Return a hash of names, shapes and types of all that travels; equal definitions have equal hashes."""
        state = self.model.state_dict()
        text = "\n".join(f"{name} {tuple(state[name].shape)} {state[name].dtype}" for name in self.shared)
        return hashlib.sha256(text.encode()).hexdigest()


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
