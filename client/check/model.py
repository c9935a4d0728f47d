"""Checks of the machine against the plan: processor, the model, disk and one training step."""

import math
import os
import shutil
from datetime import datetime
from pathlib import Path

import torch

from client.check.context import CheckContext, CheckResult
from client.check.memory import GIB, count_shared_bytes
from client.check.results import CheckFailedError
from client.check.teacher import find_small
from client.guard.bounds import check_bounds
from client.guard.policy import (
    Refusal,
    check_choice,
    check_disk,
    check_hours,
    check_plan,
    check_size,
    check_test,
    measure_folder,
)
from client.guard.requests import try_plan
from client.hospital.exclusions import select_images
from fedmed.config import FoproPlan, Plan
from fedmed.data import ImagePart, count_batches
from fedmed.distillation.network import get_network
from fedmed.training.devices import select_device, use_threads
from fedmed.training.fit import fit
from fedmed.training.network import Network

_SLOW_STEP_S = 20.0
_SPARE_DISK_BYTES = 512 * 2**20
_MODELS_ON_DISK = 12  # states of two or three rounds, the residual beside each; two files of the candidate, and of the
# released model while it is replaced


def check_device(context: CheckContext, name: str) -> CheckResult:
    """Say what training will run on."""
    device = select_device(context.config.device)
    if device.type == "cpu":
        threads = context.config.threads or os.cpu_count() or 1
        return CheckResult(name, "ok", f"CPU, {threads} threads on {os.cpu_count()} cores")
    free, total = torch.cuda.mem_get_info()
    share = context.config.policy.gpu_share
    found = f"{torch.cuda.get_device_name(0)}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if free < share * total / 2:
        return CheckResult(
            name, "warning", found, "Another program uses much of the GPU. Stop it, or set `device: cpu`."
        )
    return CheckResult(name, "ok", f"{found}; {share:.0%} may be used (policy.gpu_share)")


def check_model(context: CheckContext, name: str) -> CheckResult:
    """Build the network and compare its definition with the server's."""
    plan = context.get_plan()
    try_plan(plan)
    context.network = network = get_network(plan)
    parameters = sum(parameter.numel() for parameter in network.model.parameters())
    size = count_shared_bytes(network)
    found = f"{plan.model.name}, {parameters / 1e6:.1f} million parameters, {size / 2**20:.1f} MiB"
    small = find_small(context)
    if small is not None:  # it comes with the large one in one message
        try_plan(small.plan)
        more = count_shared_bytes(get_network(small.plan))
        found, size = f"{found}; then compressed into {small.plan.model.name}, {more / 2**20:.1f} MiB", size + more
    too_large = check_size(context.config.policy, size)
    if too_large:
        raise CheckFailedError(f"{found}. {_say_refusal(too_large[0])}", too_large[0].advice)
    wanted = (context.hello or {}).get("model_digest")
    if wanted is None:
        return CheckResult(name, "ok", f"{found}; the server has not told its digest yet")
    if wanted != network.digest():
        raise CheckFailedError(
            f"{found}. Its definition differs from the server's (digest {network.digest()[:12]} here, "
            f"{str(wanted)[:12]} there).",
            "Install the same version of fedmed at both ends.",
        )
    return CheckResult(name, "ok", f"{found}; the same definition as at the server (digest {wanted[:12]})")


def check_policy(context: CheckContext, name: str) -> CheckResult:
    """Compare the plan with what this site allows."""
    plan, policy = context.get_plan(), context.config.policy
    small = find_small(context)
    plans = [plan] if small is None else [plan, small.plan]
    refused = [*dict.fromkeys(told for one in plans for told in [*check_plan(policy, one), *check_bounds(policy, one)])]
    refused += check_choice(policy, plan) + check_disk(policy, Path(context.config.state_dir))
    if refused:
        raise CheckFailedError(" ".join(map(_say_refusal, refused)), " ".join(refusal.advice for refusal in refused))
    limited = check_hours(policy, datetime.now()) + check_test(policy, "test")
    limits = policy.suppression
    allowed = f"the plan is allowed; groups from k = {limits.k} and rows from k_row = {limits.k_row} are counted"
    if limited:
        return CheckResult(name, "warning", f"{allowed}. {' '.join(map(_say_refusal, limited))}", limited[0].advice)
    return CheckResult(name, "ok", allowed)


def check_room(context: CheckContext, name: str) -> CheckResult:
    """Compare what the plan's model needs in the state folder with what is free and allowed."""
    state_dir, policy = Path(context.config.state_dir), context.config.policy
    need = _MODELS_ON_DISK * count_shared_bytes(context.get_network()) + _SPARE_DISK_BYTES
    used = measure_folder(state_dir)
    free = shutil.disk_usage(state_dir).free
    found = (
        f"about {need / GIB:.1f} GiB needed; {free / GIB:.1f} GiB free; {used / GIB:.1f} of "
        f"{policy.max_disk_gib:g} GiB used (policy.max_disk_gib)"
    )
    if need > free:
        raise CheckFailedError(found, "Free some space, or choose another disk with `state_dir`.")
    if used + need > policy.max_disk_gib * GIB:
        raise CheckFailedError(found, "Raise policy.max_disk_gib, or remove old federations: flower-client --forget.")
    return CheckResult(name, "ok", found)


def check_step(context: CheckContext, name: str) -> CheckResult:
    """Train on one batch, and say how long an epoch will take."""
    plan, site = context.get_plan(), context.get_site()
    device = select_device(context.config.device)
    steps = count_batches(len(site.data.train), plan.training.batch_size)
    size = math.ceil(len(site.data.train) / steps)
    with use_threads(context.config.threads):
        try:
            step_s, peak = _time_step(context.get_network(), site.data.train, size, plan, device)
        except (MemoryError, torch.OutOfMemoryError):
            raise CheckFailedError(
                f"The memory is not enough for one batch of {size} images.",
                "Close other programs, or ask the coordinating site for a smaller training.batch_size.",
            ) from None
    epochs = plan.training.epochs_per_round
    round_s = step_s * steps * epochs
    found = (
        f"{size} images in {format_seconds(step_s)}; an epoch of {len(site.data.train)} images about "
        f"{format_seconds(step_s * steps)}, a round of {epochs} epochs {format_seconds(round_s)}{peak}"
    )
    deadline = (context.hello or {}).get("round_deadline_s")
    if deadline is not None and round_s > deadline:
        return CheckResult(
            name,
            "warning",
            f"{found}; the server waits {format_seconds(deadline)} (round_deadline_s)",
            "This site would miss every round. Use a GPU or more threads, or ask for a longer round_deadline_s.",
        )
    return CheckResult(name, "ok", found)


def format_seconds(seconds: float) -> str:
    """Return a time for a person."""
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _say_refusal(refusal: Refusal) -> str:
    return f"{refusal.name}: {refusal.found}; allowed: {refusal.allowed}."


def _time_step(network: Network, part: ImagePart, size: int, plan: Plan, device: torch.device) -> tuple[float, str]:
    """Return the seconds of a step and a word about the GPU's memory; a quick step is repeated with other images.

    With a teacher, its forward is part of the step; the steps of the prompt come on top in every round.
    """
    training = plan.training.model_copy(update={"epochs_per_round": 1, "batch_size": max(size, 2)})
    one_step = plan.model_copy(update={"training": training, "fopro": without_prompt_steps(plan.fopro)})
    seconds = math.inf
    for first in (0, 1):
        indices = [(first + place * len(part) // size) % len(part) for place in range(size)]
        images = select_images(part, indices)
        result = fit(
            network.trainee, images, one_step, site="check", round_number=1, device=device, objective=network.objective
        )
        seconds = min(seconds, result.train_s)
        if seconds > _SLOW_STEP_S:
            break
    peak = f"; GPU memory at most {torch.cuda.max_memory_allocated() / GIB:.1f} GiB" if device.type == "cuda" else ""
    return seconds, peak


def without_prompt_steps(fopro: FoproPlan | None) -> FoproPlan | None:
    """Return a distillation whose prompt, a reconstruction, stays as it is."""
    if fopro is None:
        return None
    return fopro.model_copy(update={"prompt": fopro.prompt.model_copy(update={"steps": 0, "first_steps": 0})})
