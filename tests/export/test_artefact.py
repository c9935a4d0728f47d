"""The artefact: complete or not there, proven, readable with and without this library."""

import json
import re
import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedmed.config import Plan
from fedmed.errors import CheckpointError, ReparameterizationError
from fedmed.export import artefact as module
from fedmed.export import load_model
from fedmed.export.artefact import ArtefactSettings, ProofImages, build_artefact
from fedmed.export.check import check_hashes
from fedmed.export.compare import compare_outputs, open_session, read_comparison, run_onnx
from fedmed.export.manifest import describe_preprocessing, digest_plan
from fedmed.export.model_card import write_model_card
from fedmed.export.onnx_file import ExportError, write_onnx
from fedmed.export.ranges import describe_range
from fedmed.seeding import seeded_torch
from fedmed.training.network import Network
from tests.support.federation import Federation  # registers the network "tiny"

assert Federation
SIZE = 16
CLASSES = ["benign", "malignant", "a | b\n# c"]
PLAN = Plan.model_validate(
    {
        "seed": 1,
        "rounds": 3,
        "classes": CLASSES,
        "image_size": SIZE,
        "augmentation": "flips",
        "model": {"name": "tiny", "width": 6},
        "loss": {"ce": 1.0},
        "training": {},
        "batch_norm": "average",
    }
)
FILES = {
    "manifest.json", "model.onnx", "model.safetensors", "proof.json", "model_card.md", "predict.py", "load_model.py",
    "predict_tables.py", "predict_watch.py", "requirements.txt",
}  # fmt: skip


def make_model() -> nn.Module:
    """Return a network whose BatchNorm has seen data."""
    model = Network(PLAN).model
    with seeded_torch(0, "tests", "export"), torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, 3, SIZE, SIZE) * 2 + 1)
        model[1].weight.uniform_(0.5, 1.5)
        model[1].bias.uniform_(-1, 1)
    return model.eval()


def make_images(number: int = 9) -> ProofImages:
    with seeded_torch(1, "tests", "export"):
        return ProofImages(torch.randn(number, 3, SIZE, SIZE), torch.arange(number) % 3, f"{number} test images")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "model"
    build_artefact(make_model(), ArtefactSettings(PLAN, chosen_round=2), folder, make_images())
    return folder


@pytest.fixture
def manifest(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return content


def test_folder_is_complete(folder: Path, manifest: dict[str, Any]) -> None:
    assert {path.name for path in folder.iterdir()} == FILES
    assert set(manifest["sha256"]) == FILES - {"manifest.json"}
    check_hashes(folder)
    assert manifest["classes"] == CLASSES
    assert manifest["chosen_round"] == 2
    assert manifest["plan_sha256"] == digest_plan(PLAN)
    assert manifest["preprocessing"]["mean"] == [0.485, 0.456, 0.406]
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_deploy_form_is_smaller_and_measured(manifest: dict[str, Any]) -> None:
    sizes = manifest["sizes"]
    # Width 6: the BatchNorm's 6 weights and 6 shifts become 6 biases.
    assert sizes["train_form"]["parameters"] - sizes["deploy_form"]["parameters"] == 6
    for form in ("train_form", "deploy_form", "onnx"):
        assert sizes[form]["latency_ms"] > 0
        assert sizes[form]["bytes"] > 0


def test_proof_is_in_the_folder(folder: Path, manifest: dict[str, Any]) -> None:
    proof = json.loads((folder / "proof.json").read_text())
    assert proof["passes"] is True
    assert proof["inputs"] == "images"
    assert manifest["proof"]["onnx"]["num_images"] == 9
    assert manifest["proof"]["onnx"]["num_agreeing"] + manifest["proof"]["onnx"]["num_ties"] == 9
    assert manifest["proof"]["onnx"]["max_abs_error"] <= 1e-4
    assert manifest["proof"]["images"] == "9 test images"
    assert manifest["proof"]["merged_places"] == 1


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_onnx_takes_any_batch(folder: Path, batch: int) -> None:
    x_BCHW = make_images(batch).pixels
    with torch.no_grad():
        expected = make_model()(x_BCHW)
    torch.testing.assert_close(run_onnx(open_session(folder, 1), x_BCHW), expected, rtol=0, atol=1e-5)


def test_torch_reads_it_back(folder: Path) -> None:
    model, manifest = load_model(folder)
    assert manifest["form"] == "deploy"
    assert not any(isinstance(part, nn.BatchNorm2d) for part in model.modules())
    x_BCHW = make_images().pixels
    with torch.no_grad():
        torch.testing.assert_close(model(x_BCHW), make_model()(x_BCHW), rtol=0, atol=1e-5)


def test_loader_beside_the_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(folder / "load_model.py"), run_name="__main__")
    shown = capsys.readouterr().out
    assert "Linear(in_features=6, out_features=3" in shown
    assert "BatchNorm" not in shown


def test_changed_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    with (copy / "model.safetensors").open("ab") as file:
        file.write(b" ")
    with pytest.raises(CheckpointError, match="has been changed"):
        load_model(copy)
    with pytest.raises(ValueError, match="has been changed"):
        module.torch_loader.load_model(copy)
    with pytest.raises(CheckpointError, match=r"model\.safetensors changed since"):
        check_hashes(copy)
    (copy / "predict.py").unlink()
    with pytest.raises(CheckpointError, match="no complete artefact"):
        check_hashes(copy)


def test_same_model_same_bytes_and_nothing_of_this_machine(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = (folder / "model.onnx").read_bytes()
    write_onnx(load_model(folder)[0], SIZE, tmp_path / "again.onnx")
    assert capfd.readouterr() == ("", "")  # the exporter likes to talk
    assert (tmp_path / "again.onnx").read_bytes() == data
    for word in (b".py", b"site-packages", str(Path(__file__).parents[2]).encode(), b"stack_trace", b"nn.Module"):
        assert word not in data
    for name in ("manifest.json", "proof.json", "model_card.md", "requirements.txt"):
        text = (folder / name).read_text()
        assert str(Path.cwd()) not in text
        assert str(tmp_path.parent) not in text


def test_requirements_are_three_exact_versions(folder: Path) -> None:
    lines = [line for line in (folder / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line.split("==")[0] for line in lines] == ["numpy", "pillow", "onnxruntime"]
    assert all(re.fullmatch(r"[a-z]+==\d+(\.\d+)+", line) for line in lines)


def test_without_images_the_proof_is_block_by_block(tmp_path: Path) -> None:
    manifest = build_artefact(make_model(), ArtefactSettings(PLAN, chosen_round=1), tmp_path / "model")
    assert json.loads((tmp_path / "model" / "proof.json").read_text())["inputs"] == "seeded"
    assert "no real images" in manifest["proof"]["images"]
    assert manifest["proof"]["onnx"]["num_images"] == 16


def test_train_form_is_unchanged(folder: Path) -> None:
    model, twin = make_model(), make_model()
    module.convert(model, fold_bn=True)
    assert all(torch.equal(value, twin.state_dict()[name]) for name, value in model.state_dict().items())


def break_deploy_form(monkeypatch: pytest.MonkeyPatch, by: float) -> None:
    convert = module.convert

    def convert_wrongly(model: nn.Module, **options: Any) -> Any:
        conversion = convert(model, **options)
        with torch.no_grad():
            conversion.model[-1].bias += by
        return conversion

    monkeypatch.setattr(module, "convert", convert_wrongly)


def test_unequal_deploy_form_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_deploy_form(monkeypatch, 2e-4)
    for images in (make_images(), None):
        with pytest.raises(ReparameterizationError, match=r"not equal|outside the merged places"):
            build_artefact(make_model(), ArtefactSettings(PLAN, chosen_round=1), tmp_path / "model", images)
    assert not list(tmp_path.iterdir())


def test_unequal_onnx_file_is_refused_and_the_older_artefact_stays(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "model"
    shutil.copytree(folder, target)

    def write_wrongly(model: nn.Module, image_size: int, file: Path) -> None:
        with torch.no_grad():
            model[-1].weight *= 1.01
            write_onnx(model, image_size, file)
            model[-1].weight /= 1.01

    monkeypatch.setattr(module, "write_onnx", write_wrongly)
    with pytest.raises(ExportError, match="ONNX file: Over 9 images in float32 a logit differs by"):
        build_artefact(make_model(), ArtefactSettings(PLAN, chosen_round=1), target, make_images())
    check_hashes(target)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_network_that_onnx_does_not_know(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvals(x.mean(1)).real.flatten(1)

    with pytest.raises(ExportError, match="The network Odd cannot be written as ONNX"):
        write_onnx(Odd(), SIZE, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_network_that_depends_on_the_batch_size(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(2, -1)[:, :3]

    with pytest.raises(ExportError, match="must not depend on the batch size"):
        write_onnx(Fixed(), SIZE, tmp_path / "model.onnx")


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(model: nn.Module, image_size: int, file: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_onnx", fail)
    with pytest.raises(CheckpointError, match="The disk is full"):
        build_artefact(make_model(), ArtefactSettings(PLAN, chosen_round=1), tmp_path / "model", make_images())
    assert not list(tmp_path.iterdir())


def test_comparison_counts_by_hand() -> None:
    """Five images, K = 3: four classes agree in the ONNX file, one of them a tie; one outside ties does not."""

    class Given(nn.Module):
        def __init__(self, logits: torch.Tensor) -> None:
            super().__init__()
            self.logits = logits

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.logits[x[:, 0, 0, 0].long()]

    class Session:
        def run(self, _: None, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [onnx(torch.from_numpy(feed["images"])).numpy()]

    train = Given(torch.tensor([[3.0, 0, 0], [0, 3, 0], [0, 0, 3], [1, 1.0001, 0], [2, 0, 0]]))
    deploy = Given(train.logits + torch.tensor([0.0, 0.00005, 0]))
    onnx = Given(train.logits + torch.tensor([0.0, 0, 0.5]) * torch.tensor([0, 0, 1, 0, 6])[:, None])
    x = torch.arange(5.0)[:, None, None, None].expand(5, 3, 2, 2)
    labels = torch.tensor([0, 0, 2, 1, 0])
    found = compare_outputs(train, deploy, Session(), x.split(2), labels, 3)
    assert found.deploy.max_abs_error == pytest.approx(5e-5, rel=0.01)
    assert found.onnx.max_abs_error == 3.0
    assert (found.onnx.num_images, found.onnx.num_ties, found.onnx.num_agreeing) == (5, 1, 3)
    # Rows: true class. Columns: right in both, only in the train form, only in the ONNX file, in neither.
    assert found.paired == [[1, 1, 0, 1], [1, 0, 0, 0], [1, 0, 0, 0]]
    assert [text.split(":")[0] for text in found.failures()] == ["ONNX file"] * 3  # a logit, a probability, a class
    assert read_comparison(json.loads(json.dumps(found.to_values()))) == found


def test_comparison_without_images() -> None:
    model = make_model()
    found = compare_outputs(model, model, None, [], torch.zeros(0, dtype=torch.int64), 3)
    assert found.onnx.num_images == 0
    assert found.failures() == []


def test_ranges_by_hand() -> None:
    """Means 0.2 and 0.6: a quarter of 0.4 and half a hundredth wider. Both images are even, so std is 0."""
    images = [torch.full((3, 20, 30), 51, dtype=torch.uint8), torch.full((3, 25, 50), 153, dtype=torch.uint8)]
    assert describe_range(images, "two") == {
        "basis": "two",
        "width": [15, 100],
        "height": [10, 50],
        "mean": [0.095, 0.705],
        "std": [0.0, 0.005],
        "colour": "grey",
    }
    images[0] = torch.stack([torch.full((20, 30), value, dtype=torch.uint8) for value in (0, 51, 102)])
    assert describe_range(images, "two")["colour"] == "both"
    assert describe_range([], "none") == {}


@pytest.mark.parametrize(("recipe", "kind", "side"), [("flips", "exact", 64), ("hifuse", "shorter_side", 73)])
def test_preprocessing_in_numbers(recipe: str, kind: str, side: int) -> None:
    found = describe_preprocessing(recipe, 64)
    assert (found["resize"]["kind"], found["resize"]["size"], found["image_size"]) == (kind, side, 64)


def test_card_without_and_with_figures(manifest: dict[str, Any]) -> None:
    card = write_model_card(manifest)
    assert "not a medical device" in card
    assert "no figures are stated" in card
    assert "a \\| b \\# c" in card  # what comes from elsewhere cannot change the tables
    figure = {"value": 0.5, "interval": [0.4, 0.6], "n": 10, "by_class": {"benign": {"value": None, "reason": "none"}}}
    figures = {"accuracy": figure, "sensitivity": figure}
    report = {
        "synthetic": True,
        "classes": CLASSES,
        "figures": figures,
        "sites": {"north|1": {"train_images": 1234, "test": figures}, "south": {}},
        "thresholds": {"k": 10, "k_row": 5, "k_bin": 5, "unit": "patients"},
    }
    card = write_model_card(manifest | {"batch_norm": "local", "site": "south"}, report)
    assert "| north\\|1 | 10 | n/a | 0.500 [0.400, 0.600] | n/a | n/a |" in card
    assert "| south | n/a | n/a | n/a | n/a | n/a |" in card
    assert "| benign | n/a | n/a |" in card
    assert "| north\\|1 | 1,234 |" in card
    assert "The images are synthetic" in card
    assert "withhold figures of small groups" in card
    assert "for the site south only" in card
    everything = report | {"thresholds": {"k": 1, "k_row": 1, "unit": "images"}}
    assert "withhold figures of small groups" not in write_model_card(manifest, everything)


def test_card_says_who_released_the_model(manifest: dict[str, Any]) -> None:
    words = {"kind": "manual", "by": "Ada"}, "Release: manual, by Ada."
    undecided = (
        {"kind": "manual"},
        "Release: manual, not decided yet: this is a candidate and no person has released it.",
    )
    for release, expected in (words, undecided, ({"kind": "automatic"}, "Release: automatic.")):
        assert expected in write_model_card(manifest | {"release": release})
