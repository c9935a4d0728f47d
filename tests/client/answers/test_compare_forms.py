"""A site compares a model with its artefact: what it checks first, what it counts, and what leaves."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from flwr.app import Context, Message

from client.hospital.site_data import open_site
from fedmed.config import Plan
from fedmed.errors import PolicyError, WireError
from fedmed.export.artefact import ArtefactSettings, build_artefact
from fedmed.export.release_form import read_answer
from fedmed.protocol.kinds import KINDS
from fedmed.protocol.messages import REPORT, make_content, pack_files, read_report, read_values
from fedmed.protocol.release import COMPARED_FILES
from fedmed.protocol.reports import FormsReport
from fedmed.protocol.tensors import pack_tensors
from fedmed.training.network import Network, hash_model
from tests.client.support.hospital import PATIENT, PLAN, HospitalSite

Files = dict[str, bytes]
Change = Callable[[Files], None]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The artefact of the model that every HospitalSite holds."""
    folder = tmp_path_factory.mktemp("artefact") / "model"
    plan = Plan.model_validate(PLAN)
    build_artefact(Network(plan).model, ArtefactSettings(plan, 1), folder)
    return {name: (folder / name).read_bytes() for name in COMPARED_FILES}


def change_manifest(files: Files, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads(files["manifest.json"])
    change(manifest)
    files["manifest.json"] = json.dumps(manifest).encode()


def replace(files: Files, name: str, content: bytes) -> None:
    """Replace a file, and its hash in the manifest."""
    import hashlib

    files[name] = content
    digest = hashlib.sha256(content).hexdigest()
    change_manifest(files, lambda manifest: manifest["sha256"].update({name: digest}))


def read(reply: Message) -> Any:
    return read_answer(read_report(reply, FormsReport).comparison, 3)


def test_comparison_counts_what_may_be_counted_and_nothing_else(tmp_path: Path, files: Files) -> None:
    site = HospitalSite(tmp_path)  # k 6, k_row 3: classes of fewer than 3 patients are withheld
    packed = pack_files(files)
    reply = site.compare(packed)
    found = read(reply)
    test = open_site(site.config).data.test
    labels, patients = test.labels, [set[str](), set[str](), set[str]()]
    for item, label in zip(test.items, labels.tolist(), strict=True):
        patients[label].add(open_site(site.config).patient_of(item))
    counts = torch.bincount(labels, minlength=3).tolist()
    told = [count if len(own) >= 3 else 0 for count, own in zip(counts, patients, strict=True)]
    assert found.onnx.num_images == found.deploy.num_images == sum(told) < len(labels)
    assert [sum(row) for row in found.paired] == told
    assert found.failures() == []
    assert max(found.onnx.max_abs_error, found.deploy.max_abs_error) < 1e-6
    values = read_values(reply, REPORT)
    assert set(values) == {"model_sha256", "artefact_sha256", "comparison"}
    assert values["model_sha256"] == hash_model(site.model)
    assert not list((site.state / "runs").rglob("candidate-*"))
    (sent,) = site.events("sent")
    assert (sent["kind"], sent["of"]) == ("release", "test")
    (received,) = site.events("received")
    assert [part["name"] for part in received["parts"]] == ["request", "model", "artefact"]
    assert PATIENT not in (site.state / "audit.jsonl").read_text()


def test_site_that_may_count_nothing_compares_no_image(tmp_path: Path, files: Files) -> None:
    site = HospitalSite(tmp_path, policy={"suppression": {"k": 1000, "k_row": 1}})
    found = read(site.compare(pack_files(files)))
    assert (found.onnx.num_images, found.paired) == (0, [[0] * 4] * 3)


def test_other_weights_are_found_on_images(tmp_path: Path, files: Files) -> None:
    import safetensors.torch

    changed = dict(files)
    tensors = safetensors.torch.load(files["model.safetensors"])
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    replace(changed, "model.safetensors", pack_tensors(tensors | {name: tensors[name] + 0.5}))
    found = read(HospitalSite(tmp_path).compare(pack_files(changed)))
    assert "Deploy form" in found.failures()[0]
    assert "ONNX file" not in " ".join(found.failures())


def test_other_function_in_the_onnx_file_is_found_on_images(tmp_path: Path, files: Files) -> None:
    changed = dict(files)
    proto = onnx.ModelProto.FromString(files["model.onnx"])
    weight = max(proto.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weight.raw_data = bytes(len(weight.raw_data))
    replace(changed, "model.onnx", proto.SerializeToString())
    found = read(HospitalSite(tmp_path).compare(pack_files(changed)))
    assert found.failures()[0].startswith("ONNX file")


def without_hash(files: Files) -> None:
    files["model.onnx"] += b"\x00"


def other_plan(files: Files) -> None:
    change_manifest(files, lambda manifest: manifest["plan"].update(seed=4))


def other_size(files: Files) -> None:
    change_manifest(files, lambda manifest: manifest["preprocessing"].update(image_size=1_000_000))


def other_classes(files: Files) -> None:
    change_manifest(files, lambda manifest: manifest.update(classes=["b", "a", "c"]))


def no_manifest(files: Files) -> None:
    files["manifest.json"] = b"["


def custom_operator(files: Files) -> None:
    proto = onnx.ModelProto.FromString(files["model.onnx"])
    proto.graph.node[0].domain = "evil"
    replace(files, "model.onnx", proto.SerializeToString())


def broken_graph(files: Files) -> None:
    proto = onnx.ModelProto.FromString(files["model.onnx"])
    del proto.graph.node[0]
    replace(files, "model.onnx", proto.SerializeToString())


def no_tensors(files: Files) -> None:
    replace(files, "model.safetensors", b"garbage")


def one_more_file(files: Files) -> None:
    files["../../predict.py"] = b"import os"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (without_hash, "model.onnx does not have the hash that its manifest names"),
        (other_plan, "is of another plan than the request"),
        (other_size, "is of another plan than the request"),
        (other_classes, "is of another plan than the request"),
        (no_manifest, "manifest cannot be read"),
        (custom_operator, "operators that are not of ONNX itself"),
        (broken_graph, "a value in it is used before it is made"),
        (no_tensors, "cannot be used here"),
        (one_more_file, "Needed: manifest.json, model.onnx, model.safetensors"),
    ],
)
def test_artefact_that_is_not_as_it_must_be_is_never_run_on_images(
    tmp_path: Path, files: Files, change: Change, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("images were read")

    monkeypatch.setattr("client.answers.compare_forms.read_batches", fail)
    changed = dict(files)
    change(changed)
    site = HospitalSite(tmp_path)
    found = read(site.compare(pack_files(changed)))
    assert isinstance(found, str)
    assert expected in found
    assert str(tmp_path) not in found
    assert not list(tmp_path.rglob("predict.py"))


def test_request_that_does_not_fit_is_explained(tmp_path: Path, files: Files) -> None:
    site, packed = HospitalSite(tmp_path), pack_files(files)
    with pytest.raises(WireError, match="no readable part 'artefact'"):
        site.compare(None)
    with pytest.raises(WireError, match=r"'part' is 'validation'\. Allowed: test"):
        site.compare(packed, part="validation")
    with pytest.raises(WireError, match=r"'artefact_sha256' is '\.\./x'"):
        site.compare(packed, artefact_sha256="../x")
    with pytest.raises(WireError, match=r"parts that were not agreed\. Allowed: request, model"):
        site.send(site.message("evaluate", site.model, {"plan": PLAN, "round": 1, "part": "test"}, packed))
    with pytest.raises(PolicyError, match=r"policy\.test_tables"):
        site.restart(policy={"test_tables": False}).compare(packed)
    with pytest.raises(PolicyError, match=r"policy\.max_message_mib"):
        site.restart(policy={"max_message_mib": 1}).compare(packed + bytes(2**20))
    assert "its hash differs" in read(site.compare(packed, artefact_sha256="0" * 64))
    with pytest.raises(PolicyError, match="one more request for comparison of the forms"):
        site.compare(packed)


def test_comparison_of_few_images_is_not_sent(tmp_path: Path) -> None:
    site = HospitalSite(tmp_path)
    form = {"precision": "float32", "max_abs_error": 0.0, "largest_logit": 1.0, "num_ties": 0}
    answers = {
        "fewer images than may be counted": {"images": 2, "rows": [[2, 0, 0, 0], [0] * 4, [0] * 4]},
        "is malformed": {"images": 7, "rows": [[6, 0, 0, 0], [0] * 4, [0] * 4]},
    }
    for problem, told in answers.items():
        one = form | {"num_images": told["images"], "num_agreeing": told["images"]}

        def answer(message: Message, context: Context, one: Any = one, told: Any = told) -> Message:
            comparison = {"deploy": one, "onnx": one, "paired": told["rows"]}
            values = {"model_sha256": "0" * 64, "artefact_sha256": "0" * 64, "comparison": comparison}
            return Message(make_content(REPORT, values), reply_to=message)

        values = {"plan": PLAN, "round": 1, "part": "test", "artefact_sha256": "0" * 64}
        message = site.message(KINDS["release"].flower, site.model, values, b"x")
        with pytest.raises(PolicyError, match=problem):
            site.let_out(message, answer)
