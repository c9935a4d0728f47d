"""Weights of either form into a network of either form.

Merging is possible at any time, splitting never: many sets of branches have the same sum. So a deploy form takes the
weights of the train form and merges them on the way, and a train form refuses the weights of a deploy form.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedmed.errors import CheckpointError
from fedmed.reparameterization.convert import reparameterize
from fedmed.reparameterization.places import is_bag

BRANCHES = ".branches."
STATISTICS = "running_mean"


@dataclass(frozen=True)
class Form:
    """In which form a network or a state dict is, as far as it can be seen.

    Attributes
    ----------
    num_bags : int
        Bags of parallel branches; with one or more it is the train form.
    num_batch_norms : int
        BatchNorms outside bags. None, in a network that had some, means that they are folded.
    """

    num_bags: int
    num_batch_norms: int

    @property
    def name(self) -> str:
        """``train``; ``plain`` (no bags: there were none, or they are merged); ``folded`` (no BatchNorm either)."""
        if self.num_bags:
            return "train"
        return "plain" if self.num_batch_norms else "folded"

    def __str__(self) -> str:
        """Return the form in words."""
        return f"{self.name} form ({self.num_bags} bags, {self.num_batch_norms} BatchNorms outside bags)"


def describe_form(thing: nn.Module | Mapping[str, Tensor]) -> Form:
    """Return the form of a network or of a state dict.

    Parameters
    ----------
    thing : nn.Module or mapping from str to Tensor
        In a network, bags are modules with a method ``to_merged``; in a state dict, what has ``branches``.
    """
    if isinstance(thing, nn.Module):
        bags = {name for name, module in thing.named_modules() if is_bag(module)}
        norms = [name for name, module in thing.named_modules() if isinstance(module, _BatchNorm)]
        return Form(len(bags), sum(not _lies_in(name, bags) for name in norms))
    keys = [f".{name}" for name in thing]
    names = {key.partition(BRANCHES)[0] for key in keys if BRANCHES in key}
    return Form(len(names), sum(key.endswith(f".{STATISTICS}") and BRANCHES not in key for key in keys))


def load_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load weights into a network of the same form, strictly.

    Parameters
    ----------
    model : nn.Module
        In train or deploy form; unchanged if this raises.
    state : mapping from str to Tensor
        A state dict of a network of the same form.

    Raises
    ------
    CheckpointError
        If the forms differ, or tensors are missing, unexpected or of another shape. For weights of the train form and
        a network in deploy form use :func:`load_into_deploy_form`.
    """
    problem = _find_problem(model, state)
    if problem:
        raise CheckpointError(problem)
    model.load_state_dict(state)


def load_into_deploy_form(
    create: Callable[[], nn.Module],
    state: Mapping[str, Tensor],
    fold_bn: bool = False,
    *,
    example: Tensor | None = None,
) -> nn.Module:
    """Return the deploy form of a network with given weights, merged on the way if they are those of the train form.

    Parameters
    ----------
    create : callable
        Builds the network in train form, for example ``partial(create_model, "mobilenet_v2_erohprf", 7)``. Its options
        rule what a state dict does not hold: strides, groups, the BatchNorms' eps.
    state : mapping from str to Tensor
        Weights of the train form, or of the deploy form with the same ``fold_bn``.
    fold_bn, example
        See :func:`fedmed.reparameterization.convert.convert`.

    Returns
    -------
    nn.Module
        In eval mode, without gradients.

    Raises
    ------
    CheckpointError
        If the weights fit neither form.
    """
    model = create()
    problem = _find_problem(model, state)
    if not problem:
        model.load_state_dict(state)
        return reparameterize(model, fold_bn, example=example)
    deploy = reparameterize(model, fold_bn, example=example)
    problem_of_deploy = _find_problem(deploy, state)
    if problem_of_deploy:
        train_form = describe_form(state).num_bags or not describe_form(model).num_bags
        hint = "" if train_form else f" Or were they saved with another 'fold_bn' than {fold_bn}?"
        raise CheckpointError((problem if train_form else problem_of_deploy) + hint)
    deploy.load_state_dict(state)
    return deploy


def _find_problem(model: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Return why the weights do not fit the network, in a sentence; empty if they do."""
    own = model.state_dict(keep_vars=True)
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    if missing or unexpected:
        found, needed = describe_form(state), describe_form(model)
        if found.num_bags < needed.num_bags or _lacks_norms(model, missing, unexpected):
            return (
                f"The weights are of the {found}, the network is in the {needed}. Merged weights cannot be split into "
                "branches again. Load the weights of the train form, or build the network in deploy form."
            )
        if found.num_bags > needed.num_bags:
            return (
                f"The weights are of the {found}, the network is in the {needed}. Merge them on the way with "
                "load_into_deploy_form and the function that builds the train form."
            )
    misshaped = [name for name, value in state.items() if name in own and value.shape != own[name].shape]
    problems = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshaped))
        if names
    ]
    return f"These weights do not fit the network: tensors {'; '.join(problems)}." if problems else ""


def _lacks_norms(model: nn.Module, missing: Iterable[str], unexpected: Iterable[str]) -> bool:
    """Return whether what is missing is BatchNorms alone, and what is left over is biases: they have been folded."""
    norms = {name for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    return all(_lies_in(name, norms) for name in missing) and all(name.endswith("bias") for name in unexpected)


def _lies_in(name: str, outer: set[str]) -> bool:
    """Return whether a dotted name lies inside one of some modules; the cost does not grow with their number."""
    parts = name.split(".")
    return any(".".join(parts[:count]) in outer for count in range(len(parts)))
