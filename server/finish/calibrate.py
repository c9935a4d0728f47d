"""One temperature for the chosen model, from sums that the sites send; see :mod:`fedmed.metrics.temperature`."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial

import numpy as np
import torch
from flwr.app import Message

from fedmed.aggregation.limits import cap_weights, find_share_limit
from fedmed.config import MaxShare
from fedmed.errors import WireError
from fedmed.metrics.rounding import ROUNDING, is_rounded
from fedmed.metrics.temperature import GRID, MAX_TEMPERATURE, MIN_TEMPERATURE, Temperature, solve_temperature
from fedmed.metrics.values import Array
from fedmed.protocol.faulty_sites import has_finite_numbers, without_faulty
from fedmed.protocol.kinds import KINDS
from fedmed.protocol.messages import read_report, read_sums
from fedmed.protocol.reports import TemperatureReport
from fedmed.storage.atomic_files import write_atomically
from fedmed.storage.records import TemperatureRecord
from server.finish.chosen import ChosenModel, ask_sums
from server.rounds.session import Session

_ROUNDING = 1e-6
_LARGEST_LOSS = 1e9

Sums = tuple[int, Array]
"""Number of images, and float64 (J,2)."""


def fit_temperature(session: Session, model: ChosenModel, best_round: int | None) -> TemperatureRecord | None:
    """Return the temperature of the chosen model; fitted once, then read from the run's folder.

    Parameters
    ----------
    session : Session
        The federation.
    model : ChosenModel
        Whose outputs are to be divided.
    best_round : int, optional
        As the sites are told, which then keep what belongs to it.

    Returns
    -------
    TemperatureRecord or None
        See :meth:`fedmed.storage.run_folder.RunFolder.read_temperature`; None where none is wanted or could be fitted.
    """
    if not session.config.calibrate:
        return None
    if _read_model(session) != model.model_sha256:
        _fit(session, model, best_round)
    return session.run.read_temperature()


def _read_model(session: Session) -> str | None:
    """Return the hash of the model whose temperature was fitted already."""
    try:
        return str(json.loads(session.run.temperature_file.read_bytes())["model_sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _fit(session: Session, model: ChosenModel, best_round: int | None) -> None:
    sums = _collect(session, model, best_round)
    max_share = session.config.aggregation.max_share
    done = without_faulty(sums, partial(_solve, max_share=max_share), what="the temperature", is_sound=_is_sound)
    sums, found = {site: sums[site] for site in sums if site not in done.left_out}, done.result
    for site, reason in done.left_out.items():
        session.listener.on_note(f"{site} is left out: {reason}.")
    session.listener.on_info(_describe(found, len(sums)))
    record = {**asdict(found), "round": model.round, "model_sha256": model.model_sha256, "sites": sorted(sums)}
    write_atomically(session.run.temperature_file, json.dumps(record).encode())
    session.audit.append("temperature", **record)


def _solve(sums: Mapping[str, Sums], max_share: MaxShare = None) -> Temperature:
    """Fit a temperature to the sums of all sites, no site with more than its share of the images."""
    counts = {site: float(images) for site, (images, _) in sums.items()}
    weights, capped = cap_weights(counts, find_share_limit(max_share, len(sums)))
    number = sum(images for images, _ in sums.values())
    total: Array = np.zeros((len(GRID), 2))
    for site, (_, of_site) in sums.items():
        total = total + (of_site * (weights[site] * number / counts[site]) if capped else of_site)
    return solve_temperature(total, number)


def _is_sound(found: Temperature) -> bool:
    return has_finite_numbers(asdict(found)) and MIN_TEMPERATURE * 0.99 <= found.temperature <= MAX_TEMPERATURE * 1.01


def _describe(found: Temperature, num_sites: int) -> str:
    if not found.fitted:
        return f"Probabilities stay as they are: {found.note}."
    return (
        f"Temperature {found.temperature:.2f} fitted on {found.n} validation images of {num_sites} sites; mean "
        f"negative log-likelihood {found.nll_before:.4f} before, {found.nll_after:.4f} after"
        + (f" ({found.note})." if found.note else ".")
    )


def _collect(session: Session, model: ChosenModel, best_round: int | None) -> dict[str, Sums]:
    """Return the sums of the sites that have answered with some that can be used, in the order of their names."""
    declared = session.attendance.most_images("validation")

    def read(message: Message, site: str) -> Sums:
        return _read(message, model.model_sha256, declared[site])

    sums = ask_sums(session, KINDS["calibrate"], model, best_round, read)
    return {site: of_site for site, of_site in sums.items() if of_site[0]}


def _read(message: Message, sha256: str, most_images: int) -> Sums:
    """Return a site's sums; what cannot be true is refused."""
    told = read_report(message, TemperatureReport)
    if told.model_sha256 != sha256:
        raise WireError("The sums are of another model than the one that was sent.")
    if told.n > most_images:
        raise WireError("The sums are of more images than the site declared.")
    if told.n == 0:
        return 0, np.zeros((len(GRID), 2))
    sums = read_sums(message).get("temperature")
    if sums is None or tuple(sums.shape) != (len(GRID), 2) or not bool(torch.isfinite(sums).all()):
        raise WireError("The sums are not those of a temperature.")
    values_J2: Array = sums.numpy()
    slopes_J = values_J2[:, 1]
    # The likelihood is positive, and its slope rises with the inverse temperature whatever the images are.
    room = _ROUNDING * (1 + np.abs(values_J2).max())
    if values_J2[:, 0].min() < -room or np.diff(slopes_J).min() < -room:
        raise WireError("The sums cannot be true: a negative likelihood, or a slope that falls.")
    if np.abs(values_J2).max() > _LARGEST_LOSS * told.n:
        raise WireError(f"The sums cannot be true: a loss or a slope above {_LARGEST_LOSS:g} an image.")
    rises_J, steps_J = np.diff(values_J2[:, 0]), np.diff(GRID)
    room_J = room + _find_rounding(values_J2, steps_J)
    # Convex in the inverse temperature, it rises from point to point by no less than its slope here and no more than
    # its slope there.
    if (rises_J < slopes_J[:-1] * steps_J - room_J).any() or (rises_J > slopes_J[1:] * steps_J + room_J).any():
        raise WireError("The sums cannot be true: the likelihood does not fit its slopes.")
    return told.n, values_J2


def _find_rounding(values_J2: Array, steps_J: Array) -> Array:
    """Return by how much three digits can move a rise between two points against their slopes, float64 (J-1,)."""
    if not is_rounded(values_J2):
        return np.zeros_like(steps_J)
    sizes_J2 = ROUNDING * np.abs(values_J2)
    rises_J: Array = sizes_J2[:-1, 0] + sizes_J2[1:, 0]
    result: Array = rises_J + np.maximum(sizes_J2[:-1, 1], sizes_J2[1:, 1]) * steps_J
    return result
