"""Checks of every update before it may touch the global model.

An update with a NaN, another network's tensors or a thousand times the usual length would spoil the model for all
hospitals. Such an update is left out of its round, and its site is told why in words that it can act on.
"""

import math
import numbers
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedmed.errors import CheckpointError
from fedmed.storage.tensor_files import Array, TensorFile, TensorSpec

WINDOW_ELEMENTS = 1 << 18
MAX_IMAGES = 100_000_000
"""More training images than this at one site are taken for a fault."""

_MAX_NAME_LETTERS = 80


@dataclass(frozen=True)
class UpdateCheck:
    """Result of :func:`check_update`.

    Attributes
    ----------
    ok : bool
        Whether the update may be used, as far as it can be seen without the other sites.
    reason : str or None
        What is wrong with it, as a sentence; None when it is good.
    norm : float or None
        Euclidean norm of (update - global model) over the measured tensors; None when it is not good.
    """

    ok: bool
    reason: str | None
    norm: float | None


def check_update(
    update: Path | TensorFile,
    reference: TensorFile | Mapping[str, Array],
    *,
    measured: Collection[str] | None = None,
    window: int = WINDOW_ELEMENTS,
) -> UpdateCheck:
    """Check one update against the global model that it started from.

    Parameters
    ----------
    update : Path or TensorFile
        The site's tensors. A file that cannot be read is a fault of the update.
    reference : TensorFile or mapping of str to array
        The tensors that were sent to the site: exactly these names, shapes and types must come back.
    measured : collection of str, optional
        Tensors that count for the norm; default: all of floating point. The model's parameters are the right choice:
        BatchNorm's running variances follow the scale of a site's images, and may differ a hundredfold without fault.
    window : int
        Elements that are read at once.

    Returns
    -------
    UpdateCheck
        The verdict, with the norm ``sqrt(sum (update - reference)**2)`` in float64.

    Raises
    ------
    CheckpointError
        If the reference itself cannot be read.
    """
    expected = reference.layout if isinstance(reference, TensorFile) else _describe(reference)
    try:
        file = update if isinstance(update, TensorFile) else TensorFile(update)
    except CheckpointError as error:
        return UpdateCheck(False, _explain_unreadable(error), None)
    reason = _compare_layouts(file.layout, expected)
    if reason:
        return UpdateCheck(False, reason, None)
    squares = []
    for name, spec in expected.items():
        if spec.dtype.kind != "f":
            continue
        square = 0.0
        for start in range(0, spec.size, window):
            stop = min(start + window, spec.size)
            try:
                values = file.read(name, start, stop)
            except CheckpointError as error:
                return UpdateCheck(False, _explain_unreadable(error), None)
            if not np.isfinite(values).all():
                return UpdateCheck(False, _explain_not_finite(name, values), None)
            if measured is None or name in measured:
                square += _sum_squares(values, _read_window(reference, name, start, stop))
        squares.append(square)
    norm = math.sqrt(sum(squares))
    if not math.isfinite(norm):
        return UpdateCheck(
            False, "The update is longer than float64 can tell: training diverged; lower the learning rate.", None
        )
    return UpdateCheck(True, None, norm)


def _explain_unreadable(error: CheckpointError) -> str:
    """Return what is wrong without the path in the error: the reason is told to other hospitals."""
    cause = f" ({error.__cause__})" if isinstance(error.__cause__, ValueError) else ""
    return f"The update is damaged or cut off and should be sent again{cause}."


def _describe(arrays: Mapping[str, Array]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(array.shape, array.dtype) for name, array in arrays.items()}


def _read_window(reference: TensorFile | Mapping[str, Array], name: str, start: int, stop: int) -> Array:
    if isinstance(reference, TensorFile):
        return reference.read(name, start, stop)
    return reference[name].reshape(-1)[start:stop]


def _sum_squares(values: Array, origin: Array) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        difference = values.astype(np.float64)
        difference -= origin
        # numpy sums pairwise in a fixed order; BLAS (np.dot) may split by threads and change bits.
        np.multiply(difference, difference, out=difference)
        return float(difference.sum())


def _explain_not_finite(name: str, values: Array) -> str:
    kind = "NaN" if np.isnan(values).any() else "an infinite value"
    return (
        f"Tensor {_show(name)} holds {kind}: training diverged at this site. Look for broken images, lower the "
        "learning rate or clip gradients with 'training.clip_norm'."
    )


def _compare_layouts(found: Mapping[str, TensorSpec], expected: Mapping[str, TensorSpec]) -> str | None:
    advice = "The site trains another network than the federation; install the same version of fedmed at both ends."
    missing = sorted(expected.keys() - found.keys())
    if missing:
        return f"The update lacks {_count(missing)}. {advice}"
    unexpected = sorted(found.keys() - expected.keys())
    if unexpected:
        return f"The update holds {_count(unexpected)} that the model does not have. {advice}"
    for name, spec in expected.items():
        if found[name].shape != spec.shape:
            return f"Tensor {_show(name)} has shape {found[name].shape} and should have {spec.shape}. {advice}"
        if found[name].dtype != spec.dtype:
            return f"Tensor {_show(name)} has type {found[name].dtype} and should have {spec.dtype}. {advice}"
    return None


def _count(names: Sequence[str]) -> str:
    return (
        f"tensor {_show(names[0])}" if len(names) == 1 else f"{len(names)} tensors, the first being {_show(names[0])}"
    )


def _show(name: str) -> str:
    """Quote a name that a site has sent: it may hold anything, and it goes into logs."""
    return repr(name if len(name) <= _MAX_NAME_LETTERS else name[:_MAX_NAME_LETTERS] + "…")


def check_num_images(value: object, declared: int) -> str | None:
    """Check the number of training images that came with an update; it is the site's weight.

    Parameters
    ----------
    value : object
        What the site sent.
    declared : int
        What it declared when it joined. Fewer are right, because patients can withdraw; more would give it weight
        that it has not stated.

    Returns
    -------
    str or None
        What is wrong, as a sentence; None when it is good.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        return f"The number of training images is {_show(str(value))} and should be a whole number."
    count = int(value)
    if not 0 < count <= MAX_IMAGES:
        return f"The number of training images is {count} and should lie between 1 and {MAX_IMAGES}."
    if count > declared:
        return (
            f"The number of training images is {count}, but the site declared {declared} when it joined. It is asked "
            "again how many it has."
        )
    return None


def compare_norms(norms: Mapping[str, float], recent: Sequence[float], max_ratio: float) -> dict[str, str]:
    """Find updates that are far longer than the others.

    Parameters
    ----------
    norms : mapping of str to float
        Norm of every site's update of this round, from :func:`check_update`.
    recent : sequence of float
        Norms that were accepted in the rounds before, the latest last; empty in the first round.
    max_ratio : float
        An update is quarantined when it is more than this many times as long as the usual; above 1.

    Returns
    -------
    dict of str to str
        Site to reason, for those to leave out.

    Raises
    ------
    ValueError
        If a norm is negative or not finite, or ``max_ratio`` is not above 1.

    Notes
    -----
    The usual length for a site is the median over the *other* sites of this round and as many recent norms as there are
    others (all of them for a site that is alone). The site itself is left out, so that of two sites the one with a
    thousandfold update cannot hide in the median. History is no stronger than the present, so that a step of the
    learning rate that lengthens all updates does not quarantine everybody for ever. Quarantined sites are no
    yardstick: the comparison is repeated without them until nobody is added. Zero norms carry no scale and are not
    part of the median; without any positive norm to compare with, a site is accepted.
    """
    if not max_ratio > 1:
        raise ValueError(f"max_ratio is {max_ratio}; it must be above 1")
    for site, norm in norms.items():
        if not (math.isfinite(norm) and norm >= 0):
            raise ValueError(f"the norm of site {site!r} is {norm}; it must be finite and not negative")
    reasons: dict[str, str] = {}
    while True:
        left = {site: norms[site] for site in sorted(norms) if site not in reasons}
        found = {}
        for site, norm in left.items():
            usual = find_usual_norm([left[other] for other in left if other != site], recent)
            if usual is not None and norm > max_ratio * usual:
                found[site] = _explain_norm(norm, usual, max_ratio)
        if not found:
            return reasons
        reasons.update(found)


def find_usual_norm(others: Sequence[float], recent: Sequence[float]) -> float | None:
    """Return the median length of the other sites' updates and of as many recent ones; None if none is above 0.

    Parameters
    ----------
    others : sequence of float
        Of this round; without any, all recent ones count.
    recent : sequence of float
        Of the rounds before, the latest last.
    """
    history = recent[-len(others) :] if others else recent
    positive: Iterable[float] = [norm for norm in (*others, *history) if norm > 0]
    return statistics.median(positive) if positive else None


def _explain_norm(norm: float, usual: float, max_ratio: float) -> str:
    return (
        f"The update is {norm / usual:.3g} times as long as usual ({norm:.4g}; the others and recent rounds: "
        f"{usual:.4g}; allowed: {max_ratio:g} times). Look for images of another kind or scale at this site, or "
        "training that diverges; 'aggregation.max_norm_ratio' sets the limit."
    )
