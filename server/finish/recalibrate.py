"""The policy ``batch_norm: recalibrate``: BatchNorm's statistics of the chosen model from sums that the sites send.

Averaged weights meet averaged running statistics, which no images ever had. Before the chosen model is tested, the
sites send, per BatchNorm and channel, the count, the sum and the sum of squares of its input over their training
images; added up they give the statistics of all images together, see :mod:`fedmed.reparameterization.statistics`.
"""

import json
import time
from pathlib import Path

import torch
from flwr.app import Message

from fedmed.aggregation import cap_weights, find_share_limit
from fedmed.aggregation.norm_bounds import LayerStatistics, compare_statistics
from fedmed.aggregation.site_shift import save_shift
from fedmed.distillation.network import build_network
from fedmed.errors import ReparameterizationError, WireError
from fedmed.protocol.kinds import KINDS
from fedmed.protocol.messages import read_report, read_sums
from fedmed.protocol.reports import NormSumsReport
from fedmed.reparameterization import apply_sums, pool_sums
from fedmed.reparameterization.statistics import Sums, statistics_from_sums, tracked_norms
from fedmed.storage.atomic_files import hash_file, write_atomically
from fedmed.storage.checkpoints import MODEL_FILE
from fedmed.storage.phase_records import find_recalibrated
from fedmed.training.batch_norm_policy import find_norm_buffers
from fedmed.training.network import Network
from server.finish.chosen import ChosenModel, ask_sums
from server.rounds.session import Session

_FEWEST_VALUES = 2
"""Of which a layer's variance is known."""
_LARGEST_SUM = 1e80
"""Of a layer: squares of float32, which ends at 3.4e38, times the positions of very many images."""
_ROUNDING = 1 + 1e-6


def take_chosen(session: Session, chosen: int, best_round: int | None) -> ChosenModel:
    """Return the model of the chosen round, recalibrated if that is the policy.

    Parameters
    ----------
    session : Session
        The federation.
    chosen : int
        The round.
    best_round : int, optional
        As the sites are told, which then keep what belongs to it.

    Raises
    ------
    FederationError
        If the round's checkpoint is damaged.
    """
    kept = session.checkpoints.load(chosen)
    model = ChosenModel(chosen, kept.model_path, kept.model_sha256)
    if session.plan.batch_norm != "recalibrate":
        return model
    done = find_recalibrated(session.run.recalibrated, model.model_sha256)
    return ChosenModel(chosen, *done) if done else recalibrate(session, model, best_round, session.run.recalibrated)


def recalibrate(session: Session, model: ChosenModel, best_round: int | None, folder: Path) -> ChosenModel:
    """Return a model of the session's plan with the BatchNorm statistics of all sites, in a folder of its own.

    Parameters
    ----------
    session : Session
        The federation.
    model : ChosenModel
        As it was trained.
    best_round : int, optional
        As the sites are told.
    folder : Path
        Gets ``model.safetensors`` and ``record.json``.

    Returns
    -------
    ChosenModel
        The model as it was, where no site has sent sums.
    """
    began = time.monotonic()
    session.listener.on_phase("recalibrate", model.round, len(session.attendance.descriptions))
    network = build_network(session.plan)
    network.fill(model.model_path.read_bytes(), {})
    sums = _collect(session, model, network, best_round)
    sums = _leave_out_implausible(session, network, sums)
    if not sums:
        session.listener.on_note("No site has sent BatchNorm sums; the averaged statistics stay.")
        return model
    save_shift(session.run.tables, model.round, "recalibration", _list_layers(network, sums))
    change = _apply(session, network, sums)
    session.listener.on_info(
        f"BatchNorm recalibrated on the training images of {len(sums)} sites; largest change {change:.3g} standard "
        "deviations."
    )
    folder.mkdir(exist_ok=True)
    path = folder / MODEL_FILE
    write_atomically(path, network.pack())
    sha256 = hash_file(path)
    record = {
        "from_sha256": model.model_sha256,
        "model_sha256": sha256,
        "round": model.round,
        "sites": sorted(sums),
        "largest_change": change,
        "seconds": time.monotonic() - began,
    }
    write_atomically(folder / "record.json", json.dumps(record).encode())
    session.audit.append("recalibration", **record)
    return ChosenModel(model.round, path, sha256)


def _collect(session: Session, model: ChosenModel, network: Network, best_round: int | None) -> dict[str, Sums]:
    """Return the sums of the sites that have answered with some that can be used."""
    shapes = {name: (3, norm.num_features) for name, norm in tracked_norms(network.model).items()}
    # No map of a network has more positions than its input.
    most_values = {
        site: number * session.plan.image_size**2 for site, number in session.attendance.most_images("train").items()
    }

    def read(message: Message, site: str) -> Sums:
        return _read(message, model.model_sha256, shapes, most_values[site])

    return ask_sums(session, KINDS["recalibrate"], model, best_round, read)


def _leave_out_implausible(session: Session, network: Network, sums: dict[str, Sums]) -> dict[str, Sums]:
    """Leave out sites whose statistics are far from the others', as in an update."""
    reasons: dict[str, str] = {}
    for norm in find_norm_buffers(network.model, network.model.state_dict()):
        module = tracked_norms(network.model)[norm.layer]
        assert module.running_mean is not None, "the norm is tracked"
        assert module.running_var is not None, "the norm is tracked"
        centre = module.running_mean
        found = {
            site: LayerStatistics(*(part.numpy() for part in statistics_from_sums(of_site[norm.layer], centre)))
            for site, of_site in sums.items()
            if float(of_site[norm.layer][0].min()) >= _FEWEST_VALUES
        }
        here = LayerStatistics(centre.double().numpy(), module.running_var.double().numpy())
        reasons |= compare_statistics(norm, found, here)
    for site, reason in sorted(reasons.items()):
        session.listener.on_note(f"{site} is left out of the BatchNorm statistics: {reason}")
    return {site: of_site for site, of_site in sums.items() if site not in reasons}


def _list_layers(network: Network, sums: dict[str, Sums]) -> list[dict[str, LayerStatistics]]:
    """Return the sites' statistics by layer; of sites whose sums are of two values at least."""
    layers = []
    for name, norm in tracked_norms(network.model).items():
        assert norm.running_mean is not None, "the norm is tracked"
        enough = {site: own[name] for site, own in sums.items() if float(own[name][0].min()) >= _FEWEST_VALUES}
        found = {site: statistics_from_sums(own, norm.running_mean) for site, own in enough.items()}
        layers.append({site: LayerStatistics(*(part.numpy() for part in both)) for site, both in found.items()})
    same = set.intersection(*(set(layer) for layer in layers)) if layers else set()
    return [{site: layer[site] for site in same} for layer in layers]


def _apply(session: Session, network: Network, sums: dict[str, Sums]) -> float:
    """Set the network's statistics to those of the sites' sums, no site with more than its share of the values."""
    limit = find_share_limit(session.config.aggregation.max_share, len(sums))
    bounded: dict[str, Sums] = {site: {} for site in sums}
    for layer in next(iter(sums.values())):
        counts = {site: float(of_site[layer][0].max()) for site, of_site in sums.items()}
        weights, capped = cap_weights(counts, limit)
        scale = sum(counts.values()) / sum(weights.values()) if capped else 1.0
        for site, of_site in sums.items():
            factor = weights[site] * scale / counts[site] if capped and counts[site] else 1.0
            bounded[site][layer] = of_site[layer] * factor
    return apply_sums(network.model, pool_sums(bounded))


def _read(message: Message, sha256: str, shapes: dict[str, tuple[int, int]], most_values: int) -> Sums:
    """Return a site's sums; what cannot be true of its images is refused."""
    if read_report(message, NormSumsReport).model_sha256 != sha256:
        raise WireError("The sums are of another model than the one that was sent.")
    sums = read_sums(message)
    if {name: tuple(values.shape) for name, values in sums.items()} != shapes:
        raise WireError("The sums are of another network.")
    for values in sums.values():
        count, total, squares = values
        # Every channel of a layer has as many values: images times positions.
        if not bool(torch.isfinite(values).all()) or bool((squares < 0).any()) or bool((count != count[0]).any()):
            raise ReparameterizationError("The sums cannot be true: negative, not finite, or with uneven counts.")
        if not 0 <= float(count[0]) <= most_values or float(count[0]) % 1:
            raise ReparameterizationError("The sums are of more values than the images that the site declared have.")
        # The square of a sum of n numbers is at most n times the sum of their squares (Cauchy and Schwarz).
        if float(values.abs().max()) > _LARGEST_SUM or bool((total.square() > count * squares * _ROUNDING).any()):
            raise ReparameterizationError("The sums cannot be true: their squares do not fit them.")
    return sums
