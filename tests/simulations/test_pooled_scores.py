"""The second scoring pass of a simulation: the areas are those of all images that the sites have."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from fedmed.config import RunConfig
from fedmed.data import load_site, prepare_data
from fedmed.distillation.network import build_network
from fedmed.storage.pooled_auc import read_pooled_auc
from fedmed.storage.run_folder import RunFolder
from fedmed.training.evaluate import compute_logits
from server.finish.chosen import ChosenModel
from server.rounds.session import Session
from simulations import pooled_scores
from simulations.pooled_scores import measure_pooled_auc

SETTINGS = {
    "sites": 2,
    "model": {"name": "resnet18"},
    "data": {"source": "phantom", "image_size": 32, "images_per_site": 60},
}


def _prepare(folder: Path) -> tuple[Session, ChosenModel, RunConfig]:
    run = RunFolder.create(folder / "run", "again")
    config = RunConfig.model_validate(SETTINGS)
    prepared = prepare_data(config.data, config.sites, config.seed, run.splits)
    config = config.model_copy(update={"classes": list(prepared.classes)})
    run.write_config(config)
    torch.manual_seed(0)
    path = folder / "model.safetensors"
    path.write_bytes(build_network(config.make_plan()).pack())
    session = cast(Session, SimpleNamespace(run=run, plan=config.make_plan()))
    return session, ChosenModel(1, path, "a" * 64), config


def test_areas_are_over_the_test_images_of_all_sites(tmp_path: Path) -> None:
    session, model, config = _prepare(tmp_path)
    measure_pooled_auc(session, model)
    record = read_pooled_auc(session.run.tables)
    assert record is not None
    network = build_network(session.plan)
    network.fill(model.model_path.read_bytes(), {})
    logits, labels = [], []
    for name in ("site_01", "site_02"):
        part = load_site(config.data, config.sites, config.seed, session.run.splits, name, 0.0).test
        logits.append(compute_logits(network.model, part, session.plan, device=torch.device("cpu")))
        labels.append(part.labels)
    p_NK, labels_N = torch.cat(logits).double().softmax(dim=1).numpy(), torch.cat(labels).numpy()
    assert record["n"] == len(labels_N)
    expected = [
        roc_auc_score(labels_N == label, p_NK[:, label]) if (labels_N == label).any() else None
        for label in range(len(config.classes or []))
    ]
    assert record["by_class"] == pytest.approx(expected, abs=1e-9)
    assert not np.allclose([area for area in expected if area is not None], 0.5), "else any order would do"


def test_many_images_are_not_scored_again_and_a_pass_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, model, _ = _prepare(tmp_path)
    monkeypatch.setattr(pooled_scores, "MOST_IMAGES", 3)
    monkeypatch.setattr(pooled_scores, "load_site", None)
    measure_pooled_auc(session, model)
    record = read_pooled_auc(session.run.tables)
    assert record is not None
    assert record["by_class"] is None
    assert record["n"] > record["limit"] == 3
    monkeypatch.setattr(pooled_scores, "MOST_IMAGES", 10_000)
    measure_pooled_auc(session, model)  # would fail without load_site
    with pytest.raises(TypeError):
        measure_pooled_auc(session, ChosenModel(2, model.model_path, "b" * 64))
