"""One small pass through a network and a loss from outside fedmed, before a whole round is spent on them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from fedmed.errors import ExtensionError, ExtensionFailedError, FedmedError
from fedmed.extensions import describe_failure


def try_network(name: str, model: nn.Module, num_classes: int, image_size: int) -> None:
    """Check what a network makes of two black images, if it is named by an import path.

    Parameters
    ----------
    name : str
        As in the settings.
    model : nn.Module
        The network; its mode is as before afterwards.
    num_classes : int
        K.
    image_size : int
        S.

    Raises
    ------
    ExtensionError
        If it does not give logits (2, K), or has nothing to train.
    ExtensionFailedError
        If it ends with an error.
    """
    if ":" not in name:
        return
    was_training = model.training
    with _explained(f"The model '{name}'"), torch.no_grad():
        logits = model.eval()(torch.zeros(2, 3, image_size, image_size))
    model.train(was_training)
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, num_classes):
        found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ExtensionError(f"The model '{name}' gives {found} for two images. Needed: logits, (2, {num_classes}).")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ExtensionError(f"The model '{name}' has no parameter to train.")


def try_loss(terms: Mapping[str, object], loss: nn.Module, num_classes: int) -> None:
    """Check what a loss makes of two images, if one of its terms is named by an import path.

    Parameters
    ----------
    terms : mapping
        The section ``loss`` of the settings.
    loss : nn.Module
        From :func:`fedmed.losses.build_loss`.
    num_classes : int
        K.

    Raises
    ------
    ExtensionError
        If it gives no scalar, or has parameters of its own, which would be trained nowhere.
    ExtensionFailedError
        If it ends with an error.
    """
    names = ", ".join(name for name in terms if ":" in name)
    if not names:
        return
    with _explained(f"The loss '{names}'"):
        value = loss(torch.zeros(2, num_classes, requires_grad=True), torch.tensor([0, 1]), None)
    if not isinstance(value, torch.Tensor) or value.shape != ():
        raise ExtensionError(f"The loss '{names}' gives no scalar. Needed: the mean loss of the images, as one number.")
    if any(True for _ in loss.parameters()):
        raise ExtensionError(f"The loss '{names}' has parameters of its own, which nothing would train.")


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except FedmedError:
        raise
    except Exception as error:
        raise ExtensionFailedError(f"{what} cannot be run: {describe_failure(error)}") from error
