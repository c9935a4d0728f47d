"""The ClientApp's answers, message by message."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict

from client.hospital.site_data import open_site
from client.site import app
from fedmed.config import Plan
from fedmed.distillation.network import build_network, get_network
from fedmed.errors import DataError, FedmedError, PolicyError, RunFolderError, WireError, describe_error
from fedmed.fairness.disclosure.rows import DisclosurePlan
from fedmed.fairness.disclosure.tables import Disclosure, disclose_tables
from fedmed.metrics.packing import pack_site_tables
from fedmed.metrics.site_tables import FEDERATED, UNCALIBRATED, SiteTables
from fedmed.metrics.tables import tables_from_logits
from fedmed.protocol.messages import REPORT, REQUEST, make_content, read_model, read_tables, read_values, unpack_tables
from fedmed.protocol.quantisation import decompress_update
from fedmed.storage.tensor_files import TensorFile
from fedmed.training.evaluate import compute_logits
from fedmed.training.network import Network, hash_model
from tests.client.support.hospital import FILE, PATIENT, POLICY, HospitalSite, make_rows
from tests.support.approval import approve
from tests.support.federation import Federation

Make = Callable[..., Federation]


class Site:
    """One site of a federation, asked directly."""

    def __init__(self, federation: Federation, number: int = 0) -> None:
        self.plan = federation.config.make_plan()
        self.grid = federation.grid()  # sets Flower's identity of this process
        self.config = self.grid._configs[number + 1]
        self.model = build_network(self.plan).pack()

    def ask(self, kind: str, model: bytes | None = None, plan: Plan | None = None, **values: Any) -> Message:
        values["plan"] = (plan or self.plan).model_dump(mode="json")
        content = make_content(REQUEST, values, model=model)
        context = Context(run_id=1, node_id=1, node_config=self.config, state=RecordDict(), run_config={})
        return app(Message(content, dst_node_id=1, message_type=kind), context)


def test_describe_says_who_and_how_many(make_federation: Make) -> None:
    site = Site(make_federation(fairness={}))
    told = read_values(site.ask("query"), REPORT)
    data = open_site(site.config).data
    assert told["site"] == "site_01"
    assert told["num_images"] == {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)}
    assert told["class_counts"]["train"] == torch.bincount(data.train.labels, minlength=3).tolist()
    assert told["model_digest"] == get_network(site.plan).digest()
    assert told["attributes"] == ["sex", "age_band", "sex x age_band"]
    assert told["validation_scores"] is told["show_alone"] is True


def test_nothing_about_single_images_is_in_an_answer(make_federation: Make) -> None:
    site = Site(make_federation(fairness={}))
    answers = [
        site.ask("query"),
        site.ask("train", site.model, round=1),
        site.ask("evaluate", site.model, round=1, part="validation"),
    ]
    patients = {line.split(",")[3] for split in Path(site.config["run-dir"]).glob("splits/*.csv")
                for line in split.read_text().splitlines()[1:]}  # fmt: skip
    assert len(patients) > 10
    for answer in answers:
        assert set(answer.content) <= {REPORT, "model", "tables"}
        text = str(read_values(answer, REPORT))
        assert not any(patient in text for patient in patients)
    expected = {"num_images", "loss", "learning_rate", "train_s"}
    assert set(read_values(answers[1], REPORT)) == expected
    assert read_tables(answers[2]).site.groups == ("site_01",)
    assert list(read_tables(answers[2]).models[FEDERATED]) == ["site", "sex", "age_band", "sex x age_band"]


def test_repeated_request_starts_from_the_state_before_it(make_federation: Make) -> None:
    training = {"optimizer": {"lr": 0.05}, "batch_size": 8, "keep_momentum": True}
    site = Site(make_federation(training=training, batch_norm="local"))
    first = read_model(site.ask("train", site.model, round=1))
    second = read_model(site.ask("train", first, round=2))
    assert read_model(site.ask("train", first, round=2)) == second
    assert read_model(site.ask("train", site.model, round=1)) == first
    assert read_model(site.ask("train", first, round=2)) == second


def test_other_classes_are_refused(make_federation: Make) -> None:
    site = Site(make_federation())
    other = site.plan.model_copy(update={"classes": ["a", "b", "c"]})
    with pytest.raises(FedmedError, match="They must be the same, in the same order"):
        site.ask("query", plan=other)


def test_plan_of_another_version_is_refused(make_federation: Make) -> None:
    site = Site(make_federation())
    content = make_content(REQUEST, {"plan": site.plan.model_dump(mode="json") | {"new_setting": 1}})
    context = Context(run_id=1, node_id=1, node_config=site.config, state=RecordDict(), run_config={})
    with pytest.raises(FedmedError, match="must run the same version of fedmed"):
        app(Message(content, dst_node_id=1, message_type="query"), context)


def test_process_without_its_settings_says_so() -> None:
    with pytest.raises(FedmedError, match="started without the setting 'run-dir'"):
        open_site({"site": "a"})


def test_initial_model_follows_from_the_seed(make_federation: Make) -> None:
    plan = make_federation().config.make_plan()
    torch.manual_seed(5)
    first = Network(plan).pack()
    torch.manual_seed(6)
    assert Network(plan).pack() == first
    assert Network(plan.model_copy(update={"seed": 1})).pack() != first


def test_pretrained_backbone_shapes_the_start_and_never_travels(make_federation: Make, tmp_path: Path) -> None:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    backbone = resnet18().state_dict()
    torch.save(backbone, tmp_path / "weights.pth")
    model = {"name": "adsr_resnet18", "pretrained_backbone": str(tmp_path / "weights.pth")}
    data = {"source": "phantom", "images_per_site": 20, "num_classes": 3, "image_size": 32}
    federation = make_federation(model=model, data=data, rounds=1)
    assert "pretrained_backbone" not in str(federation.config.make_plan())
    federation.go()
    import safetensors.torch

    start = safetensors.torch.load_file(federation.run.checkpoints / "round_00000" / "model.safetensors")
    torch.testing.assert_close(start["layer3.0.conv1.weight"], backbone["layer3.0.conv1.weight"], rtol=0, atol=0)


PHANTOM = {"source": "phantom", "num_classes": 3, "images_per_site": 40, "image_size": 16}
KEPT = {"training": {"optimizer": {"lr": 0.05}, "batch_size": 8, "keep_momentum": True}, "batch_norm": "local"}


def assert_equal(found: SiteTables, expected: SiteTables) -> None:
    assert pack_site_tables(found) == pack_site_tables(expected)


@pytest.mark.parametrize("settings", [{}, KEPT, KEPT | {"compression": "int8"}, {"compression": "fp16"}])
def test_hospital_computes_the_bits_of_a_simulation(
    make_federation: Make, tmp_path: Path, settings: dict[str, Any]
) -> None:
    # Wide enough that a tensor is compressed.
    model = {"name": "tiny", "width": 400}
    simulated = Site(make_federation(data=PHANTOM, model=model, **settings), 1)
    hospital = HospitalSite(tmp_path, [], data=PHANTOM, data_sites=3, data_site="site_02", name="site_02")
    plan = simulated.plan.model_copy(update={"run_id": "run1"}).model_dump(mode="json")
    sent = simulated.model
    for number in (1, 2):
        expected = read_model(simulated.ask("train", sent, round=number))
        assert read_model(hospital.ask("train", sent, plan, round=number)) == expected
        if "compression" not in settings:
            sent = expected
    theirs = read_tables(simulated.ask("evaluate", sent, round=2, part="validation"))
    generous = {"suppression": {"k": 1, "k_row": 1}, "validation_tables": True, "validation_scores": True}
    ours = read_tables(hospital.restart(policy=generous).ask("evaluate", sent, plan, round=2, part="validation"))
    assert_equal(ours, theirs)


@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_compressed_update_carries_its_rounding_over(make_federation: Make, tmp_path: Path, kind: str) -> None:
    """What was trained is what arrives plus what is kept for the next round, up to float32's rounding."""
    model = {"name": "tiny", "width": 400}
    site = Site(make_federation(model=model, compression=kind))
    plain = Site(make_federation("plain", model=model))
    (tmp_path / "reference").write_bytes(site.model)

    def restore(packed: bytes) -> dict[str, torch.Tensor]:
        (tmp_path / "packed").write_bytes(packed)
        decompress_update(tmp_path / "packed", TensorFile(tmp_path / "reference"), tmp_path / "restored")
        return {name: torch.tensor(array) for name, array in TensorFile(tmp_path / "restored").load_all().items()}

    packed = read_model(site.ask("train", site.model, round=1))
    (tmp_path / "trained").write_bytes(read_model(plain.ask("train", site.model, round=1)))
    trained, first = TensorFile(tmp_path / "trained").load_all(), restore(packed)
    kept, _ = open_site(site.config).files_of(site.plan).state.load_before(2)  # type: ignore[misc]
    assert set(kept) == {"residual/0.weight", "residual/5.weight"}
    for name in ("0.weight", "5.weight"):
        left = torch.tensor(trained[name]) - first[name]
        assert left.any()
        torch.testing.assert_close(kept[f"residual/{name}"], left, rtol=1e-4, atol=1e-7)
    again = read_model(site.ask("train", site.model, round=1))
    assert again == packed  # a repeated round starts from the residual before it


def test_hospital_says_what_it_holds_back(tmp_path: Path) -> None:
    """Two images a patient: by class 44 training images, 12 (6, 4, 2) to validate and 14 (8, 4, 2) to test."""
    hospital = HospitalSite(tmp_path)
    told = read_values(hospital.ask("query"), REPORT)
    data = open_site(hospital.config).data
    assert [len(part) for part in (data.train, data.validation, data.test)] == [44, 12, 14]
    # The two rare classes of validation and test have three patients together, enough for one row of theirs.
    assert told["num_images"] == {"train": 42, "validation": 12, "test": 12}
    assert told["attributes"] == []
    assert told["validation_scores"] is told["show_alone"] is False
    assert told["thresholds"] == {"k": 6, "k_row": 3, "k_bin": 5}
    assert told["synthetic"] is False
    assert told["class_counts"] is None


def test_number_without_bands_is_refused_when_a_hospital_joins(tmp_path: Path) -> None:
    rows = [row | {"age": 20 + number} for number, row in enumerate(make_rows())]
    hospital = HospitalSite(tmp_path, rows)
    hospital = hospital.restart(data=hospital.settings["data"] | {"attribute_columns": ["age"]})
    with pytest.raises(
        DataError, match=r"'age' \(data\.attribute_columns\) is a number without bands\. Allowed"
    ) as caught:
        hospital.ask("query")
    told = describe_error(caught.value)
    assert "data settings" in told
    assert "refused at the site itself; the site's log has the line" in told
    assert "age" not in told.replace("data settings", "")  # neither a value nor a name
    spared = hospital.ask("query", plan={"fairness": {"attributes": []}})
    assert read_values(spared, REPORT)["attributes"] == []


def test_a_rare_class_is_in_no_total(tmp_path: Path) -> None:
    """One class alone has fewer than 3 patients in a part: the whole part's number would give it away."""
    policy = {"suppression": {"k": 2, "k_row": 3}}
    hospital = HospitalSite(tmp_path, make_rows((80, 48, 6)), policy=policy)
    told = read_values(hospital.ask("query"), REPORT)["num_images"]
    data = open_site(hospital.config).data
    counts = {name: torch.bincount(getattr(data, name).labels, minlength=3).tolist() for name in ("validation", "test")}
    assert all(min(of_part[:2]) >= 6 and 0 < of_part[2] <= 4 for of_part in counts.values())
    assert told == {"train": len(data.train)} | {name: sum(of_part[:2]) for name, of_part in counts.items()}


def test_class_counts_are_told_only_where_allowed_and_none_is_small(tmp_path: Path) -> None:
    hospital = HospitalSite(tmp_path)
    told = read_values(hospital.restart(share_class_counts=True).ask("query"), REPORT)
    assert told["class_counts"] is None
    open_policy = {"suppression": {"k": 1, "k_row": 1}}
    told = read_values(hospital.restart(share_class_counts=True, policy=open_policy).ask("query"), REPORT)
    assert sum(map(sum, told["class_counts"].values())) == len(hospital.rows)


def list_train(hospital: HospitalSite) -> dict[str, tuple[int, str]]:
    """Return class and patient of every training image."""
    site = open_site(hospital.config)
    labels = site.data.train.labels.tolist()
    return {item: (label, site.patient_of(item)) for item, label in zip(site.data.train.items, labels, strict=True)}


def test_class_counts_are_not_told_when_few_images_withdrew_since(tmp_path: Path) -> None:
    limits = {"suppression": {"k": 4, "k_row": 2}}
    (tmp_path / "withdrawn.txt").write_text("")
    rows = make_rows((80, 48, 24))  # of each class two patients or more in every part
    hospital = HospitalSite(tmp_path, rows, policy=limits, share_class_counts=True, exclude="withdrawn.txt")
    assert read_values(hospital.ask("query"), REPORT)["class_counts"] is not None
    before = list_train(hospital)
    (tmp_path / "withdrawn.txt").write_text(next(iter(before)))
    after = read_values(hospital.ask("query"), REPORT)["class_counts"]
    # Three further patients, of two images each, are left out; as they are drawn, a class may have lost one patient.
    lost = {item: one for item, one in before.items() if item not in list_train(hospital)}
    assert len(lost) == 7
    assert len({patient for _, patient in lost.values()}) == 4
    of_class = [len({patient for label, patient in lost.values() if label == own}) for own in range(3)]
    assert (after is None) == (1 in of_class), of_class


def score_directly(hospital: HospitalSite, part: str) -> tuple[Any, torch.Tensor]:
    images = getattr(open_site(hospital.config).data, part)
    network = Network(hospital.plan)
    network.fill(hospital.model, {})
    return images, compute_logits(network.model, images, hospital.plan, device=torch.device("cpu"))


def plan_by_itself(hospital: HospitalSite, part: str, logits: dict[str, torch.Tensor]) -> DisclosurePlan:
    site = open_site(hospital.config)
    return site.hold_rows(part, site.count_part(part, hospital.plan.fairness), logits).plan


@pytest.mark.parametrize("part", ["validation", "test"])
def test_hospital_releases_less_than_it_counts(tmp_path: Path, part: str) -> None:
    rows = [row | {"sex": "f" if number % 4 < 2 else "m"} for number, row in enumerate(make_rows())]
    hospital = HospitalSite(tmp_path, rows)
    data = hospital.settings["data"] | {"attribute_columns": ["sex"]}
    hospital = hospital.restart(data=data)
    found = read_tables(hospital.ask("evaluate", hospital.model, round=1, part=part))
    images, logits = score_directly(hospital, part)
    groups = {"site": ["north"] * len(images), "sex": images.attributes["sex"]}
    limits = Disclosure(6, 3, scores=part == "test", k_bin=5)
    plan = plan_by_itself(hospital, part, {FEDERATED: logits})
    assert_equal(found, disclose_tables({FEDERATED: logits}, images.labels, groups, plan, limits, images.patients))
    own = hospital.state / "runs/run1/own_tables" / f"{hash_model(hospital.model)}.safetensors"
    assert own.is_file() == (part == "test")  # for the site's own report, made from the test only
    if part == "test":
        complete = unpack_tables(own.read_bytes())
        for attribute, of_images in groups.items():
            expected = tables_from_logits(logits, images.labels, of_images, images.patients).to_arrays()
            for name, array in complete.models[FEDERATED][attribute].to_arrays().items():
                assert (array == expected[name]).all()
        assert 0 < found.site.num_images < complete.site.num_images == len(images)
        assert own.with_suffix(".rows.json").stat().st_mode & 0o777 == 0o600
    record = hospital.state / "told_rows" / f"{part}.json"
    assert record.stat().st_mode & 0o777 == 0o600
    assert PATIENT not in record.read_text()
    assert FILE not in record.read_text()


def test_temperature_applies_to_the_test_only(tmp_path: Path) -> None:
    hospital = HospitalSite(tmp_path)
    values = {"round": 1, "temperature": 2.0}
    found = read_tables(hospital.ask("evaluate", hospital.model, part="test", **values))
    images, logits = score_directly(hospital, "test")
    groups, limits = {"site": ["north"] * len(images)}, Disclosure(6, 3, k_bin=5)
    both = {FEDERATED: logits.double() / 2, UNCALIBRATED: logits}
    plan = plan_by_itself(hospital, "test", both)
    assert_equal(found, disclose_tables(both, images.labels, groups, plan, limits, images.patients))
    np.testing.assert_array_equal(found.site.counts, found.models[UNCALIBRATED]["site"].counts)
    # Tables with many temperatures would tell single scores.
    with pytest.raises(PolicyError, match="one more request for test"):
        hospital.ask("evaluate", hospital.model, round=1, part="test", temperature=3.0)
    approve(hospital.state, hospital.plan, again=True, after_rounds=True)
    again = hospital.ask("evaluate", hospital.model, round=1, part="test", temperature=3.0)
    assert_equal(read_tables(again), found)


def test_models_that_are_compared_are_paired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hospital = HospitalSite(tmp_path)
    _, logits = score_directly(hospital, "test")
    monkeypatch.setattr("client.site.compute_compared_logits", lambda *_: {"local": -logits})
    found = read_tables(hospital.ask("evaluate", hospital.model, round=1, part="test", compare=["local"]))
    assert set(found.models) == {FEDERATED, "local"}
    np.testing.assert_array_equal(found.paired["local"]["site"].cells.sum(axis=(2, 3)), found.site.row_images)


@pytest.mark.parametrize("suppression", [{"k": 1, "k_row": 1}, {"k": 10, "k_row": 5}])
def test_simulated_site_holds_back_what_the_settings_say(make_federation: Make, suppression: dict[str, int]) -> None:
    site = Site(make_federation(suppression=suppression, data=PHANTOM | {"images_per_site": 300}))
    found = read_tables(site.ask("evaluate", site.model, round=0, part="validation"))
    rows = np.concatenate([tables.row_images.ravel() for tables in found.models[FEDERATED].values()])
    assert rows[rows > 0].min() >= suppression["k_row"]
    assert found.site.scores.any() == (suppression["k"] == 1)
    assert found.site.areas.any()
    assert (Path(site.config["run-dir"]) / "sites/site_01/told_rows/validation.json").is_file() == (
        suppression["k"] > 1
    )


def test_damaged_record_of_what_was_told_stops_everything(tmp_path: Path) -> None:
    hospital = HospitalSite(tmp_path)
    hospital.ask("evaluate", hospital.model, round=1, part="validation")
    record = hospital.state / "told_rows/validation.json"
    record.write_text(record.read_text()[:-5])
    with pytest.raises(RunFolderError, match=r"No tables are sent without it") as caught:
        hospital.restart().ask("evaluate", hospital.model, round=1, part="validation")
    assert not caught.value.shareable


def test_withdrawn_patient_does_not_follow_from_two_rounds(tmp_path: Path) -> None:
    """The difference of two validations of the same model would be the images of one patient."""
    (tmp_path / "withdrawn.txt").write_text("")
    hospital = HospitalSite(tmp_path, make_rows((160, 96, 24)), exclude="withdrawn.txt")
    first = read_tables(hospital.ask("evaluate", hospital.model, round=1, part="validation")).site
    images = open_site(hospital.config).data.validation
    patient = next(row["patient"] for row in hospital.rows if row["file"] == images.items[0])
    (tmp_path / "withdrawn.txt").write_text(str(patient))
    second = read_tables(hospital.ask("evaluate", hospital.model, round=2, part="validation")).site
    left = open_site(hospital.config).data.validation
    assert len(left) == len(images) - 2 * 6, "5 further patients, of two images each"
    difference = first.row_images - second.row_images
    assert difference.sum() >= 3
    assert all(n == 0 or n >= 3 for n in difference.ravel())
    # In another process it is the same.
    again = read_tables(hospital.restart().ask("evaluate", hospital.model, round=2, part="validation")).site
    np.testing.assert_array_equal(again.counts, second.counts)


def test_test_images_are_scored_once_at_a_hospital(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hospital = HospitalSite(tmp_path)
    first = hospital.ask("evaluate", hospital.model, round=1, part="test")

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("scored again")

    monkeypatch.setattr("client.site.compute_logits", fail)
    # After a restart the answer is the one that was given; the model is not needed.
    (tmp_path / "withdrawn.txt").write_text("")
    restarted = hospital.restart(exclude="withdrawn.txt")
    again = restarted.ask("evaluate", model_sha256=hash_model(hospital.model), round=1, part="test")
    assert_equal(read_tables(again), read_tables(first))
    assert read_values(again, REPORT) == read_values(first, REPORT)
    with pytest.raises(AssertionError, match="scored again"):  # a threshold that was raised is honoured
        hospital.restart(policy={"suppression": {"k": 6, "k_row": 8}}).ask(
            "evaluate", hospital.model, round=1, part="test"
        )
    patient_of = {str(row["file"]): str(row["patient"]) for row in hospital.rows}
    (tmp_path / "withdrawn.txt").write_text(patient_of[open_site(hospital.config).data.test.items[0]])
    with pytest.raises(AssertionError, match="scored again"):  # and the answer with a patient who withdrew is not given
        restarted.ask("evaluate", hospital.model, round=1, part="test")


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_model_that_is_held_need_not_be_sent_again(tmp_path: Path, kind: str) -> None:
    hospital = HospitalSite(tmp_path)
    sha256 = hash_model(hospital.model)
    values = {"round": 1, "part": "validation", "model_sha256": sha256}
    missing = hospital.ask(kind, **values)
    assert set(missing.content) == {REPORT}
    assert read_values(missing, REPORT) == {"missing_model": True}

    def part_of(reply: Message) -> Any:
        return reply.content["model" if kind == "train" else "tables"]["bytes"].data

    expected = part_of(hospital.ask(kind, hospital.model, remember=True, **values))
    assert part_of(hospital.ask(kind, **values)) == expected
    assert part_of(hospital.ask(kind, remember=True, **values)) == expected
    other = values | {"model_sha256": "0" * 64, "round": 2}
    assert read_values(hospital.ask(kind, **other), REPORT) == {"missing_model": True}
    values["round"] = 2
    hospital.ask(kind, hospital.model, **values)  # not to be remembered: nothing is held any more
    assert read_values(hospital.ask(kind, **values), REPORT) == {"missing_model": True}


def test_request_that_neither_holds_nor_names_a_model_is_explained(make_federation: Make) -> None:
    with pytest.raises(WireError, match="no readable part 'model'"):
        Site(make_federation()).ask("train", round=1)


def test_training_goes_on_without_a_withdrawn_patient(tmp_path: Path) -> None:
    hospital = HospitalSite(tmp_path, policy=POLICY, exclude="withdrawn.txt")
    (tmp_path / "withdrawn.txt").write_text("")
    first = hospital.ask("train", hospital.model, round=1)
    (tmp_path / "withdrawn.txt").write_text(
        "\n".join(str(row["patient"]) for row in hospital.rows if row["label"] == "c")
    )
    second = hospital.ask("train", hospital.model, round=2)
    data = open_site(hospital.config).data
    told = [read_values(reply, REPORT)["num_images"] for reply in (first, second)]
    assert told[1] == len(data.train) // 6 * 6 < told[0]
    assert 2 not in data.train.labels
    assert 2 not in data.test.labels
