"""Checks of the memory: what training needs, by an estimate that is on the safe side."""

import os
from pathlib import Path

import torch
from torch import nn

from client.check.context import CheckContext, CheckResult
from client.check.teacher import find_small
from fedmed.config import Plan
from fedmed.distillation import Teacher, get_teacher
from fedmed.distillation.network import get_network
from fedmed.training.devices import select_device
from fedmed.training.network import Network

GIB = 2**30
_TIGHT, _TOO_MUCH = 0.8, 1.5
"""Shares of the free memory: the estimate is on the safe side, up to twice what is needed in the end."""
_FLOAT_BYTES = 4
_ACTIVATION_FACTOR = 2  # what a layer gives, and its gradient or an intermediate result of it
_COPIES = 3  # of a network in the process: as it came, unpacked, and as it goes


def check_memory(context: CheckContext, name: str) -> CheckResult:
    """Estimate what training needs and compare it with what is free."""
    plan, network = context.get_plan(), context.get_network()
    device = select_device(context.config.device)
    training, what = _estimate_training(context)
    small = find_small(context)
    travelling = count_shared_bytes(network) + (0 if small is None else count_shared_bytes(get_network(small.plan)))
    process = _COPIES * travelling + _estimate_cache_bytes(context)
    places = [("main memory", process + (training if device.type == "cpu" else 0), find_free_memory())]
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        places.append(("GPU memory", training, min(free, int(total * context.config.policy.gpu_share))))
    found = "; ".join(f"about {need / GIB:.1f} of {free / GIB:.1f} GiB {place}" for place, need, free in places)
    found = f"{found}, for {what}"
    advice = (
        "Close other programs, lower data.cache_mib, or use a machine with more memory. The coordinating site can "
        f"lower training.batch_size (now {plan.training.batch_size}) or data.image_size (now {plan.image_size})."
    )
    if any(need > _TOO_MUCH * free for _, need, free in places):
        return CheckResult(name, "failed", f"{found}: it does not fit", advice)
    tight = any(need > _TIGHT * free for _, need, free in places)
    return CheckResult(name, "warning" if tight else "ok", found, advice if tight else "")


def estimate_training_bytes(model: nn.Module, plan: Plan) -> int:
    """Estimate the memory of one training step.

    Parameters
    ----------
    model : nn.Module
        The network.
    plan : Plan
        Batch, image size and optimizer.

    Notes
    -----
    Weights, their gradients, the optimizer's one or two values a weight (and FedProx's copy), and twice what the layers
    give for one image, times the batch.
    """
    state = sum(int(tensor.nbytes) for tensor in model.state_dict().values())
    weights = sum(int(parameter.nbytes) for parameter in model.parameters() if parameter.requires_grad)
    optimizer = plan.training.optimizer
    copies = 1 + (2 if optimizer.name != "sgd" else int(optimizer.momentum > 0)) + int(plan.training.proximal_mu > 0)
    outputs = _count_outputs(model, plan.image_size) * _FLOAT_BYTES
    return state + copies * weights + _ACTIVATION_FACTOR * outputs * plan.training.batch_size


def estimate_teacher_bytes(teacher: Teacher, batch_size: int) -> int:
    """Estimate the memory of a frozen teacher while a prompt is learned through it: as much as for a training step."""
    state = sum(int(tensor.nbytes) for tensor in teacher.state_dict().values())
    outputs = _count_outputs(teacher, teacher.image_size) * _FLOAT_BYTES
    return state + _ACTIVATION_FACTOR * outputs * batch_size


def estimate_frozen_bytes(model: nn.Module, plan: Plan) -> int:
    """Estimate the memory of a network that only answers for a batch: its tensors, and what all layers give at most."""
    state = sum(int(tensor.nbytes) for tensor in model.state_dict().values())
    return state + _count_outputs(model, plan.image_size) * _FLOAT_BYTES * plan.training.batch_size


def find_free_memory() -> int:
    """Return the main memory that is free, in bytes, within the limit of a container if there is one."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in _read_lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    limit, used = _read_lines(Path("/sys/fs/cgroup/memory.max")), _read_lines(Path("/sys/fs/cgroup/memory.current"))
    if limit and used and limit[0].isdecimal():
        free = min(free, int(limit[0]) - int(used[0]))
    return free


def count_shared_bytes(network: Network) -> int:
    """Return the bytes of what travels of a network."""
    state = network.whole.state_dict()
    return sum(int(state[name].nbytes) for name in network.shared)


def _estimate_training(context: CheckContext) -> tuple[int, str]:
    """Return the memory of the kind of training that needs most, and its networks in words."""
    plan, network, small = context.get_plan(), context.get_network(), find_small(context)
    kinds = [(estimate_training_bytes(network.model, plan), "the network in training")]
    if plan.fopro is not None and plan.fopro.teacher.is_self:
        more = estimate_frozen_bytes(network.model, plan)
        kinds = [(kinds[0][0] + more, "the network in training and a frozen copy of it as its teacher")]
    elif plan.fopro is not None:
        more = estimate_teacher_bytes(get_teacher(plan.fopro.teacher), plan.training.batch_size)
        kinds = [(kinds[0][0] + more, "the network in training and its frozen teacher")]
    if small is not None and small.is_trained_here:
        training = estimate_training_bytes(get_network(small.plan).model, small.plan)
        more = estimate_frozen_bytes(network.model, plan)
        kinds.append((training + more, "the small network in training and the frozen large one (co_distillation)"))
    return max(kinds)


def _count_outputs(model: nn.Module, image_size: int) -> int:
    """Return how many numbers the layers give for one image."""
    total = 0

    def count(module: nn.Module, inputs: object, output: object) -> None:
        nonlocal total
        total += output.numel() if isinstance(output, torch.Tensor) else 0

    leaves = [module for module in model.modules() if not any(module.children())]
    handles = [leaf.register_forward_hook(count) for leaf in leaves]
    try:
        with torch.inference_mode():
            model.cpu().eval()(torch.zeros(1, 3, image_size, image_size))
    finally:
        for handle in handles:
            handle.remove()
    return total


def _estimate_cache_bytes(context: CheckContext) -> int:
    """Return what decoded images will take: all of them if they fit into ``data.cache_mib``, judged by one."""
    budget = context.config.data.cache_mib * 2**20
    if context.site is None:
        return budget
    data = context.site.data
    images = sum(map(len, (data.train, data.validation, data.test)))
    return min(budget, images * data.train.images([0])[0].nbytes)


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text().split("\n")
    except OSError:
        return []
