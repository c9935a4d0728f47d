"""The features that a classifier decides by: found in any network that ends in one linear layer.

Every network of :func:`fedmed.models.list_models` does; for those with several branches it is the fused feature.

Letters: B batch, d features, K classes.
"""

from typing import Any

from torch import Tensor, nn

from fedmed.errors import ConfigError

_REMEDY = "Choose a network that ends in one linear layer, as those of fedmed.models do, or switch distillation off."


def find_classifier(model: nn.Module) -> tuple[str, nn.Linear]:
    """Return name and layer of the last linear layer in the order of the modules.

    Whether it really gives the network's result is checked by :func:`run_with_features`, each time.

    Raises
    ------
    ConfigError
        If there is none.
    """
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ConfigError(f"The network ({type(model).__name__}) has no linear layer to take features from. {_REMEDY}")
    return layers[-1]


def run_with_features(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Run a network once and return features and logits.

    Parameters
    ----------
    model : nn.Module
        Ends in a linear layer. Unchanged: the hooks are gone afterwards.
    x : Tensor
        As the network takes it.

    Returns
    -------
    features, logits : Tensor
        (B,d), the input of the classifier, before a dropout that may be in front of it; and (B,K).

    Raises
    ------
    ConfigError
        If the network's result is not the output of its last linear layer, or that layer's input is not (B,d).
    """
    name, classifier = find_classifier(model)
    seen: dict[str, Tensor] = {}
    dropped: list[tuple[Tensor, Tensor]] = []

    def keep_ends(_: nn.Module, args: Any, output: Tensor) -> None:
        seen["features"], seen["logits"] = args[0], output

    def keep_dropout(module: nn.Module, args: Any, output: Tensor) -> None:
        dropped[:] = [(args[0], output)]

    handles = [classifier.register_forward_hook(keep_ends)]
    handles += [
        module.register_forward_hook(keep_dropout)
        for module in model.modules()
        if isinstance(module, nn.Dropout) and not module.inplace
    ]
    try:
        logits: Tensor = model(x)
    finally:
        for handle in handles:
            handle.remove()
    if seen.get("logits") is not logits or seen["features"].ndim != 2:
        raise ConfigError(
            f"The result of the network ({type(model).__name__}) is not the output of its last linear layer "
            f"('{name}'), or that layer does not take (images, features). {_REMEDY}"
        )
    features = seen["features"]
    if dropped and dropped[0][1] is features:
        features = dropped[0][0]
    return features, logits
