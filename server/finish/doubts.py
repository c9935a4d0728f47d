"""A last look at the model that is to be released: whether it sees, and whether it is better than a guess."""

import torch
from torch import Tensor
from torch.nn import functional

from fedmed.config.server import ServerConfig
from fedmed.distillation.network import strip_packed
from fedmed.metrics.site_tables import FEDERATED, SITE_ATTRIBUTE
from fedmed.storage.history import read_history
from fedmed.storage.operating_records import read_operating_point
from fedmed.training.network import Network
from server.finish.chance import find_chance, write_doubts
from server.finish.chosen import ChosenModel
from server.rounds.scoring import load_tables
from server.rounds.session import Session

SMALLEST_SPREAD = 1e-3
"""Of the probability of some class between made images; below it a model does not see."""
_IMAGES_OF_A_KIND = 8
_SEED = 20


def note_doubts(session: Session, model: ChosenModel) -> list[str]:
    """Find out, tell and keep why the chosen model must not be released by itself.

    Parameters
    ----------
    session : Session
        With the plan of the released network.
    model : ChosenModel
        What is to be released.

    Returns
    -------
    list of str
        Sentences; empty where there is no doubt. A simulation releases all the same, and its report has them.
    """
    blind = None
    if not session.plan.is_personal:  # else the sites have the rest of it, and it answers nothing here
        blind = find_blindness(_load(session, model), session.plan.image_size)
    doubts = [text for text in (blind, _find_chance(session, model)) if text is not None]
    operating = read_operating_point(session.run)
    doubts += [] if operating is None else operating["doubts"]
    write_doubts(session.run, doubts)
    for text in doubts:
        session.listener.on_note(text)
    if doubts:
        session.audit.append("release_doubts", model_sha256=model.model_sha256, doubts=doubts)
    return doubts


def find_blindness(network: Network, size: int) -> str | None:
    """Return a sentence if a network's answers hardly depend on the image, or are no numbers; None if it sees.

    Parameters
    ----------
    network : Network
        Filled.
    size : int
        Side of its images.
    """
    model = network.model.cpu().eval()
    with torch.no_grad():
        logits_NK = model(make_images(size))
    if not bool(torch.isfinite(logits_NK).all()):
        return "The model answers with numbers that are not finite."
    p_NK = logits_NK.double().softmax(dim=1)
    spread = float((p_NK.max(dim=0).values - p_NK.min(dim=0).values).max())
    if spread >= SMALLEST_SPREAD:
        return None
    return (
        f"The model does not look at the image: of {len(p_NK)} made images that are nothing alike, no class's "
        f"probability differs by more than {spread:.2g}."
    )


def make_images(size: int) -> Tensor:
    """Return seeded images that are nothing alike, float32 (32,3,size,size), as normalised for a network.

    Fine noise; smooth noise with the spectrum of photographs; plain colours; and one bright patch on a dark ground.
    """
    rng = torch.Generator().manual_seed(_SEED)
    number = _IMAGES_OF_A_KIND
    fine = torch.randn(number, 3, size, size, generator=rng)
    smooth = torch.zeros(number, 3, size, size)
    for cells in (1, 2, 4, 8, 16):
        rough = torch.randn(number, 3, min(cells, size), min(cells, size), generator=rng)
        smooth += functional.interpolate(rough, (size, size), mode="bilinear", align_corners=False) / cells**0.5
    plain = torch.randn(number, 3, 1, 1, generator=rng).expand(number, 3, size, size)
    patch = torch.full((number, 3, size, size), -1.5)
    for index in range(number):
        top, left = (torch.randint(0, max(1, size // 2), (2,), generator=rng)).tolist()
        side = max(1, size * (index + 1) // (2 * number))
        patch[index, :, top : top + side, left : left + side] = 2.0
    return torch.cat([fine, smooth, plain, patch])


def _load(session: Session, model: ChosenModel) -> Network:
    network = Network(session.plan.plain())
    network.fill(strip_packed(model.model_path.read_bytes(), session.plan), {})
    return network


def _find_chance(session: Session, model: ChosenModel) -> str | None:
    if isinstance(session.config, ServerConfig) and not session.config.require_better_than_chance:
        return None
    record = next((one for one in read_history(session.run.history_file) if one.round == model.round), None)
    if record is None:
        return None
    classes = {}
    for site, tables in load_tables(session.run.tables / "test").items():
        told = tables.models[FEDERATED][SITE_ATTRIBUTE].counts.sum(axis=(0, 2)) > 0
        classes[site] = int(told.sum())
    return find_chance(record.validation, len(session.plan.classes), classes)
