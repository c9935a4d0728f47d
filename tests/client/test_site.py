"""The ClientApp's answers, message by message."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, RecordDict

from client.local import open_site
from client.site import app
from fedmed.config import Plan
from fedmed.errors import FedmedError
from fedmed.network import Network, get_network
from fedmed.wire import REPORT, REQUEST, make_content, read_model, read_tables, read_values
from tests.federation import Federation

Make = Callable[..., Federation]


class Site:
    """One site of a federation, asked directly."""

    def __init__(self, federation: Federation, number: int = 0) -> None:
        self.plan = federation.config.make_plan()
        self.grid = federation.grid()  # sets Flower's identity of this process
        self.config = self.grid._configs[number + 1]
        self.model = Network(self.plan).pack()

    def ask(self, kind: str, model: bytes | None = None, plan: Plan | None = None, **values: Any) -> Message:
        values["plan"] = (plan or self.plan).model_dump(mode="json")
        content = make_content(REQUEST, values, model=model)
        context = Context(run_id=1, node_id=1, node_config=self.config, state=RecordDict(), run_config={})
        return app(Message(content, dst_node_id=1, message_type=kind), context)


def test_describe_says_who_and_how_many(make_federation: Make) -> None:
    site = Site(make_federation())
    told = read_values(site.ask("query"), REPORT)
    data = open_site(site.config).data
    assert told["site"] == "site_01"
    assert told["num_images"] == {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)}
    assert told["class_counts"]["train"] == torch.bincount(data.train.labels, minlength=3).tolist()
    assert told["model_digest"] == get_network(site.plan).digest()


def test_nothing_about_single_images_is_in_an_answer(make_federation: Make) -> None:
    site = Site(make_federation())
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
    assert read_tables(answers[2]).groups == ("site_01",)


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
