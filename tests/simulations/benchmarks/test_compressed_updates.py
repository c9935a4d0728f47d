"""The benchmark of rounded updates: its loop, what travels in it, and its intervals."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fedmed.config import RunConfig
from fedmed.protocol.quantisation import estimate_bytes
from fedmed.protocol.tensors import pack_tensors
from fedmed.storage.tensor_files import TensorFile
from fedmed.training.network import Network
from simulations.benchmarks.compressed_updates import Loop, Rounded, as_it_is, describe, main, measure_seed
from tests.support.federation import Federation

CONFIG = RunConfig.model_validate(
    {
        "rounds": 2,
        "sites": 2,
        "model": {"name": "tiny", "width": 64},
        "data": {"source": "phantom", "images_per_site": 60, "num_classes": 3, "image_size": 16},
        "training": {"optimizer": {"lr": 0.05}, "batch_size": 8},
        "fairness": {"attributes": []},
    }
)


def test_residuals_bring_later_what_the_rounding_has_left_out(tmp_path: Path) -> None:
    """After n rounds from one start, the changes that arrived differ from the true ones by the last residual alone."""
    torch.manual_seed(0)
    change = torch.randn(40, 40)
    start, trained = tmp_path / "start", tmp_path / "trained"
    start.write_bytes(pack_tensors({"weight": torch.zeros(40, 40)}))
    trained.write_bytes(pack_tensors({"weight": change}))
    travel = Rounded("int8", tmp_path)
    arrived = sum(load_file(travel("a", trained, start))["weight"] for _ in range(50))
    half_step = change.abs().max() * 1.01 / 127 / 2
    assert (arrived - 50 * change).abs().max() <= 1.01 * half_step
    once = load_file(Rounded("int8", tmp_path)("a", trained, start))["weight"]
    assert (50 * (once - change)).abs().max() > 10 * half_step, "without residuals it would be far"


def test_a_seed_gives_both_trainings_and_the_rounding_alone(tmp_path: Path) -> None:
    assert Federation  # importing it registers the model "tiny"
    found = measure_seed(CONFIG, "int8", control=True)
    assert set(found["last"]) == {"whole", "rounded", "moved"}
    assert found["last"]["rounded"] == found["rounds"][-1]["rounded"]
    assert len(found["rounds"]) == 2
    assert all(0 <= value <= 100 for pair in found["rounds"] for value in pair.values())
    file = tmp_path / "model"
    file.write_bytes(
        pack_tensors(Network(CONFIG.model_copy(update={"classes": list("abc")}).make_plan()).model.state_dict())
    )
    share = estimate_bytes(TensorFile(file).layout, "int8") / file.stat().st_size
    assert found["bytes_share"] == pytest.approx(share)
    alone = measure_seed(CONFIG, "int8", whole=False)
    assert alone["last"] == {"rounded": found["last"]["rounded"]}
    assert alone["rounds"] == found["rounds"]
    assert "training" not in describe([alone], "int8")


def test_whole_training_has_the_bits_of_a_federation(tmp_path: Path) -> None:
    federation = Federation(tmp_path / "run", CONFIG.model_dump(mode="json", exclude={"classes"}))
    federation.go()
    assert Loop(federation.run, tmp_path).train(as_it_is).read_bytes() == federation.final_model()


def test_table_of_two_seeds() -> None:
    seeds = [
        {"rounds": [{"whole": 50.0, "rounded": 50.5}, {"whole": 60.0, "rounded": 59.9}], "bytes_share": 0.25,
         "last": {"whole": 58.0, "rounded": 59.9}},
        {"rounds": [{"whole": 40.0, "rounded": 40.1}, {"whole": 44.0, "rounded": 44.1}], "bytes_share": 0.27,
         "last": {"whole": 45.0, "rounded": 44.1}},
    ]  # fmt: skip
    text = describe(seeds, "int8")
    assert "26.00 % of the bytes; 2 seeds, 2 rounds" in text
    assert "median size 0.10, largest 0.50" in text
    # Means of the seeds: 0.2 and 0.1. Differences of the last models: 1.9 and -0.9.
    assert "mean over rounds   +0.15" in text
    assert "+0.50" in text


def test_a_setting_that_is_not_known_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--set", "round=3", "--seeds", "1"]) == 1
    assert "round" in capsys.readouterr().err
