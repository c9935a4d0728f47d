"""A model that is blind, or no better than a guess, waits for a person."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedmed.storage.history import Validation
from server.finish.artefact import _describe_release
from server.finish.chance import find_chance, read_doubts, write_doubts
from server.finish.doubts import find_blindness, make_images
from server.release.decision import decide_release, read_decision
from tests.attacks.support.hospital import make_network
from tests.support.deployment_grid import Hospitals
from tests.support.federation import Federation


def count(n: list[int], right: list[int], **pooled: float) -> Validation:
    return Validation(pooled=pooled, counts={"site": {"a": {"n": n, "right": right}}})


def test_a_model_that_says_one_class_is_at_chance_however_common_that_is() -> None:
    """Right in 90 of 100 images, of the class that it always says: recalls 1 and 0, their mean 1/2."""
    found = find_chance(count([90, 10], [90, 0]), 2, {})
    assert found is not None
    assert "balanced accuracy on validation images is 0.500" in found


def test_above_chance_by_hand() -> None:
    """Two classes of 100: 1/2 + 1.645 sqrt(2 (1/4) / 100) / 2 = 0.5582."""
    assert find_chance(count([100, 100], [56, 55]), 2, {}) is not None
    assert find_chance(count([100, 100], [56, 56]), 2, {}) is None
    # Of three classes only two have images, so a guess has 1/2.
    assert find_chance(count([100, 100, 0], [50, 50, 0]), 3, {}) is not None
    assert find_chance(count([100], [100]), 1, {}) is None


def test_figures_alone() -> None:
    """Two sites with 2 and 4 classes: a guess has (1/2 + 1/4) / 2; of 7 classes at each 1/7."""
    assert find_chance(Validation(pooled={"balanced_accuracy": 0.37}), 7, {"a": 2, "b": 4}) is not None
    assert find_chance(Validation(pooled={"balanced_accuracy": 0.40}), 7, {"a": 2, "b": 4}) is None
    assert find_chance(Validation(pooled={"balanced_accuracy": 0.15}), 7, {}) is not None
    assert find_chance(Validation(pooled={"balanced_accuracy": 0.17}), 7, {}) is None
    # 1/7 + 1.645 sqrt(6/49 / 100) = 0.2004
    assert find_chance(Validation(pooled={"balanced_accuracy": 0.20, "n": 100}), 7, {}) is not None
    assert find_chance(Validation(pooled={"accuracy": 0.9, "balanced_accuracy": 0.14}), 7, {}) is not None
    assert find_chance(Validation(), 7, {}) is None


def test_a_site_without_a_figure_of_the_chosen_round_does_not_raise_the_level() -> None:
    one = Validation(pooled={"balanced_accuracy": 0.6}, sites={"b": {"balanced_accuracy": 0.6}})
    assert find_chance(one, 3, {"a": 1, "b": 3}) is None


def test_a_network_that_does_not_look_is_found() -> None:
    network = make_network({"model": {"name": "resnet18"}})
    assert find_blindness(network, 32) is None
    for name, values in network.model.state_dict().items():
        if name.endswith("running_var"):
            values.fill_(1e30)
    assert "does not look at the image" in str(find_blindness(network, 32))
    network.model.state_dict()["fc.bias"].fill_(float("nan"))
    assert "not finite" in str(find_blindness(network, 32))


@pytest.mark.parametrize("size", [1, 16, 64])
def test_made_images_are_nothing_alike(size: int) -> None:
    images = make_images(size)
    assert images.shape == (32, 3, size, size)
    distances = torch.cdist(images.flatten(1), images.flatten(1)) + 1e9 * torch.eye(32)
    assert float(distances.min()) > 0 or size == 1
    assert torch.equal(images, make_images(size))


def test_a_simulation_says_so_in_its_report_and_exports_all_the_same(
    make_federation: Callable[..., Federation],
) -> None:
    federation = make_federation(rounds=1)
    federation.go()
    assert [note for note in federation.listener.notes if "not better than chance" in note]
    document = json.loads((federation.run.report / "report.json").read_text())
    assert [note for note in document["notes"] if note.startswith("Warning: The model is not better than chance")]
    assert (federation.run.model / "model.safetensors").is_file()


def run_hospitals(folder: Path, **settings: Any) -> Hospitals:
    """One round, after which the model is at chance. The settings say ``release: automatic``."""
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    hospitals = Hospitals(folder, benefit=False, require_better_than_chance=True, **settings)
    hospitals.go()
    return hospitals


@pytest.fixture(scope="module")
def doubtful(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    """With BatchNorm at the sites there is no deployable form to make, which takes most of the time."""
    return run_hospitals(tmp_path_factory.mktemp("federation"), batch_norm="local")


@pytest.mark.slow
def test_the_model_card_warns(tmp_path: Path) -> None:
    run = run_hospitals(tmp_path / "federation").run
    for words in ("Warning.", "not better than chance", "no person has released it"):
        assert words in (run.model / "model_card.md").read_text()
    decide_release(run, "Dr. Example")
    card = (run.model / "model_card.md").read_text()
    assert "Warning." in card
    assert "Release: manual, by Dr. Example." in card


def test_a_real_federation_waits_for_a_person_and_says_why(doubtful: Hospitals, tmp_path: Path) -> None:
    from server.supervision.supervisor import Supervisor

    run = doubtful.copy(tmp_path / "copy").run
    assert doubtful.config.release == "automatic"
    doubts = read_doubts(run)
    assert len(doubts) == 1
    manifest: dict[str, Any] = json.loads((run.model / "manifest.json").read_text())
    assert manifest["release"] == {"kind": "manual", "doubts": doubts}
    supervisor = Supervisor(doubtful.config, run, doubtful.listener, "nothing:app")
    assert supervisor._must_wait()
    decide_release(run, "Dr. Example")
    assert not supervisor._must_wait()
    decision = read_decision(run)
    assert decision is not None
    assert decision.by == "Dr. Example"
    manifest = json.loads((run.model / "manifest.json").read_text())
    assert manifest["release"]["doubts"] == doubts


@pytest.mark.parametrize(
    ("release", "kind"), [("automatic", "manual"), ("manual", "manual"), ("two_persons", "two_persons")]
)
def test_doubts_never_make_it_fewer_persons(doubtful: Hospitals, release: Any, kind: str) -> None:
    config = doubtful.config.model_copy(update={"release": release})
    doubts = read_doubts(doubtful.run)
    assert doubts
    assert _describe_release(doubtful.run, config) == {"kind": kind, "doubts": doubts}


def test_without_doubts_nobody_has_to_decide(doubtful: Hospitals, tmp_path: Path) -> None:
    from server.supervision.supervisor import Supervisor

    run = doubtful.copy(tmp_path / "copy").run
    write_doubts(run, [])
    assert not Supervisor(doubtful.config, run, doubtful.listener, "nothing:app")._must_wait()


def test_a_damaged_list_of_doubts_is_a_doubt(doubtful: Hospitals, tmp_path: Path) -> None:
    run = doubtful.copy(tmp_path / "copy").run
    (run.path / "release_doubts.json").write_text("{")
    assert "cannot be read" in read_doubts(run)[0]
