"""BatchNorm recalibrated over all sites, through the messages that a real federation sends."""

import json
from collections.abc import Callable

import pytest
import torch
from flwr.app import Message

from client.hospital.site_data import open_site
from fedmed.data import make_eval_transform
from fedmed.export import load_model
from fedmed.protocol.messages import REPORT, SUMS, make_content, read_sums, read_values
from fedmed.storage.audit import verify_audit
from fedmed.storage.checkpoints import RunCheckpoints
from fedmed.training.network import Network
from tests.support.federation import Federation

Make = Callable[..., Federation]


def pooled_training_images(federation: Federation) -> torch.Tensor:
    plan = federation.config.make_plan()
    transform = make_eval_transform(plan.augmentation, plan.image_size)
    parts = [open_site(config).data.train for config in federation.grid()._configs.values()]
    return torch.cat([transform(part.images(range(len(part)))) for part in parts])


def chosen_round(federation: Federation) -> int:
    return int(json.loads(federation.run.finished_file.read_text())["chosen_round"])


def test_statistics_are_those_of_all_training_images_together(make_federation: Make) -> None:
    """The tiny network's only BatchNorm follows a convolution: its mean and variance are computed here at once."""
    federation = make_federation(rounds=2, batch_norm="recalibrate")
    federation.go()
    averaged = Network(federation.config.make_plan())
    averaged.fill(RunCheckpoints(federation.run.checkpoints).load(chosen_round(federation)).model_path.read_bytes(), {})
    with torch.no_grad():
        x_BCHW = averaged.model[0](pooled_training_images(federation)).double()
    released = load_model(federation.run.model)[0].state_dict()
    torch.testing.assert_close(released["1.running_mean"].double(), x_BCHW.mean((0, 2, 3)), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(released["1.running_var"].double(), x_BCHW.var((0, 2, 3)), rtol=1e-4, atol=1e-6)
    for name, tensor in averaged.model.state_dict().items():
        if "running" not in name:
            assert released[name].equal(tensor), name
    assert not released["1.running_mean"].equal(averaged.model.state_dict()["1.running_mean"])
    assert verify_audit(federation.run.audit_file).ok


def test_what_is_tested_is_what_is_released(make_federation: Make) -> None:
    federation = make_federation(rounds=1, batch_norm="recalibrate")
    tested: set[str] = set()

    def look(site: str, request: Message, reply: Message) -> Message:
        values = read_values(request, "request")
        if request.metadata.message_type == "evaluate" and values["part"] == "test":
            tested.add(values["model_sha256"])
        return reply

    federation.go(federation.grid(look))
    record = json.loads((federation.run.recalibrated / "record.json").read_text())
    assert tested == {record["model_sha256"]}
    assert record["sites"] == list(federation.sites)


def test_a_resumed_run_recalibrates_once(make_federation: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = make_federation(rounds=1, batch_norm="recalibrate")
    with monkeypatch.context() as patch:
        patch.setattr("server.federation.write_final_report", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            federation.go()
    grid = federation.grid()
    federation.go(grid)
    assert "evaluate.recalibrate" not in {kind for _, kind in grid.sent}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda sums: {name: values * float("nan") for name, values in sums.items()}, "cannot be true"),
        (lambda sums: {name: -values for name, values in sums.items()}, "cannot be true"),
        (lambda sums: {name: values * 1000 for name, values in sums.items()}, "more values"),
        (lambda sums: {name: values[:, :1] for name, values in sums.items()}, "another network"),
        (lambda sums: {}, "another network"),
        (lambda sums: {name: values.float() for name, values in sums.items()}, "not float64"),
    ],
    ids=["nan", "negative", "too many", "shape", "empty", "type"],
)
def test_sums_that_cannot_be_true_are_left_out(
    make_federation: Make, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], reason: str
) -> None:
    federation = make_federation(rounds=1, batch_norm="recalibrate")
    bad = federation.sites[0]

    def lie(site: str, request: Message, reply: Message) -> Message:
        if site == bad and request.metadata.message_type == "evaluate.recalibrate":
            sums = change(read_sums(reply))
            reply.content[SUMS] = make_content(REPORT, {}, sums=sums)[SUMS]
        return reply

    federation.go(federation.grid(lie))
    record = json.loads((federation.run.recalibrated / "record.json").read_text())
    assert record["sites"] == list(federation.sites[1:])
    assert any(bad in note and reason in note for note in federation.listener.notes)
