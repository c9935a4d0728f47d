"""Rules and server steps from outside fedmed, named by the import path of their class.

The class is called with the options of the settings, its keyword-only parameters. It is a subclass of
:class:`~fedmed.aggregation.rule.Rule`, or of :class:`~fedmed.aggregation.server_step.ServerStep`; the latter most
easily as a :class:`~fedmed.aggregation.server_step.MomentStep`, which reads and writes the tensors itself. Both run at
the server alone.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import cast

from fedmed.aggregation.rule import Rule, Weights, make_rule
from fedmed.aggregation.server_step import MomentStep, ServerStep, make_step
from fedmed.config.aggregation import ExtensionRuleConfig
from fedmed.config.server_step import ExtensionStepConfig
from fedmed.errors import ConfigError, ExtensionError, FederationError, FedmedError
from fedmed.extensions import build_extension, describe_failure

_ROUNDING = 1e-9


@make_rule.register
def _load_rule(config: ExtensionRuleConfig) -> Rule:
    rule = cast(Rule, _build("rule", Rule, config.kind, config.options))
    if rule.losses != config.tell:
        raise ConfigError(
            f"The rule '{config.kind}' looks at losses: {rule.losses}, and the settings have the sites tell: "
            f"{config.tell}. Set aggregation.fair.tell: {rule.losses}."
        )
    return rule


@make_step.register
def _load_step(config: ExtensionStepConfig) -> ServerStep:
    step = cast(ServerStep, _build("server step", ServerStep, config.kind, config.options))
    if isinstance(step, MomentStep):
        step.kind = config.kind  # under which its moments lie on the disk
    return step


def _build(what: str, base: type, path: str, options: Mapping[str, object]) -> object:
    built = build_extension(what, path, object, **options)
    if base not in type(built).__mro__:  # these are protocols, which isinstance does not take
        raise ExtensionError(
            f"The {what} '{path}' is a {type(built).__name__}. Needed: a subclass of "
            f"fedmed.aggregation.{base.__name__}."
        )
    method = "weigh" if base is Rule else "take"
    if getattr(type(built), method) is getattr(base, method):
        raise ExtensionError(f"The {what} '{path}' has no '{method}' of its own, which does its work.")
    return built


@contextmanager
def explained_failure(what: str, kind: str) -> Iterator[None]:
    """Turn an error of code from outside fedmed into one line that names it; our own errors, and the disk's, pass.

    Parameters
    ----------
    what : str
        What it is: ``"rule"``.
    kind : str
        As in the settings; without a colon it is fedmed's own, whose errors all pass.

    Raises
    ------
    FederationError
        What happened; everything up to the round before is saved.
    """
    try:
        yield
    except (FedmedError, OSError, MemoryError):
        raise
    except Exception as error:
        if ":" not in kind:
            raise
        raise FederationError(
            f"The {what} '{kind}' has ended with {describe_failure(error)}. Mend it; everything up to "
            "the round before is saved."
        ) from error


def check_weights(kind: str, weights: Weights, sites: Collection[str]) -> None:
    """Check what a rule from outside fedmed has returned.

    Raises
    ------
    FederationError
        If a weight is of no site of the round, negative or not finite, or they sum to 0 or more than 1.
    """
    total = math.fsum(weights.values())
    sound = all(math.isfinite(weight) and weight >= 0 for weight in weights.values())
    if not set(weights) <= set(sites) or not sound or not 0 < total <= 1 + _ROUNDING:
        raise FederationError(
            f"The rule '{kind}' has given the weights {dict(weights)}. Allowed: for sites of the round "
            f"({', '.join(sorted(sites))}), not negative, with a sum above 0 and up to 1."
        )
