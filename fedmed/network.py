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
            self.model: nn.Module = create_model(plan.model.name, len(plan.classes), **options)
        self.shared = shared_names(self.model, plan.batch_norm)
        self.local = sorted(set(self.model.state_dict()) - set(self.shared))
        self._initial_local = select_state(self.model, self.local)

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
        load_state(self.model, unpack_tensors(packed), self.shared)
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


@lru_cache(maxsize=2)
def _build_network(plan_json: str) -> Network:
    return Network(Plan.model_validate_json(plan_json))


def get_network(plan: Plan) -> Network:
    """Return this process's network for a plan; the next caller gets the same object, so fill it before use."""
    return _build_network(plan.model_dump_json())
