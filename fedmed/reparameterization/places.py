"""Where a network can be merged, and why not elsewhere."""

from collections import Counter
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.parametrize import is_parametrized

from fedmed.reparameterization.flow import LINEAR_LAYERS, OUTSIDE, RESULT, Flow, Value, make_examples, watch

# These pad their input by an amount that depends on its size, and otherwise are the class they derive from.
PLAIN_SUBCLASSES = frozenset({("timm.layers.conv2d_same", "Conv2dSame")})
# BatchNorm with its activation inside, as children `drop` and `act`, which stay when the BatchNorm goes.
NORMS_WITH_ACTIVATION = frozenset({("timm.layers.norm_act", "BatchNormAct2d")})
INPUT_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm, _InstanceNorm)


@dataclass(frozen=True)
class Place:
    """One place of a network that is merged, or could be thought to be.

    Attributes
    ----------
    name : str
        Of the layer that stands there afterwards: the bag, the convolution or linear layer; or the norm that stays.
    kind : {"bag", "convolution", "linear", "norm"}
        What it is before; ``convolution`` and ``linear`` with their BatchNorms.
    parts : tuple of str
        The modules that become one, in the order in which they run.
    merged : bool
        Whether they do.
    reason : str
        Why not; empty for a merged place.
    channels : (int, int), optional
        The channels, first and behind the last, of the BatchNorm behind, where it normalises several layers' outputs
        side by side.
    """

    name: str
    kind: str
    parts: tuple[str, ...]
    merged: bool
    reason: str = ""
    channels: tuple[int, int] | None = None


def is_bag(module: nn.Module) -> bool:
    """Return whether the module can merge itself: it has a method ``to_merged``."""
    return callable(getattr(module, "to_merged", None))


def has_hooks(module: nn.Module) -> bool:
    """Return whether somebody watches the module, or changes what goes in or comes out."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def identify(kind: type) -> tuple[str, str]:
    """Return the module and name of a class."""
    return kind.__module__, kind.__qualname__


def keeps_activation(norm: nn.Module) -> bool:
    """Return whether the norm has an activation of its own, which must stay when it is folded."""
    return identify(type(norm)) in NORMS_WITH_ACTIVATION


def plan_folding(model: nn.Module, example: Tensor | None = None) -> list[Place]:
    """Find the BatchNorms that can be folded into their neighbours, and say of all other norms why not.

    Parameters
    ----------
    model : nn.Module
        In eval mode; unchanged afterwards.
    example : Tensor, optional
        An input of the network; default: a seeded one.

    Returns
    -------
    list of Place
        Merged ones, in the order of the network's modules, then the norms that stay.
    """
    flow = _try_examples(model, example)
    if isinstance(flow, str):
        norms = [name for name, module in model.named_modules() if isinstance(module, (_BatchNorm, *INPUT_NORMS))]
        return [Place(name, "norm", (name,), False, flow) for name in norms]
    return _Plan(model, flow).places()


def _try_examples(model: nn.Module, example: Tensor | None) -> Flow | str:
    reason = "no seeded input could be made for the network; give an example of its input"
    for candidate in make_examples(model) if example is None else iter([example]):
        try:
            return watch(model, candidate)
        except Exception as error:  # whatever anyone's network raises; it is the reason why the norms stay
            text = (str(error).strip().splitlines() or [""])[0][:200]
            reason = f"the network did not run on an input of shape {tuple(candidate.shape)} ({text}); give an example"
    return reason


class _Plan:
    """Decides for every norm whether it goes into the layer before it, into the one behind it, or stays."""

    def __init__(self, model: nn.Module, flow: Flow) -> None:
        self.flow = flow
        self.layers = dict(model.named_modules())
        every_name = [(name, id(module)) for name, module in model.named_modules(remove_duplicate=False)]
        self.names_of_module = Counter(key for _, key in every_name)
        self.uses_of_tensor = Counter(
            id(tensor)
            for module in self.layers.values()
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))
        )
        self.behind: dict[str, tuple[str, tuple[int, int] | None]] = {}  # layer -> its norm behind, and the channels
        self.before: dict[str, str] = {}  # layer -> its norm in front
        self.kept: dict[str, str] = {}  # norm -> reason

    def places(self) -> list[Place]:
        for name, module in self.layers.items():
            if isinstance(module, INPUT_NORMS):
                self.kept[name] = f"{type(module).__name__} normalises by statistics of its input, in eval mode too"
            elif isinstance(module, _BatchNorm):
                reason = self._judge(name, module)
                if reason:
                    self.kept[name] = reason
        merged = [self._describe(name) for name in self.layers if name in self.behind or name in self.before]
        return merged + [Place(name, "norm", (name,), False, reason) for name, reason in self.kept.items()]

    def _describe(self, name: str) -> Place:
        norm, channels = self.behind.get(name, ("", None))
        parts = (self.before.get(name, ""), name, norm)
        kind = "linear" if isinstance(self.layers[name], nn.Linear) else "convolution"
        return Place(name, kind, tuple(part for part in parts if part), True, channels=channels)

    def _judge(self, name: str, norm: _BatchNorm) -> str:
        """Enter the norm where it can be folded, or return why it stays."""
        reason = self._check_norm(name, norm)
        if reason:
            return reason
        reason_behind = self._fold_behind(name, norm)
        if not reason_behind:
            return ""
        reason_before = self._fold_before(name)
        return f"{reason_behind}; {reason_before}" if reason_before else ""

    def _check_norm(self, name: str, norm: _BatchNorm) -> str:
        if norm.running_mean is None or norm.running_var is None:
            return "it has no running statistics, so it normalises by statistics of its input"
        known = type(norm).__module__.startswith("torch.nn.modules.") or keeps_activation(norm)
        if not known:
            return f"{type(norm).__name__} may do more than a BatchNorm"
        return self._check_layer(name, norm)

    def _check_layer(self, name: str, layer: nn.Module) -> str:
        """Return why a layer must not be changed, whatever its neighbours; empty if it may be."""
        tensors = (*layer.parameters(recurse=False), *layer.buffers(recurse=False))
        checks = {
            f"'{name}' did not run as a module": self.flow.calls.get(name, 0) == 0,
            f"'{name}' ran more than once": self.flow.calls.get(name, 0) > 1,
            f"'{name}' is shared: it has several names": self.names_of_module[id(layer)] > 1,
            f"'{name}' shares a tensor with another module": any(self.uses_of_tensor[id(t)] > 1 for t in tensors),
            f"the parameters of '{name}' are read elsewhere too": bool(self.flow.lent.get(name)),
            f"'{name}' has hooks": has_hooks(layer),
        }
        return next((reason for reason, applies in checks.items() if applies), "")

    def _check_linear(self, name: str, *, exact: bool) -> str:
        layer = self.layers[name]
        if is_parametrized(layer):
            return f"'{name}' is parametrized"
        if type(layer) not in LINEAR_LAYERS and (exact or identify(type(layer)) not in PLAIN_SUBCLASSES):
            return f"'{name}' ({type(layer).__name__}) may use its weight in a way of its own"
        if self.flow.input_dims.get(name) != layer.weight.dim():
            return f"the input of '{name}' has other dimensions than a batch for it"
        return self._check_layer(name, layer)

    def _fold_behind(self, name: str, norm: _BatchNorm) -> str:
        """Fold into the layer or layers before the norm; return why not."""
        value = self.flow.inputs.get(name)
        if value is None or not all(isinstance(self.layers[maker], LINEAR_LAYERS) for maker in value.layers):
            return "its input is not the output of convolutions or linear layers alone"
        for maker in value.layers:
            reason = self._check_linear(maker, exact=False) or _check_readers(self.flow.outputs[maker], value, name)
            if reason:
                return reason
        start = 0
        for maker in value.layers:
            stop = start + len(self.layers[maker].weight)
            self.behind[maker] = (name, None if len(value.layers) == 1 else (start, stop))
            start = stop
        return ""

    def _fold_before(self, name: str) -> str:
        """Fold into the layer behind the norm; return why not."""
        value = self.flow.outputs[name]
        reader = next(iter(value.readers), OUTSIDE)
        if len(value.readers) != 1 or value.joined is not None or not self._is_linear(reader):
            return "its output does not go into one convolution or linear layer alone"
        if self.flow.inputs.get(reader) is not value:
            return f"its output is not the whole input of '{reader}'"
        if keeps_activation(self.layers[name]):
            return f"an activation lies between it and '{reader}'"
        if pads_with_zeros(self.layers[reader]):
            return f"'{reader}' pads its output with zeros, where the folded form would pad with the shift"
        reason = self._check_linear(reader, exact=True)
        if not reason:
            self.before[reader] = name
        return reason

    def _is_linear(self, name: str) -> bool:
        return isinstance(self.layers.get(name), LINEAR_LAYERS)


def pads_with_zeros(layer: nn.Module) -> bool:
    """Return whether a convolution puts zeros around its input; false for other paddings and for linear layers."""
    if isinstance(layer, nn.Linear):
        return False
    padding = getattr(layer, "padding", 0)
    if padding == "same":
        padding = tuple(side - 1 for side in layer.kernel_size)  # type: ignore[union-attr]
    return layer.padding_mode == "zeros" and padding != "valid" and any(padding)  # type: ignore[arg-type]


def _check_readers(own: Value, value: Value, norm: str) -> str:
    """Return why the output of a layer is not read by the norm alone; empty if it is."""
    readers = own.readers | value.readers
    if own is not value:  # it enters the norm through a concatenation
        direct = bool(own.readers) or own.joined is not value or value.joined is not None
    else:
        direct = own.joined is not None
    if readers == {norm} and not direct:
        return ""
    others = sorted(readers - {norm, OUTSIDE, RESULT})
    where = ", ".join(f"'{other}'" for other in others) or (RESULT if RESULT in readers else OUTSIDE)
    return f"the output of '{own.layers[0]}' is used elsewhere too: {where}"
