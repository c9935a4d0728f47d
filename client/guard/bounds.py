"""Bounds on what an update can be made to tell, whatever a person has approved; for hospitals, not for simulations.

An update of one step at a vanishing rate is the sum of the gradients, out of which numbers of images by class can be
read. So a plan has a rate that moves the model, and several steps an epoch. And no plan can keep a site's machine busy
for ever, or fill its memory, with counts of work that a person may overlook.
"""

from collections.abc import Iterator, Mapping

from client.guard.policy import Refusal
from fedmed.config import Plan
from fedmed.config.client import PolicyConfig
from fedmed.errors import tame
from fedmed.training.schedules import learning_rate

LOWEST_PEAK = 1e-5
"""Of the learning rate over a run. Warm-up and the end of a cosine may be lower."""
LOWEST_CLIP, MOST_MOMENTUM, MOST_WEIGHT_DECAY, MOST_PULL = 0.01, 0.999, 1.0, 1000.0
LOSS_WEIGHTS = (0.01, 100.0)
"""Of a term that is not off."""
LOSS_OPTIONS: Mapping[tuple[str, str], tuple[float, float]] = {
    ("class_balanced_ce", "beta"): (0.0, 0.99999),
    ("focal", "gamma"): (0.0, 10.0),
    ("logit_adjustment", "tau"): (0.0, 10.0),
    ("cws", "eps"): (1e-12, 0.01),
}
MOST_DISTILLATION = 100.0
MOST_PROMPT_STEPS = 1000
"""Batches on which a prompt is learned in one round."""
MOST_HIDDEN, MOST_CACHE_MIB, MOST_ATTEMPTS, MOST_MILESTONES = 4096, 16_384, 10_000, 100
_FIXED = "fixed bounds of a hospital"
_ROUNDING = 1 - 1e-9


def check_bounds(policy: PolicyConfig, plan: Plan) -> list[Refusal]:
    """Return what in a plan could make an update tell of single images or of numbers of images.

    Parameters
    ----------
    policy : PolicyConfig
        What the site allows.
    plan : Plan
        Of a network that is trained.
    """
    if plan.rounds > policy.max_rounds or plan.training.epochs_per_round > policy.max_epochs_per_round:
        return []  # refused for that
    work = list(_check_work(policy, plan))
    if work:
        return work  # what follows computes with these numbers
    return [*_check_rate(policy, plan), *_check_training(plan), *_check_loss(plan), *_check_crossings(policy, plan)]


def _check_work(policy: PolicyConfig, plan: Plan) -> Iterator[Refusal]:
    """Yield what would take too much time or memory."""
    counts = [
        ("attempts", plan.attempts, MOST_ATTEMPTS, _FIXED),
        ("training.schedule.milestones", len(plan.training.schedule.milestones), MOST_MILESTONES, _FIXED),
    ]
    if plan.fopro is not None:
        prompt = plan.fopro.prompt
        counts += [
            ("fopro.prompt.steps", prompt.steps, MOST_PROMPT_STEPS, _FIXED),
            ("fopro.prompt.first_steps", prompt.first_steps, MOST_PROMPT_STEPS, _FIXED),
            ("fopro.prompt.hidden", prompt.hidden, MOST_HIDDEN, _FIXED),
            ("fopro.cache_mib", plan.fopro.cache_mib, MOST_CACHE_MIB, _FIXED),
        ]
    if plan.student is not None and plan.student.kind == "co_distillation":
        counts.append(("fopro.compression.rounds", plan.student.rounds, policy.max_rounds, "max_rounds"))
    for setting, found, most, key in counts:
        if found > most:
            yield _refuse(setting, f"{setting} {tame(str(found), 30)}", f"up to {most}", key)


def _check_rate(policy: PolicyConfig, plan: Plan) -> Iterator[Refusal]:
    training = plan.training
    schedule, lr = training.schedule, training.optimizer.lr
    num_epochs = plan.rounds * training.epochs_per_round
    rates = [learning_rate(schedule, lr, epoch, num_epochs) for epoch in range(num_epochs)]
    told = f"{LOWEST_PEAK:g} to {policy.max_learning_rate:g} at its peak"
    if not LOWEST_PEAK * _ROUNDING <= max(rates) <= policy.max_learning_rate:
        yield _refuse("training.optimizer.lr", f"a learning rate of {max(rates):g}", told, "max_learning_rate")
    elif schedule.name != "cosine" and min(rates[schedule.warmup_epochs :], default=lr) < LOWEST_PEAK * _ROUNDING:
        found = f"a learning rate that falls to {min(rates[schedule.warmup_epochs :]):g}"
        yield _refuse("training.schedule", found, f"from {LOWEST_PEAK:g} after the warm-up, or a cosine")
    if schedule.name != "official" and 2 * schedule.warmup_epochs > num_epochs:
        found = f"{tame(str(schedule.warmup_epochs), 30)} epochs of warm-up of {num_epochs}"
        yield _refuse("training.schedule.warmup_epochs", found, "up to half of them")
    if training.optimizer.name == "sgd":  # Adam makes up for the length of a gradient
        scale = min(_sum_weights(plan), 1.0 if training.clip_norm is None else training.clip_norm)
        if max(rates) * scale < LOWEST_PEAK * _ROUNDING <= max(rates):
            found = f"a learning rate of {max(rates):g} with a loss or gradients scaled to {scale:g}"
            yield _refuse("loss and training.clip_norm", found, f"from {LOWEST_PEAK:g} together")


def _check_training(plan: Plan) -> Iterator[Refusal]:
    training = plan.training
    optimizer = training.optimizer
    if training.clip_norm is not None and training.clip_norm < LOWEST_CLIP:
        yield _refuse(
            "training.clip_norm", f"gradients cut to {training.clip_norm:g}", f"from {LOWEST_CLIP:g}, or null"
        )
    for key, found, most in (
        ("training.optimizer.momentum", optimizer.momentum, MOST_MOMENTUM),
        ("training.optimizer.weight_decay", optimizer.weight_decay, MOST_WEIGHT_DECAY),
        ("training.proximal_mu", training.proximal_mu, MOST_PULL),
        ("fopro.weight", 0.0 if plan.fopro is None else plan.fopro.weight, MOST_DISTILLATION),
    ):
        if found > most:
            yield _refuse(key, f"{key} {found:g}", f"up to {most:g}")


def _check_loss(plan: Plan) -> Iterator[Refusal]:
    lowest, highest = LOSS_WEIGHTS
    for name, setting in plan.loss.items():
        options = dict(setting) if isinstance(setting, Mapping) else {"weight": setting}
        weight = options.pop("weight", 1.0)
        if _is_number(weight) and weight != 0 and not lowest <= weight <= highest:
            yield _refuse(f"loss.{tame(name, 60)}", f"the weight {weight:g}", f"0, or {lowest:g} to {highest:g}")
        for option, value in options.items():
            bounds = LOSS_OPTIONS.get((name, str(option)))
            if bounds is not None and _is_number(value) and not bounds[0] <= value <= bounds[1]:
                yield _refuse(f"loss.{name}.{option}", f"{option} {value:g}", f"{bounds[0]:g} to {bounds[1]:g}")


def _check_crossings(policy: PolicyConfig, plan: Plan) -> Iterator[Refusal]:
    crossings = plan.fairness.intersections
    several = [] if isinstance(crossings, str) else [one for one in crossings if len(one) > 2]
    weighed = plan.loss_attribute.split(" x ") if plan.loss_attribute is not None else []
    for one in [*several, *([weighed] if len(weighed) > 2 else [])]:
        found = f"the crossing of {len(one)} attributes, {tame(', '.join(one), 100)}"
        yield _refuse("fairness.intersections", found, "pairs at most", "crossings")
    if policy.attributes is not None and not set(weighed) <= set(policy.attributes):
        found = f"losses by {tame(str(plan.loss_attribute), 100)}"
        yield _refuse("aggregation.fair.attribute", found, ", ".join(policy.attributes) or "none", "attributes")


def _sum_weights(plan: Plan) -> float:
    """Return the sum of the weights of a loss, as far as they are numbers; building it refuses others."""
    settings = (one.get("weight", 1.0) if isinstance(one, Mapping) else one for one in plan.loss.values())
    return float(sum(abs(weight) for weight in settings if _is_number(weight)))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _refuse(setting: str, found: str, allowed: str, key: str = _FIXED) -> Refusal:
    return Refusal(key, found, allowed, f"Change {setting} in server.yaml; the study then needs a new approval.")
