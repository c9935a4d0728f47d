"""The candidate of a real federation: built at the server, compared at the sites, decided, released, collected."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity

from client.release.collect import collect, find_trained_sha256
from client.supernode.collected import read_collected
from fedmed.config.client import load_client_config
from fedmed.config.files import dump_config
from fedmed.errors import ConfigError, FederationError, FedmedError, WireError
from fedmed.export import load_model
from fedmed.export.check import check_hashes
from fedmed.keys import make_release_key
from fedmed.protocol.kinds import KINDS
from fedmed.protocol.messages import REPORT, make_content, read_values
from fedmed.protocol.release import name_compared
from fedmed.protocol.tensors import pack_tensors
from fedmed.storage.atomic_files import hash_file
from fedmed.storage.audit import AuditLog, verify_audit
from fedmed.storage.run_folder import RunFolder
from server.finish import artefact as candidate
from server.finish.chance import read_doubts
from server.finish.compare_forms import Findings, _Expected, _read
from server.finish.differences import (
    DIFFERENCES_FILE,
    Acceptance,
    find_accepted,
    keep_differences,
    read_differences,
)
from server.release.decision import accept_site_difference, check_decided, decide_release, read_decision, write_decision
from server.release.operators import hash_content
from server.release.publish import prepare_release
from tests.client.support.kit import FakeFleet
from tests.support.deployment_grid import Hospitals


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    hospitals = Hospitals(tmp_path_factory.mktemp("federation"))
    hospitals.sent = hospitals.go().sent
    return hospitals


@pytest.fixture
def tested(finished: Hospitals, tmp_path: Path) -> Hospitals:
    """The same federation, whose artefact is made but not yet compared at the sites."""
    copy = finished.copy(tmp_path / "copy")
    copy.run.finished_file.unlink()
    (copy.run.tables / "release.json").unlink()
    copy.approve_again()
    return copy


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def manifest_of(hospitals: Hospitals) -> dict[str, Any]:
    content: dict[str, Any] = read(hospitals.run.model / "manifest.json")
    return content


def events(hospitals: Hospitals, name: str) -> list[dict[str, Any]]:
    assert verify_audit(hospitals.run.audit_file).ok
    entries = map(json.loads, hospitals.run.audit_file.read_text().splitlines())
    return [entry["fields"] for entry in entries if entry["event"] == name]


def test_sites_compare_after_the_test_and_the_pooled_result_is_in_manifest_and_card(finished: Hospitals) -> None:
    assert finished.sent[-2:] == [("site_01", KINDS["release"].flower), ("site_02", KINDS["release"].flower)]
    told = read(finished.run.tables / "release.json")
    assert (sorted(told["sites"]), told["silent"]) == (["site_01", "site_02"], {})
    manifest = manifest_of(finished)
    pooled = manifest["proof"]["sites"]
    images = [one["onnx"]["num_images"] for one in told["sites"].values()]
    assert (pooled["num_sites"], pooled["num_images"], pooled["num_silent"]) == (2, sum(images), 0)
    assert all(number > 0 for number in images)
    assert pooled["paired"] == [
        [a + b for a, b in zip(*rows, strict=True)]
        for rows in zip(*(one["paired"] for one in told["sites"].values()), strict=True)
    ]
    assert "site_01" not in json.dumps(pooled)
    card = (finished.run.model / "model_card.md").read_text()
    assert f"2 sites compared train form, deploy form and ONNX file on {sum(images)} of" in card
    assert card.index("## Compared at the sites") < card.index("## Limits")
    check_hashes(finished.run.model)
    chosen = finished.run.checkpoints / "round_00001" / "model.safetensors"
    assert manifest["trained_sha256"] == hash_file(chosen)
    assert [entry["site"] for entry in events(finished, "compared")] == ["site_01", "site_02"]


def test_what_was_done_is_not_done_again(finished: Hospitals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = finished.copy(tmp_path / "copy")
    copy.run.finished_file.unlink()
    before = manifest_of(copy)

    def fail(*_: object) -> None:
        raise AssertionError("built again")

    monkeypatch.setattr(candidate, "_build", fail)
    assert copy.go().sent == []
    assert copy.run.finished_file.is_file()
    assert manifest_of(copy) == before


def test_only_the_comparison_is_repeated(tested: Hospitals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidate, "_build", lambda *_: pytest.fail("built again"))
    sent = tested.go().sent
    assert [kind for _, kind in sent] == ["query", "query", KINDS["release"].flower, KINDS["release"].flower]
    assert tested.run.finished_file.is_file()


def claim_a_difference(site: str, request: Message, reply: Message) -> Message:
    """The last site says that an artefact is no model, whatever it was sent."""
    if site == "site_02" and request.metadata.message_type == KINDS["release"].flower:
        values = read_values(reply, REPORT)
        told = json.loads(json.dumps(values["comparison"]))
        told["onnx"]["max_abs_error"] = 100.0
        reply.content[REPORT] = make_content(REPORT, values | {"comparison": told})[REPORT]
    return reply


def test_a_difference_that_one_site_claims_can_be_accepted_by_name(tested: Hospitals) -> None:
    """The server says which site and what to type; card, doubts and audit log say who has accepted it."""
    with pytest.raises(FederationError, match=r"because site_02 found .*--accept-difference site_02 --by") as told:
        tested.go(claim_a_difference)
    assert "site_01 found no difference" in str(told.value)
    with pytest.raises(FederationError, match=r"'site_01' has found no difference.*These have: site_02"):
        accept_site_difference(tested.run, "site_01", "Ada")
    with pytest.raises(ConfigError, match="--by"):
        accept_site_difference(tested.run, "site_02", " ")
    line = accept_site_difference(tested.run, "site_02", " Ada Lovelace ")
    assert line == "Ada Lovelace has accepted the difference that site_02 has found, since site_01 found none."
    tested.go(claim_a_difference)
    assert tested.run.finished_file.is_file()
    (entry,) = events(tested, "difference_accepted")
    assert (entry["site"], entry["by"]) == ("site_02", "Ada Lovelace")
    told_later = read(tested.run.tables / "release.json")
    assert list(told_later["sites"]) == ["site_01"]
    assert "which Ada Lovelace has accepted" in told_later["silent"]["site_02"]
    (doubt,) = read_doubts(tested.run)
    assert doubt.startswith("site_02 has found that the deployable form is not what was trained; Ada Lovelace has")
    assert manifest_of(tested)["release"] == {"kind": "manual", "doubts": [doubt]}, "a person has to release it"
    assert "**Warning.** site\\_02 has found" in (tested.run.model / "model_card.md").read_text()
    decide_release(tested.run, "Grace Hopper")
    assert manifest_of(tested)["release"]["doubts"] == [doubt]


def test_a_difference_that_every_site_has_found_cannot_be_accepted(tested: Hospitals) -> None:
    tamper_with_weights(tested.run.model)
    with pytest.raises(FederationError, match="cannot be deployed as it is"):
        tested.go()
    with pytest.raises(FederationError, match="cannot be released"):
        accept_site_difference(tested.run, "site_01", "Ada")


def test_what_was_accepted_of_one_candidate_is_not_accepted_of_another(tested: Hospitals) -> None:
    files = {"model.onnx": "ab"}
    keep_differences(tested.run, files, Findings(problems={"site_02": "Other weights."}))
    told = read_differences(tested.run)
    assert told is not None
    accepted = told.model_copy(update={"accepted": {"site_02": Acceptance(by="Ada", time="now")}})
    (tested.run.path / DIFFERENCES_FILE).write_text(accepted.model_dump_json())
    assert list(find_accepted(tested.run, files)) == ["site_02"]
    assert find_accepted(tested.run, {"model.onnx": "cd"}) == {}
    keep_differences(tested.run, {"model.onnx": "cd"}, Findings(problems={"site_02": "Other weights."}))
    assert find_accepted(tested.run, files) == {}


def tamper_with_weights(folder: Path) -> None:
    """Other weights in the deploy form, and a manifest that says that they are right."""
    file = folder / "model.safetensors"
    tensors = safetensors.torch.load(file.read_bytes())
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    file.unlink()  # it may be a link to the original
    file.write_bytes(pack_tensors(tensors | {name: tensors[name] + 0.5}))
    manifest = read(folder / "manifest.json")
    manifest["sha256"][file.name] = hash_file(file)
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_artefact_that_is_not_what_was_trained_is_not_released(tested: Hospitals, finished: Hospitals) -> None:
    tamper_with_weights(tested.run.model)
    with pytest.raises(
        FederationError, match=r"not released.*site_01: Deploy form: .*logit differs by .*site_02: "
    ) as e:
        tested.go()
    assert "Start again to repeat the comparison" in str(e.value)
    assert not tested.run.finished_file.exists()
    assert not (tested.run.tables / "release.json").exists()
    assert [entry["site"] for entry in events(tested, "comparison_failed")] == ["site_01", "site_02"]
    shutil.rmtree(tested.run.model)
    shutil.copytree(finished.run.model, tested.run.model)
    tested.approve_again()  # it is another artefact than the one that the sites were sent
    tested.go()
    assert tested.run.finished_file.is_file()


def test_artefact_on_which_the_way_is_tampered_with_is_not_released(
    tested: Hospitals, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = candidate.pack_files
    monkeypatch.setattr(candidate, "pack_files", lambda files: pack(files | {"model.onnx": files["model.onnx"] + b"0"}))
    with pytest.raises(FederationError, match=r"site_01: The artefact's model\.onnx does not have the hash"):
        tested.go()


def test_site_that_may_not_answer_is_noted_and_the_others_decide(tested: Hospitals) -> None:
    tested.change_client("site_02", policy={"test_tables": False})
    tested.go()
    told = read(tested.run.tables / "release.json")
    assert list(told["sites"]) == ["site_01"]
    assert "policy.test_tables" in told["silent"]["site_02"]
    assert any("site_02 has not compared the deployable form" in note for note in tested.listener.notes)
    assert "1 further sites gave no comparison" in (tested.run.model / "model_card.md").read_text()


def test_without_any_answer_the_proof_without_images_counts_and_the_card_says_so(tested: Hospitals) -> None:
    for name in tested.names:
        tested.change_client(name, policy={"test_tables": False})
    tested.go()
    assert manifest_of(tested)["proof"]["sites"] == {"num_sites": 0, "num_images": 0, "num_silent": 2}
    assert "No site has compared the forms on images" in (tested.run.model / "model_card.md").read_text()
    assert any("rests on the proof without images alone" in note for note in tested.listener.notes)


def test_answer_that_makes_no_sense_does_not_count(tested: Hospitals) -> None:
    def tamper(site: str, request: Message, reply: Message) -> Message:
        if site == "site_02" and request.metadata.message_type == KINDS["release"].flower:
            values = read_values(reply, REPORT) | {"comparison": {"deploy": {}}}
            reply.content[REPORT] = make_content(REPORT, values)[REPORT]
        return reply

    tested.go(tamper)
    assert "malformed" in read(tested.run.tables / "release.json")["silent"]["site_02"]


@pytest.mark.parametrize(
    ("changes", "num_images", "expected"),
    [
        ({}, 10, None),
        ({"comparison": None}, 10, "malformed"),
        ({"artefact_sha256": "1" * 64}, 10, "another model or artefact"),
        ({"model_sha256": "1" * 64}, 10, "another model or artefact"),
        ({}, 9, "more images than the site declared"),
    ],
)
def test_answer_must_fit_what_was_asked(changes: dict[str, Any], num_images: int, expected: str | None) -> None:
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    hashes = {"model_sha256": "0" * 64, "artefact_sha256": "0" * 64}
    form = {"precision": "float32", "max_abs_error": 0.0, "largest_logit": 1.0}
    form |= {"num_images": 10, "num_ties": 0, "num_agreeing": 10}
    compared = {"deploy": form, "onnx": form, "paired": [[5, 0, 0, 0], [5, 0, 0, 0]]}
    content = make_content(REPORT, {**hashes, "comparison": compared} | changes)
    message = Message(content, dst_node_id=1, message_type=KINDS["release"].flower)
    findings = Findings()
    if expected is None:
        findings.add("a", _read(message, "a", _Expected(**hashes, num_classes=2, num_images={"a": num_images})))
        assert list(findings.comparisons) == ["a"]
        return
    with pytest.raises(WireError, match=expected):
        _read(message, "a", _Expected(**hashes, num_classes=2, num_images={"a": num_images}))


# --- a person's decision


@pytest.fixture
def waiting(finished: Hospitals, tmp_path: Path) -> RunFolder:
    run = finished.copy(tmp_path / "copy").run
    run.config_file.write_text(dump_config(finished.config.model_copy(update={"release": "manual"})))
    return run


def test_decision_is_in_manifest_card_audit_log_and_signed_manifest(waiting: RunFolder, tmp_path: Path) -> None:
    decision = decide_release(waiting, "  Ada Lovelace ")
    assert read_decision(waiting) == decision
    manifest = read(waiting.model / "manifest.json")
    assert manifest["release"] == {"kind": "manual", "by": "Ada Lovelace", "time": decision.time}
    assert "Release: manual, by Ada Lovelace" in (waiting.model / "model_card.md").read_text()
    check_hashes(waiting.model)
    check_decided(waiting, decision)
    (entry,) = [
        e for e in map(json.loads, waiting.audit_file.read_text().splitlines()) if e["event"] == "release_decided"
    ]
    assert (entry["fields"]["by"], entry["fields"]["manifest_sha256"]) == ("Ada Lovelace", decision.manifest_sha256)
    with pytest.raises(FederationError, match="was released already, by Ada Lovelace at"):
        decide_release(waiting, "Grace Hopper")
    make_release_key(tmp_path / "keys")
    prepare_release(waiting, tmp_path / "keys" / "release.key", AuditLog(waiting.audit_file))
    assert read(waiting.path / "release" / "manifest.json")["release"]["by"] == "Ada Lovelace"
    (waiting.model / "manifest.json").write_text("{}")
    with pytest.raises(FedmedError, match="changed since Ada Lovelace released"):
        check_decided(waiting, decision)


def test_the_card_names_both_persons_and_what_they_signed_is_what_is_released(waiting: RunFolder) -> None:
    before = hash_content(waiting)
    card = waiting.model / "model_card.md"
    write_decision(waiting, "Ada and Ben", "two_persons", [{"by": "Ada"}, {"by": "Ben"}])
    assert "Release: two persons, by Ada and Ben." in card.read_text()
    check_hashes(waiting.model)
    assert hash_content(waiting) == before
    manifest = read(waiting.model / "manifest.json")
    (waiting.model / "manifest.json").write_text(json.dumps({**manifest, "classes": manifest["classes"][::-1]}))
    assert hash_content(waiting) != before


@pytest.mark.parametrize("name", ["", "  ", "x" * 101, "Ada\nLovelace", "Ada\x1b[2J"])
def test_name_must_be_plain_text(waiting: RunFolder, name: str) -> None:
    with pytest.raises(ConfigError, match="must be the name of the person"):
        decide_release(waiting, name)
    assert read_decision(waiting) is None


def test_there_must_be_a_proven_candidate(waiting: RunFolder, tmp_path: Path) -> None:
    def refused(run: RunFolder, expected: str) -> None:
        with pytest.raises(FederationError, match=expected):
            decide_release(run, "Ada")

    refused(RunFolder(tmp_path / "none"), "There is no run")
    (waiting.path / "release_decision.json").write_text("{")
    refused(waiting, "cannot be read")
    (waiting.path / "release_decision.json").unlink()
    (waiting.model / "model.onnx").write_bytes(b"other")
    refused(waiting, r"model\.onnx changed since the model was proven")
    (waiting.model / "model.onnx").unlink()
    refused(waiting, "holds no complete model")
    manifest = read(waiting.model / "manifest.json")
    del manifest["proof"]["sites"], manifest["sha256"]
    (waiting.model / "manifest.json").write_text(json.dumps(manifest | {"sha256": {}}))
    refused(waiting, "was not compared at the sites")
    waiting.finished_file.unlink()
    refused(waiting, "has not finished")
    content = yaml.safe_load(waiting.config_file.read_text())
    waiting.config_file.write_text(yaml.safe_dump(content | {"release": "automatic"}))
    refused(waiting, "has 'release: automatic'")
    (waiting.path / "release").mkdir()
    (waiting.path / "release" / "manifest.json").write_text("{}")
    refused(waiting, "was released already")


# --- what a site collects


def release_to(hospitals: Hospitals, name: str, folder: Path) -> tuple[Any, FakeFleet]:
    """Sign a release and return a site's settings and its way to the server."""
    make_release_key(folder / "keys")
    prepare_release(hospitals.run, folder / "keys" / "release.key", AuditLog(hospitals.run.audit_file))
    shutil.copy(folder / "keys" / "release.pub", hospitals.folder / name / "release.pub")
    return load_client_config(hospitals.folder / name / "client.yaml"), FakeFleet({}, hospitals.run.path / "release")


def test_site_collects_the_artefact_and_writes_the_rest_itself(finished: Hospitals, tmp_path: Path) -> None:
    copy = finished.copy(tmp_path / "copy")
    config, fleet = release_to(copy, "site_01", tmp_path)
    names = {path.name for path in (copy.run.path / "release").iterdir()}
    assert names == {
        "manifest.json", "manifest.sig", "model.safetensors", "model.onnx", "proof.json", "report.json", "history.json",
    }  # fmt: skip
    folder = collect(config, fleet)
    check_hashes(folder)
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json", "manifest.sig", "model.safetensors", "model.onnx", "proof.json", "model_card.md",
        "requirements.txt", "predict.py", "predict_tables.py", "predict_watch.py", "load_model.py", "release.pub",
    }  # fmt: skip
    model, manifest = load_model(folder)
    assert model(torch.zeros(1, 3, 16, 16)).shape == (1, 3)
    assert manifest["model_sha256"] == manifest["trained_sha256"] != manifest["sha256"]["model.safetensors"]
    assert (folder / "model_card.md").read_text() == (copy.run.model / "model_card.md").read_text()
    assert (folder / "requirements.txt").read_text().splitlines()[-1].startswith("cryptography==")
    report = read(copy.state("site_01") / "report" / "report.json")
    assert report["figures"]["accuracy"]["value"] is not None  # its own tables are found by the train form's hash
    fleet.downloaded.clear()
    collect(config, fleet)
    assert fleet.downloaded == ["manifest.json", "manifest.sig", "history.json"]


def test_release_is_known_by_what_each_site_has_compared(finished: Hospitals, tmp_path: Path) -> None:
    copy = finished.copy(tmp_path / "copy")
    told = read(copy.run.tables / "release.json")["sites"]
    (run,) = (copy.state("site_01") / "runs").iterdir()
    own = read(run / "compared.json")
    assert (own["agrees"], own["num_images"]) == (True, told["site_01"]["onnx"]["num_images"])
    config, fleet = release_to(copy, "site_01", tmp_path)
    manifest = read(copy.run.path / "release" / "manifest.json")
    assert own["files"] == name_compared(manifest)
    assert sorted(manifest["compared"]) == ["site_01", "site_02"]
    assert manifest["compared"]["site_02"] == {
        "sha256": own["files"],
        "num_images": told["site_02"]["onnx"]["num_images"],
        "max_abs_error": max(told["site_02"][form]["max_abs_error"] for form in ("deploy", "onnx")),
    }
    collect(config, fleet)
    assert read_collected(copy.state("site_01")).compared == f"this site on {own['num_images']} of its test images"
    (run / "compared.json").unlink()  # as if it had been away
    collect(config, fleet)
    assert read_collected(copy.state("site_01")).compared == ", ".join(
        f"{site} ({one['onnx']['num_images']} images)" for site, one in told.items()
    )


def test_with_local_batch_norm_each_site_makes_its_own_artefact(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hospitals = Hospitals(tmp_path / "fed", batch_norm="local")
    assert KINDS["release"].flower not in {kind for _, kind in hospitals.go().sent}
    assert manifest_of(hospitals)["form"] == "train"
    config, fleet = release_to(hospitals, "site_01", tmp_path)
    folder = collect(config, fleet)
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "manifest.sig", "model.safetensors"]
    own = hospitals.state("site_01") / "own_model"
    check_hashes(own)
    manifest = read(own / "manifest.json")
    assert (manifest["form"], manifest["site"]) == ("deploy", "site_01")
    assert "test images of site_01" in manifest["proof"]["images"]
    assert find_trained_sha256(own) == read(folder / "manifest.json")["model_sha256"]
    before = (own / "manifest.json").stat().st_mtime_ns
    collect(config, fleet)
    assert (own / "manifest.json").stat().st_mtime_ns == before
    # Without its state of the run there is no BatchNorm, and the train form is home all the same.
    shutil.rmtree(own)
    shutil.rmtree(next((hospitals.state("site_01") / "runs").iterdir()) / "state")
    collect(config, fleet)
    assert "could not be made: This site has no BatchNorm of its own" in caplog.text
    assert not own.exists()
