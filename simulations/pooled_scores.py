"""The test images of all sites scored in one process, which one person may do who holds them all.

A hospital's answers hold no score, in a simulation neither, so that both are one code path. For the exact area over
all images the simulation's own process therefore scores the tested model once more, after the sites have.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from fedmed.config import RunConfig
from fedmed.data import ImagePart, load_site
from fedmed.data.split_files import describe_settings, read_index
from fedmed.distillation.network import build_network
from fedmed.metrics.pooled_area import pooled_auc
from fedmed.metrics.values import Array
from fedmed.storage.pooled_auc import read_pooled_auc, write_pooled_auc
from fedmed.storage.site_state import SiteState
from fedmed.training.devices import select_device
from fedmed.training.evaluate import compute_logits
from server.finish.chosen import ChosenModel
from server.rounds.session import Session

MOST_IMAGES = 20_000
"""Test images that are scored a second time; above it the within-site area stands alone."""


def measure_pooled_auc(session: Session, model: ChosenModel) -> None:
    """Write the exact area of each class over the test images of all sites, unless it is there already.

    Parameters
    ----------
    session : Session
        Of a simulation, with the plan of the tested network.
    model : ChosenModel
        What was tested.
    """
    run = session.run
    known = read_pooled_auc(run.tables)
    if known is not None and known["model_sha256"] == model.model_sha256:
        return
    config = run.read_config()
    index = read_index(run.splits, describe_settings(config.data, config.sites, config.seed))
    assert index is not None, "the sites have scored their parts of it"
    number = sum(sum(parts["test"]) for parts in index.composition.values())
    by_class: list[float | None] | None = None
    if number <= MOST_IMAGES:
        with _threads_of(config):
            logits_NK, labels_N = _score_everybody(session, config, model, sorted(index.composition))
        temperature = run.read_temperature()
        by_class = pooled_auc(logits_NK / (temperature["temperature"] if temperature else 1.0), labels_N)
    write_pooled_auc(
        run.tables,
        {"model_sha256": model.model_sha256, "n": number, "limit": MOST_IMAGES, "by_class": by_class},
    )


def _score_everybody(session: Session, config: RunConfig, model: ChosenModel, sites: list[str]) -> tuple[Array, Array]:
    """Return the outputs for all sites' test images, float64 (N,K), and their classes (N)."""
    packed, device = model.model_path.read_bytes(), select_device(config.device)
    logits, labels = [], []
    for name in sites:
        part: ImagePart = load_site(config.data, config.sites, config.seed, session.run.splits, name, 0.0).test
        network = build_network(session.plan)
        # What stays at a site, such as local BatchNorm, is its own part of the model.
        found = SiteState(session.run.sites / name / "state").load_before(model.round + 1)
        network.fill(packed, found[0] if found else {})
        logits.append(compute_logits(network.model, part, session.plan, device=device).double().numpy())
        labels.append(part.labels.numpy())
    return np.concatenate(logits), np.concatenate(labels)


@contextmanager
def _threads_of(config: RunConfig) -> Iterator[None]:
    """Compute with as many threads as a worker does, so that the outputs are those of the sites."""
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
