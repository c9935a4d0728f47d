"""How large and how fast a model is."""

import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from torch import nn

from fedmed.export.compare import run_onnx
from fedmed.training.devices import use_channels_last

_MIN_TURNS, _MAX_TURNS, _BUDGET_S = 3, 30, 3.0


class FormSize(TypedDict):
    """How large and how fast a form is, on the CPU."""

    parameters: NotRequired[int]
    bytes: int
    latency_ms: float


class Machine(TypedDict):
    """On what the times depend, without anything that names it."""

    processor: str
    threads: int
    images_at_a_time: int


class Sizes(TypedDict):
    """Of all forms, and where they were measured."""

    train_form: FormSize
    deploy_form: FormSize
    onnx: FormSize
    machine: Machine


def describe_sizes(train: nn.Module, deploy: nn.Module, onnx_file: Path, session: Any, image_size: int) -> Sizes:
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
    """
    image = torch.zeros(1, 3, image_size, image_size)
    forms = {"train_form": train, "deploy_form": deploy}
    calls: dict[str, Callable[[], object]] = {name: _make_call(form, image) for name, form in forms.items()}
    calls["onnx"] = lambda: run_onnx(session, image)
    with torch.inference_mode():
        times = time_in_turns(calls)
    return {
        "train_form": _describe(train, times["train_form"]),
        "deploy_form": _describe(deploy, times["deploy_form"]),
        "onnx": {"bytes": onnx_file.stat().st_size, "latency_ms": times["onnx"]},
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads(), "images_at_a_time": 1},
    }


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


def _describe(form: nn.Module, latency_ms: float) -> FormSize:
    return {
        "parameters": sum(parameter.numel() for parameter in form.parameters()),
        "bytes": sum(int(tensor.nbytes) for tensor in form.state_dict().values()),
        "latency_ms": latency_ms,
    }


def _make_call(form: nn.Module, image: torch.Tensor) -> Callable[[], object]:
    fast = use_channels_last(form)  # no copies: a large model has enough of them during an export
    channels_last = image.contiguous(memory_format=torch.channels_last)
    return lambda: fast(channels_last)
