"""Each multi-branch network in a run of its own, to the proof in the run's folder and the program beside it."""

import json
from pathlib import Path

import pytest

from tests.integration.test_mission import classify
from tests.integration.test_simulation_command import finish

SMALL = ["sites=2", "rounds=2", "data.images_per_site=60", "data.image_size=64", "data.num_classes=3", "benefit=false"]
ONE_BLOCK = "local_depths: [1, 1, 1, 1], global_depths: [1, 1, 1, 1]"
NETWORKS = {
    "adsr_resnet18": "{name: adsr_resnet18}",
    "mobilenet_v2_erohprf": "{name: mobilenet_v2_erohprf, width_mult: 0.5}",
    "hemf": f"{{name: hemf, width: 16, {ONE_BLOCK}}}",
    "came": f"{{name: came, width: 32, {ONE_BLOCK}}}",
    "hifuse_tiny": "{name: hifuse_tiny, width: 32}",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_run_ends_with_a_proof_and_a_network_that_can_be_used(tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    done = finish("--out", run, settings=[*SMALL, f"model={NETWORKS[name]}"])
    assert done.returncode == 0, done.stderr
    proof = json.loads((run / "model" / "manifest.json").read_text())["proof"]
    assert proof["merged_places"] > 0
    assert proof["blocks_max_relative_error"] <= 1e-5
    for form in ("deploy_form", "onnx"):
        told = proof[form]
        assert told["num_images"] > 0
        assert told["num_agreeing"] >= told["num_images"] - told["num_ties"]
        assert told["max_abs_error"] <= 1e-4
    assert (run / "model" / proof["details"]).is_file()
    assert "seeded noise" not in proof["images"]
    classify(run / "model", tmp_path)
