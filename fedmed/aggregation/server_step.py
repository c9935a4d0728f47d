"""The seam for the step from a round's average to the next global model.

With x the global model, a the average of the updates (:func:`fedmed.aggregation.average_updates`, under whatever rule)
and d = a - x the change of a round:

* ``average``: x becomes a.
* ``fedavgm`` (Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
  Classification", 2019): m becomes beta m + d, and x becomes x + lr m.
* ``fedadam`` and ``fedyogi`` (Reddi et al., "Adaptive Federated Optimization", ICLR 2021, algorithm 2): m becomes
  beta1 m + (1 - beta1) d, v becomes beta2 v + (1 - beta2) d^2 or v - (1 - beta2) d^2 sign(v - d^2), and x becomes
  x + lr m / (sqrt(v) + tau). v begins with tau^2 and m with 0. As in the paper nothing corrects for that beginning, so
  the first steps are short: m is 1 - beta1 of the first change.

Only parameters that are trained with the labels are stepped. Everything else takes the average: integers, which are
counts; BatchNorm's running statistics, where a step past the average could make a variance negative, and d is no
gradient that could be scaled; and the Fourier prompt, whose gains saturate.

Everything is streamed, as the average is. In memory are one tensor of each moment, the one written before and about ten
windows, 5 MiB together: two models at most, for FedAdam and FedYogi with a network that is a single tensor.
Moments are float32 (float64 for tensors of float64). So on the disk FedAvgM costs two models a checkpoint in place of
one, FedAdam and FedYogi three, and while a round closes there is the average as well.

A new step is two things: its settings in ``fedmed/config/server_step.py``, and here its class with the line
``make_step.register(ItsConfig, ItsStep)``.
"""

import functools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from fedmed.config import AdaptiveConfig, AverageConfig, FedAdamConfig, FedAvgMConfig, FedYogiConfig, ServerStepConfig
from fedmed.errors import FederationError
from fedmed.storage.tensor_files import Array, TensorFile, TensorSpec, write_tensors

Values = npt.NDArray[np.float64]
Moments = dict[str, Values]
"""A window of each moment, by its name."""

_KIND = "server_step"


@dataclass(frozen=True)
class GlobalModel:
    """The global model after a round, or before the first.

    Attributes
    ----------
    model : Path
        Its tensor file.
    moments : Path or None
        What the server step remembers, likewise; None where it remembers nothing.
    """

    model: Path
    moments: Path | None = None


class ServerStep(Protocol):
    """Makes the next global model."""

    num_files: ClassVar[int] = 0
    """Files as large as the model that it writes beside the average."""

    def take(self, before: GlobalModel, averaged: Path, stepped: Collection[str], folder: Path) -> GlobalModel:
        """Return the next global model.

        Parameters
        ----------
        before : GlobalModel
            The model that the round began with.
        averaged : Path
            Tensor file with the average of the round's updates, of the same tensors.
        stepped : collection of str
            Names of the tensors that may be stepped; all others take the average.
        folder : Path
            Where new files are written; those of ``before`` are left as they are.

        Raises
        ------
        FederationError
            If a weight is not finite after the step, or what is remembered is of another kind of step.
        """


class Average(ServerStep):
    """The average is the next global model, bit for bit."""

    def __init__(self, config: AverageConfig) -> None:
        pass

    def take(self, before: GlobalModel, averaged: Path, stepped: Collection[str], folder: Path) -> GlobalModel:
        """Return the average."""
        return GlobalModel(averaged)


class MomentStep(ServerStep):
    """Steps that are a function of moments of the change, element by element, in float64.

    Attributes
    ----------
    kind : str
        Name of the step in the settings.
    starts : dict of str to float
        The names of its moments, with what all their elements are before the first round.
    """

    kind: str
    starts: Mapping[str, float]
    window: int = 1 << 16
    """Elements that are read at once; half a MiB in float64."""

    def update(self, change: Values, moments: Moments) -> Moments:
        """Return a window of the moments after a change."""
        raise NotImplementedError

    def move(self, moments: Moments) -> Values:
        """Return what is added to the model."""
        raise NotImplementedError

    def take(self, before: GlobalModel, averaged: Path, stepped: Collection[str], folder: Path) -> GlobalModel:
        """Write the next moments, then with these the next model."""
        model, average = TensorFile(before.model), TensorFile(averaged)
        names = [name for name, spec in model.layout.items() if name in stepped and spec.dtype.kind == "f"]
        layout = self._lay_out(model, names)
        old = None if before.moments is None else self._open(before.moments, layout)
        after = GlobalModel(folder / "next.safetensors", folder / "moments.safetensors")
        assert after.moments is not None, "it was named just now"
        write_tensors(
            after.moments, self._remember(model, average, old, names), {"format": "pt", _KIND: self.kind}, layout=layout
        )
        moved = self._move(model, average, TensorFile(after.moments), set(names))
        write_tensors(after.model, moved, {"format": "pt"}, layout=model.layout)
        return after

    def _lay_out(self, model: TensorFile, names: Collection[str]) -> dict[str, TensorSpec]:
        """Return shapes and types of the moments; float16 could not hold the squares of small changes."""
        specs = {name: model.layout[name] for name in names}
        return {
            f"{moment}/{name}": TensorSpec(spec.shape, np.promote_types(spec.dtype, np.float32))
            for name, spec in specs.items()
            for moment in self.starts
        }

    def _open(self, path: Path, layout: Mapping[str, TensorSpec]) -> TensorFile:
        file = TensorFile(path)
        found = file.metadata.get(_KIND)
        if found != self.kind or file.layout != layout:
            raise FederationError(
                f"The run has been trained with the server step '{found}' so far, and what that has left does not fit "
                f"'server_step.kind', which is '{self.kind}'. Set it back to '{found}', or begin a new run."
            )
        return file

    def _windows(self, size: int) -> Iterator[tuple[int, int]]:
        return ((start, min(start + self.window, size)) for start in range(0, size, self.window))

    def _read(self, file: TensorFile, name: str, start: int, stop: int) -> Moments:
        return {moment: file.read(f"{moment}/{name}", start, stop).astype(np.float64) for moment in self.starts}

    def _remember(
        self, model: TensorFile, average: TensorFile, old: TensorFile | None, names: Collection[str]
    ) -> Iterator[tuple[str, Array]]:
        """Yield the moments after the round, those of one tensor after the other."""
        for name in names:
            spec = model.layout[name]
            kept_as = np.promote_types(spec.dtype, np.float32)
            results = {moment: np.empty(spec.size, kept_as) for moment in self.starts}
            for start, stop in self._windows(spec.size):
                change = average.read(name, start, stop).astype(np.float64)
                change -= model.read(name, start, stop)
                if old is None:
                    before = {moment: np.full(stop - start, value) for moment, value in self.starts.items()}
                else:
                    before = self._read(old, name, start, stop)
                with np.errstate(over="ignore", invalid="ignore"):
                    for moment, values in self.update(change, before).items():
                        results[moment][start:stop] = values
                        _check(results[moment][start:stop], name)
            for moment in self.starts:  # none is kept here while the next tensor's are made
                yield f"{moment}/{name}", results.pop(moment).reshape(spec.shape)

    def _move(
        self, model: TensorFile, average: TensorFile, moments: TensorFile, stepped: set[str]
    ) -> Iterator[tuple[str, Array]]:
        """Yield the next model, tensor by tensor."""
        for name, spec in model.layout.items():
            if name not in stepped:
                yield name, average.load(name)
                continue
            result = np.empty(spec.size, spec.dtype)
            for start, stop in self._windows(spec.size):
                values = model.read(name, start, stop).astype(np.float64)
                with np.errstate(over="ignore", invalid="ignore"):
                    values += self.move(self._read(moments, name, start, stop))
                    result[start:stop] = values
                _check(result[start:stop], name)
            yield name, result.reshape(spec.shape)
            del result


class FedAvgM(MomentStep):
    """Momentum at the server."""

    num_files = 2

    def __init__(self, config: FedAvgMConfig) -> None:
        self.config, self.kind = config, config.kind
        self.starts = {"m": 0.0}

    def update(self, change: Values, moments: Moments) -> Moments:
        """Return ``beta m + d``."""
        return {"m": self.config.momentum * moments["m"] + change}

    def move(self, moments: Moments) -> Values:
        """Return ``lr m``."""
        return self.config.lr * moments["m"]


class _Adaptive(MomentStep):
    """What FedAdam and FedYogi have in common."""

    num_files = 3

    def __init__(self, config: AdaptiveConfig) -> None:
        self.config, self.kind = config, config.kind
        self.starts = {"m": 0.0, "v": config.tau**2}

    def update(self, change: Values, moments: Moments) -> Moments:
        """Return the mean change and its mean square."""
        kept = self.config.beta1
        mean = kept * moments["m"] + (1 - kept) * change
        return {"m": mean, "v": self.update_square(moments["v"], np.square(change))}

    def update_square(self, v: Values, square: Values) -> Values:
        """Return the next mean square."""
        raise NotImplementedError

    def move(self, moments: Moments) -> Values:
        """Return ``lr m / (sqrt(v) + tau)``."""
        return self.config.lr * moments["m"] / (np.sqrt(moments["v"]) + self.config.tau)


class FedAdam(_Adaptive):
    """Adam at the server."""

    def update_square(self, v: Values, square: Values) -> Values:
        """Return ``beta2 v + (1 - beta2) d^2``."""
        return self.config.beta2 * v + (1 - self.config.beta2) * square


class FedYogi(_Adaptive):
    """Yogi at the server."""

    def update_square(self, v: Values, square: Values) -> Values:
        """Return ``v - (1 - beta2) d^2 sign(v - d^2)``, which is never negative."""
        return v - (1 - self.config.beta2) * square * np.sign(v - square)


@functools.singledispatch
def make_step(config: ServerStepConfig) -> ServerStep:
    """Return the server step of some settings."""
    raise AssertionError(f"make_step.register({type(config).__name__}, ...) is missing beside the step")


make_step.register(AverageConfig, Average)
make_step.register(FedAvgMConfig, FedAvgM)
make_step.register(FedAdamConfig, FedAdam)
make_step.register(FedYogiConfig, FedYogi)


def _check(values: Array, name: str) -> None:
    if not np.isfinite(values).all():
        raise FederationError(
            f"Tensor {name!r} is not finite after the server's step, although the average is. Lower 'server_step.lr'."
        )
