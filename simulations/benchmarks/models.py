"""Time and memory of the networks beside straightforward versions of them, in one run.

    python simulations/benchmarks/models.py                                    # everything, the better part of an hour
    python simulations/benchmarks/models.py --models mobilenet_v2_erohprf --sizes 64x32
    python simulations/benchmarks/models.py --part deploy --json figures.json

Contenders take turns, and the best of several turns counts. Read the ratios, not the milliseconds. ``WIDTHxBATCH`` are
the side of the images and their number. Saved memory is what a forward pass keeps for the backward pass, parameters
left out.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedmed.models import create_model, list_models
from fedmed.models.bags.bag import HeterogeneousPyramidConv2d
from fedmed.models.blocks.multibranch import MultiBranchNet
from fedmed.native import VARIABLE, native_form
from fedmed.reparameterization import reparameterize
from simulations.benchmarks.literal_models import make_literal, make_plain

NUM_CLASSES = 7
PARTS = ("train", "deploy")
SIZES = ("64x32", "224x16")
LAST, FIRST = torch.channels_last, torch.contiguous_format
ENVIRONMENT = os.environ.get(VARIABLE, "1")

Contenders = dict[str, Callable[[Tensor], Tensor]]
Rows = dict[str, dict[str, float]]
"""Contender, ours first -> figure -> value."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append", help="measure this part only")
    parser.add_argument("--models", nargs="+", choices=list_models(), metavar="NAME", help="these networks only")
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="WIDTHxBATCH", help="64x32 224x16 by default")
    parser.add_argument("--turns", type=int, default=3, help="counted turns of each contender, after one that is not")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to a file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads, native kernels: {native_form()}")
    figures: list[dict[str, str | float]] = []
    for part in options.part or PARTS:
        for name in options.models or list_models():
            for size in options.sizes:
                side, batch = map(int, size.split("x"))
                rows = measure(part, name, side, batch, options.turns)
                head = {"part": part, "model": name, "size": size}
                figures += [{**head, "contender": contender, **row} for contender, row in rows.items()]
                print_table(f"{name}, {part}, {side} px, batch {batch}", rows)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def measure(part: str, name: str, side: int, batch: int, turns: int) -> Rows:
    """Return the figures of all contenders of one network, ours first."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, side, side, generator=generator)
    labels = torch.randint(0, NUM_CLASSES, (batch,), generator=generator)
    torch.manual_seed(0)
    model = create_model(name, NUM_CLASSES)
    if part == "deploy":
        contenders = make_deployed(model)
        return _time_in_turns(contenders, turns, lambda run: _infer(run, images))
    contenders = make_trained(model)
    rows = _time_in_turns(contenders, turns, lambda run: _train(run, images, labels))
    for contender, row in rows.items():
        row["saved_mib"] = measure_saved(contenders[contender], images, labels) / 2**20
    return rows


def make_trained(model: nn.Module) -> Contenders:
    """Return the contenders of training: ours, then what it is compared with."""
    has_bags = any(isinstance(module, HeterogeneousPyramidConv2d) for module in model.modules())
    ours = Contender(model, LAST)
    contenders: Contenders = {"ours": ours}
    if native_form():
        contenders["ours, pure torch"] = Contender(model, LAST, native="0")
    if has_bags:
        contenders["branch by branch, channels last"] = Contender(make_literal(model), LAST, native="0")
        contenders["plain, kernels as large"] = Contender(make_plain(model, lambda side: side), LAST, native="0")
        contenders["plain, 3x3 kernels"] = Contender(make_plain(model, lambda _: 3), LAST, native="0")
    elif isinstance(model, MultiBranchNet):
        contenders["literal transcription"] = Contender(make_literal(model), FIRST, native="0")
    else:
        contenders["channels first"] = Contender(make_literal(model), FIRST, native="0")
    return contenders


def make_deployed(model: nn.Module) -> Contenders:
    """Return the contenders of inference, all in eval mode and channels last; "folded" has no BatchNorm left."""
    model.eval()
    contenders: Contenders = {"ours, merged and folded": Contender(reparameterize(model, fold_bn=True), LAST)}
    contenders["ours, train form"] = Contender(make_literal(model), LAST)
    if any(isinstance(module, HeterogeneousPyramidConv2d) for module in model.modules()):
        contenders["ours, merged"] = Contender(reparameterize(model), LAST)
        sides: dict[str, Callable[[int], int]] = {
            "plain, kernels as large": lambda largest: largest,
            "plain, 3x3 kernels": lambda _: 3,
        }
        for name, choose_side in sides.items():
            plain = make_plain(model, choose_side).eval()
            contenders[name] = Contender(plain, LAST)
            contenders[f"{name}, folded"] = Contender(reparameterize(plain, fold_bn=True), LAST)
    return contenders


class Contender:
    """A network in one memory format, with or without native kernels.

    Parameters
    ----------
    model : nn.Module
        Whose memory format changes in place.
    layout : torch.memory_format
        Of parameters and images.
    native : str
        What ``FEDMED_NATIVE`` is while it runs.
    """

    def __init__(self, model: nn.Module, layout: torch.memory_format, native: str = ENVIRONMENT) -> None:
        self.model = model.to(memory_format=layout)
        self.layout, self.native = layout, native

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits; gradients of an earlier call are gone."""
        self.model.zero_grad(set_to_none=True)
        with patch.dict(os.environ, {VARIABLE: self.native}):  # the backward pass goes as the forward pass did
            logits: Tensor = self.model(images.contiguous(memory_format=self.layout))
        return logits


def _train(run: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> dict[str, float]:
    begin = time.perf_counter()
    loss = functional.cross_entropy(run(images), labels)
    middle = time.perf_counter()
    loss.backward()  # type: ignore[no-untyped-call]
    end = time.perf_counter()
    return {"forward_ms": 1000 * (middle - begin), "both_ms": 1000 * (end - begin)}


def _infer(run: Callable[[Tensor], Tensor], images: Tensor) -> dict[str, float]:
    begin = time.perf_counter()
    with torch.inference_mode():
        run(images)
    return {"forward_ms": 1000 * (time.perf_counter() - begin)}


def _time_in_turns(
    contenders: Contenders, turns: int, step: Callable[[Callable[[Tensor], Tensor]], dict[str, float]]
) -> Rows:
    best: Rows = {}
    for turn in range(turns + 1):
        for name, run in contenders.items():
            found = step(run)
            if turn:
                before = best.get(name, found)
                best[name] = {figure: min(value, before[figure]) for figure, value in found.items()}
    return best


def measure_saved(run: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> int:
    """Return the bytes that a forward pass keeps for the backward pass: each storage once, parameters left out."""
    seen: dict[int, int] = {}
    parameters: set[int] = set()
    if isinstance(run, Contender):
        parameters = {parameter.untyped_storage().data_ptr() for parameter in run.model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        functional.cross_entropy(run(images), labels).backward()  # type: ignore[no-untyped-call]
    return sum(seen.values())


def print_table(title: str, rows: Rows) -> None:
    """Print figures and their ratios to ours, which is the first row, as a markdown table."""
    ours = next(iter(rows.values()))
    heads = [head for figure in ours for head in (figure.replace("_", " ").replace("both", "both passes"), "ratio")]
    print(f"\n{title}\n\n| | {' | '.join(heads)} |\n|---|{'---:|' * len(heads)}")
    for contender, row in rows.items():
        cells = [cell for figure in ours for cell in (f"{row[figure]:.1f}", f"{row[figure] / ours[figure]:.2f}")]
        print(f"| {contender} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
