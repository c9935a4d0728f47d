"""Which layer reads which layer's output: watched while a network runs once, not guessed from the order of modules.

A BatchNorm may be folded into a convolution only if its input *is* the convolution's output and nothing else reads that
output. The list of modules does not say so: a network may call its modules in any order, use an output twice, or read a
weight without calling its layer. So the network runs on a small seeded input; every operation that touches the output
or a parameter of a watched layer is noted with the layer inside which it happened.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

LINEAR_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
OUTSIDE = "an operation outside every watched layer"
RESULT = "the network's own result"
EXAMPLE_SIDES = (64, 224, 32)


@dataclass(eq=False)
class Value:
    """The output of a layer, or several such outputs concatenated over channels.

    Attributes
    ----------
    tensor : Tensor
        Kept, so that no other tensor takes its identity.
    layers : tuple of str
        The layers that made it, in order of the channels.
    readers : set of str
        Names of the layers inside which it was read, :data:`OUTSIDE`, :data:`RESULT`.
    joined : Value, optional
        The concatenation that it entered.
    """

    tensor: Tensor
    layers: tuple[str, ...]
    readers: set[str] = field(default_factory=set)
    joined: "Value | None" = None


@dataclass
class Flow:
    """What was seen during the run.

    Attributes
    ----------
    calls : dict
        How often each watched layer ran.
    inputs, outputs : dict
        Of each layer, at its last call: the watched value that is its whole input, if it is one; its output.
    input_dims : dict
        Dimensions of each layer's input.
    lent : dict
        Layers whose parameters were read elsewhere, and where.
    """

    calls: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    inputs: dict[str, Value | None] = field(default_factory=dict)
    outputs: dict[str, Value] = field(default_factory=dict)
    input_dims: dict[str, int] = field(default_factory=dict)
    lent: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operation on a watched value or parameter; the innermost watched layer is its reader."""

    def __init__(self, owners: Mapping[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.owners = owners
        self.flow = Flow()
        self.values: dict[int, Value] = {}
        self.active: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.cat.default and self._join(args, result):
            return result
        reader = self.active[-1] if self.active else OUTSIDE
        for tensor in read:
            if id(tensor) in self.values:
                self.values[id(tensor)].readers.add(reader)
            owner = self.owners.get(id(tensor))
            if owner is not None and owner != reader:
                self.flow.lent[owner].add(reader)
        return result

    def _join(self, args: Any, result: Tensor) -> bool:
        parts = [self.values.get(id(part)) for part in args[0]]
        known = [part for part in parts if part is not None]
        dim = args[1] if len(args) > 1 else 0
        if self.active or dim != 1 or len(known) < len(parts) or len(set(map(id, known))) < len(known):
            return False
        value = Value(result, tuple(name for part in known for name in part.layers))
        for part in known:
            if part.joined is not None:
                part.readers.add(OUTSIDE)
            part.joined = value
        self.values[id(result)] = value
        return True

    def enter(self, name: str, value: Tensor) -> None:
        self.flow.calls[name] += 1
        self.flow.inputs[name] = self.values.get(id(value))
        self.flow.input_dims[name] = value.dim()
        self.active.append(name)

    def leave(self, name: str, value: Any) -> None:
        assert self.active.pop() == name, "layers end in the order in which they began"
        if isinstance(value, Tensor):
            if id(value) in self.values:  # an identity in disguise: its input came out again
                self.values[id(value)].readers.add(OUTSIDE)
            self.flow.outputs[name] = self.values[id(value)] = Value(value, (name,))

    def end(self, result: Any) -> Flow:
        for leaf in tree_leaves(result):
            if id(leaf) in self.values:
                self.values[id(leaf)].readers.add(RESULT)
        return self.flow


def watch(model: nn.Module, example: Tensor) -> Flow:
    """Run the network once and return how values flow between its convolutions, linear layers and BatchNorms.

    Parameters
    ----------
    model : nn.Module
        In eval mode; unchanged afterwards.
    example : Tensor
        An input of the network.

    Raises
    ------
    Exception
        Whatever the network raises.
    """
    layers = {
        name: module for name, module in model.named_modules() if isinstance(module, (*LINEAR_LAYERS, _BatchNorm))
    }
    owners = {id(parameter): name for name, layer in layers.items() for parameter in layer.parameters(recurse=False)}
    watching = _Watch(owners)
    handles: list[RemovableHandle] = []
    try:
        for name, layer in layers.items():
            handles += _add_hooks(watching, name, layer)
        with torch.no_grad(), without_replicas(model), watching:
            result = model(example)
        return watching.end(result)
    finally:
        for handle in handles:
            handle.remove()


def _add_hooks(watching: _Watch, name: str, layer: nn.Module) -> list[RemovableHandle]:
    def before(_: nn.Module, args: Any, kwargs: Any) -> None:
        watching.enter(name, args[0] if args else kwargs["input"])

    def after(_: nn.Module, __: Any, output: Any) -> None:
        watching.leave(name, output)

    return [layer.register_forward_pre_hook(before, with_kwargs=True), layer.register_forward_hook(after)]


@contextmanager
def without_replicas(model: nn.Module) -> Iterator[None]:
    """Let every DataParallel run its own module: hooks do not see replicas."""
    wrappers = [module for module in model.modules() if isinstance(module, nn.DataParallel)]
    devices = [wrapper.device_ids for wrapper in wrappers]
    try:
        for wrapper in wrappers:
            wrapper.device_ids = []
        yield
    finally:
        for wrapper, ids in zip(wrappers, devices, strict=True):
            wrapper.device_ids = ids


def make_examples(model: nn.Module, seed: int = 0) -> Iterator[Tensor]:
    """Yield seeded inputs that the network may accept, judged by its first convolution or linear layer.

    Parameters
    ----------
    model : nn.Module
        Any network.
    seed : int
        Of the values.

    Yields
    ------
    Tensor
        Two images of 64, then 224, then 32 pixels a side (or signals or volumes); for a linear layer, 4 rows.
    """
    convolutions = [module for module in model.modules() if isinstance(module, LINEAR_LAYERS[:3])]
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if convolutions:
        first: nn.Module = convolutions[0]
        channels = dict.fromkeys((convolutions[0].in_channels, 3))  # the first that is listed need not be the first
        num_axes = len(convolutions[0].kernel_size)
        shapes = [(2, count, *(side,) * num_axes) for count in channels for side in EXAMPLE_SIDES]
    else:
        first = linear[0] if linear else model
        shapes = [(4, layer.in_features) for layer in linear[:1]]
    for shape in shapes:
        # Drawn on the CPU, so that every device gets the same values and no global generator moves.
        yield torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(first.weight)  # type: ignore[arg-type]
