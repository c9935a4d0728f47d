"""How large and how fast a model is."""

import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedmed.export.compare import run_onnx
from fedmed.training.devices import use_channels_last

_MIN_TURNS, _MAX_TURNS, _BUDGET_S = 3, 30, 3.0


def describe_sizes(
    train: nn.Module, deploy: nn.Module, onnx_file: Path, session: Any, image_size: int
) -> dict[str, Any]:
    """Return size and time for one image on the CPU of train form, deploy form and ONNX file.

    Parameters
    ----------
    train, deploy : nn.Module
        In evaluation mode; their convolutions are stored with channels last, which is faster, and stay so.
    onnx_file : Path
        The ONNX file.
    session : onnxruntime.InferenceSession
        Of that file.
    image_size : int
        S.

    Returns
    -------
    dict
        ``train_form``, ``deploy_form``, ``onnx``, each with ``bytes`` and ``latency_ms``; and ``machine``, on which the
        times depend, without anything that names it.
    """
    image = torch.zeros(1, 3, image_size, image_size)
    forms = {"train_form": train, "deploy_form": deploy}
    result: dict[str, Any] = {name: _count(form) for name, form in forms.items()}
    result["onnx"] = {"bytes": onnx_file.stat().st_size}
    calls: dict[str, Callable[[], object]] = {name: _make_call(form, image) for name, form in forms.items()}
    calls["onnx"] = lambda: run_onnx(session, image)
    with torch.inference_mode():
        for name, milliseconds in time_in_turns(calls).items():
            result[name]["latency_ms"] = milliseconds
    machine = {"processor": platform.machine(), "threads": torch.get_num_threads(), "images_at_a_time": 1}
    return result | {"machine": machine}


def time_in_turns(calls: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Return the median milliseconds of some calls, made in turns, so that a busy moment hits all of them.

    The first turn does not count; about three seconds are spent.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + _BUDGET_S
    for turn in range(_MAX_TURNS + 1):
        if turn > _MIN_TURNS and time.perf_counter() > end:
            break
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: round(sorted(values[1:])[len(values[1:]) // 2], 3) for name, values in times.items()}


def _count(form: nn.Module) -> dict[str, Any]:
    return {
        "parameters": sum(parameter.numel() for parameter in form.parameters()),
        "bytes": sum(int(tensor.nbytes) for tensor in form.state_dict().values()),
    }


def _make_call(form: nn.Module, image: torch.Tensor) -> Callable[[], object]:
    fast = use_channels_last(form)  # no copies: a large model has enough of them during an export
    channels_last = image.contiguous(memory_format=torch.channels_last)
    return lambda: fast(channels_last)
