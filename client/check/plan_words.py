"""A plan in words, as a person reads it before approving it; and what differs between two plans."""

import json
from collections.abc import Iterator

from pydantic import JsonValue

from fedmed.config import Plan, PromptConfig
from fedmed.errors import tame
from fedmed.protocol.foreseen import Network
from fedmed.protocol.kinds import KINDS, Kind, Phase

_NETWORKS: dict[Network, str] = {
    "trained": "",
    "both": " of the small network beside the trained one",
    "small": " of the small network",
    "distilled": "",
}
_SHARED: dict[Network, str] = {"trained": ""}
_CODES = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}
_LONGEST = 5000
"""Letters of one value; who would show more says how many are left out."""


def describe_plan(plan: Plan) -> list[str]:
    """Return a plan in lines: what is trained and how, what is asked how often, what leaves, and every setting."""
    return [
        f"Study: '{_show(plan.study)}', approval {_show(plan.approval or 'not stated')}; "
        f"run {_show(plan.run_id or 'without a name')}.",
        _describe_network(plan),
        _describe_training(plan),
        f"Loss: {_show(plan.loss)}. BatchNorm: {plan.batch_norm}. Updates travel as: {plan.compression}.",
        _describe_distillation(plan),
        _describe_groups(plan),
        *_describe_small(plan),
        *_describe_alerts(plan),
        f"The best round is chosen by: {plan.choice}. A round is tried up to {plan.attempts} times.",
        *_describe_code(plan),
        "Asked of this site, and what leaves each time:",
        *(f"- {line}" for line in list_questions(plan)),
        "Every setting of the plan:",
        *(f"- {line}" for line in list_settings(plan)),
    ]


def list_settings(plan: Plan) -> list[str]:
    """Return every setting of a plan, ``key: value``, also those of which the words above say nothing."""
    return [f"{_show(key)}: {_show(value)}" for key, value in _flatten(plan.model_dump(mode="json")).items()]


def list_questions(plan: Plan) -> Iterator[str]:
    """Yield one line for each thing that a plan has this site asked for."""
    for kind in KINDS.values():
        for phase in kind.phases:
            for network in _SHARED if phase.ration.shared else _NETWORKS:
                times = phase.ration.times(plan, network)
                if times != 0:
                    yield _describe_question(kind, phase, network, times, plan)


def list_changes(old: Plan, new: Plan) -> list[str]:
    """Return what differs between two plans, ``key: old -> new``, by the keys of the plan."""
    before, after = _flatten(old.model_dump(mode="json")), _flatten(new.model_dump(mode="json"))
    return [
        f"{_show(key)}: {_show(before.get(key))} -> {_show(after.get(key))}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    ]


def _describe_network(plan: Plan) -> str:
    options = f" ({_show(plan.model.options)})" if plan.model.options else ""
    return (
        f"Network: {_show(plan.model.name)}{options} for {len(plan.classes)} classes "
        f"({_show(', '.join(plan.classes))}) at {plan.image_size} pixels, augmentation "
        f"{_show(plan.augmentation)}, seed {plan.seed}."
    )


def _describe_training(plan: Plan) -> str:
    training = plan.training
    optimizer, schedule = training.optimizer, training.schedule
    details = {
        "momentum": optimizer.momentum if optimizer.name == "sgd" else None,
        "weight decay": optimizer.weight_decay or None,
        "Nesterov": (optimizer.name == "sgd" and optimizer.nesterov) or None,
        "warm-up epochs": schedule.warmup_epochs or None,
        "share of the rate at the end": schedule.final_share if schedule.name == "cosine" else None,
        "milestones": schedule.milestones if schedule.name == "step" else None,
        "the rate there times": schedule.gamma if schedule.name == "step" else None,
        "gradients cut to": training.clip_norm,
        "FedProx": training.proximal_mu or None,
        "momentum kept between rounds": training.keep_momentum or None,
    }
    more = "".join(f", {name} {_show(value)}" for name, value in details.items() if value is not None)
    return (
        f"Training: {plan.rounds} rounds of {training.epochs_per_round} epochs with batches of {training.batch_size} "
        f"images (at most half as many as this site has patients); {_CODES[optimizer.name]}, peak learning rate "
        f"{optimizer.lr:g}, schedule {schedule.name}{more}."
    )


def _describe_distillation(plan: Plan) -> str:
    if plan.fopro is None:
        return "Distillation from a teacher: none."
    teacher = plan.fopro.teacher
    return (
        f"Distillation from the teacher {_show(teacher.name)} ({teacher.source}) with the weight "
        f"{plan.fopro.weight:g}; prompt, a reconstruction: {_describe_prompt(plan.fopro.prompt)}."
    )


def _describe_prompt(prompt: PromptConfig) -> str:
    if prompt.mode == "none":
        return "none"
    return (
        f"{prompt.mode}, learned on {prompt.first_steps} batches in the first round and {prompt.steps} in each later "
        f"one, learning rate {prompt.lr:g}, against {prompt.objective} (beta {prompt.beta:g}, rho {prompt.rho:g}, "
        f"gamma {prompt.gamma:g})"
    )


def _describe_groups(plan: Plan) -> str:
    asked = plan.fairness
    attributes = "all attributes of the data" if asked.attributes is None else ", ".join(asked.attributes) or "none"
    told = [] if plan.losses == "none" else [f"losses before training by {plan.loss_attribute or plan.losses}"]
    told += [] if plan.divergence == "none" else ["distance from the teacher"]
    return (
        f"Patient groups: {_show(attributes)}; crossings: {_show(asked.intersections)}. Told beside an "
        f"update: {_show('; '.join(told)) or 'nothing about groups'}."
    )


def _describe_small(plan: Plan) -> Iterator[str]:
    small = plan.student
    if small is not None:
        where = f"at the sites in {small.rounds} rounds" if small.kind == "co_distillation" else "at the server"
        yield (
            f"Small network at the end: {_show(small.model.name)}, trained {where} (Adam, learning rate "
            f"{small.lr:g}, temperature {small.temperature:g}, features {small.feature_weight:g})."
        )


def _describe_alerts(plan: Plan) -> Iterator[str]:
    wanted = plan.operating
    if wanted is not None:
        by = f"cost ratio of {wanted.cost_ratio:g}" if wanted.cost_ratio else f"sensitivity of {wanted.sensitivity:g}"
        names = tame(", ".join(wanted.alert_classes), _LONGEST)
        yield f"Alerts: for {names}; the threshold is chosen on validation images by a {by}."


def _describe_code(plan: Plan) -> Iterator[str]:
    if plan.extensions:
        yield f"Code from outside fedmed that runs here: {'; '.join(map(str, plan.extensions))}."


def _describe_question(kind: Kind, phase: Phase, network: Network, times: int | None, plan: Plan) -> str:
    number = "as often as needed" if times is None else f"{times} times" if times != 1 else "once"
    again = "" if times is None else f", each at most {phase.ration.repeats(plan)} times more"
    parts = ", ".join(kind.returns) or "numbers and words"
    return (
        f"{phase.title}{_NETWORKS[network]}: {number} ({phase.ration.words}{again}); leaves: {phase.leaves} ({parts})"
    )


def _flatten(value: JsonValue, path: str = "") -> dict[str, JsonValue]:
    if not isinstance(value, dict) or not value:
        return {path: value}
    return {
        key: one for name, inner in value.items() for key, one in _flatten(inner, f"{path}.{name}".strip(".")).items()
    }


def _show(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    shown = tame(text[:_LONGEST], _LONGEST)
    left = len(text) - _LONGEST
    return (
        shown if left <= 0 else f"{shown} (... and {left:,} more letters, which flower-client --approve --json shows)"
    )
