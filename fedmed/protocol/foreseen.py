"""How often a plan foresees each kind of request, for what a site counts and for what its people read before.

A request is about one of four networks (:data:`Network`). A phase says for each how many *different* requests a plan
foresees; of each of them, a stated number of repetitions is answered, since a server or a site may be stopped at any
moment. The site's ledger (:mod:`client.guard.ledger`) makes this binding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from fedmed.config import Plan

Network = Literal["trained", "both", "small", "distilled"]
"""``trained``: the network of the rounds; ``both``: the same, with the small one beside it; ``small``: the small one;
``distilled``: the small one in its own rounds at the sites."""
REPEATS = 3
"""Repetitions of a request that are answered, beside those of a round's attempts."""


@dataclass(frozen=True)
class Ration:
    """How often a phase is asked for."""

    times: Callable[[Plan, Network], int | None]
    """Number of different requests; None: no matter how many, as the answer is always the same."""
    words: str
    """For people."""
    repeats: Callable[[Plan], int] = lambda plan: REPEATS
    """How often the same request may come again."""
    stage: int | None = None
    """Place in a run: what belongs to an earlier one is not asked any more. 1: rounds; 2 and more: after them. None:
    at any time."""
    shared: bool = False
    """Whether the number is one for all networks together: the trained one or the small one, not both."""


def _every_small_round(plan: Plan, network: Network) -> int:
    is_trained_there = plan.student is not None and plan.student.kind == "co_distillation"
    return plan.student.rounds if plan.student is not None and is_trained_there and network == "distilled" else 0


def _every_round_and_both(plan: Plan, network: Network) -> int:
    rounds = plan.rounds if plan.choice == "tables" else 0
    return {"trained": rounds, "both": int(plan.student is not None)}.get(network, 0)


def _once(plan: Plan, network: Network) -> int:
    return int(network == "trained" or (network == "small" and plan.student is not None))


def _once_each(plan: Plan, network: Network) -> int:
    if network == "trained":
        return int(plan.batch_norm == "recalibrate")
    return int(network == "small" and plan.student is not None)


def _repeat_attempts(plan: Plan) -> int:
    """Return the repetitions of a round's training: all attempts of the round, and a few more."""
    return plan.attempts - 1 + REPEATS


def _repeat_until_done(plan: Plan) -> int:
    """Return the repetitions of the training of a site's own model, of which a call brings one round at least."""
    return plan.rounds + plan.attempts + REPEATS


ALWAYS = Ration(lambda plan, network: None if network == "trained" else 0, "whenever this site comes, or comes back")
EVERY_ROUND = Ration(
    lambda plan, network: plan.rounds if network == "trained" else 0, "once a round", _repeat_attempts, stage=1
)
EVERY_FIGURE = Ration(
    lambda plan, network: plan.rounds if plan.choice == "figure" and network == "trained" else 0,
    "once a round",
    stage=1,
)
EVERY_LOCAL_ROUND = Ration(
    lambda plan, network: plan.rounds if plan.benefit and network == "trained" else 0,
    "once a round",
    _repeat_until_done,
)
EVERY_SMALL_ROUND = Ration(_every_small_round, "once in each of its rounds", _repeat_attempts, stage=2)
EVERY_ROUND_AND_BOTH = Ration(
    _every_round_and_both, "once a round; once of a small network and the trained one", stage=1
)
ONCE_RECALIBRATED = Ration(_once_each, "once of each network that is recalibrated", stage=2)
ONCE_CALIBRATED = Ration(
    lambda plan, network: _once(plan, network) if plan.calibrate else 0, "once, at the end", stage=3, shared=True
)
ONCE_ALERTED = Ration(
    lambda plan, network: 0 if plan.operating is None else _once(plan, network),
    "once, at the end",
    stage=3,
    shared=True,
)
ONCE_TESTED = Ration(_once, "once, at the end", stage=4, shared=True)
ONCE_RELEASED = Ration(
    lambda plan, network: _once(plan, network) if plan.release else 0, "once, before the release", stage=5, shared=True
)
