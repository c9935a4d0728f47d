"""A federation whose sites distil from a teacher: what travels, what stays, what is released."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message
from safetensors.torch import load, load_file, save

from client import site as client_site
from fedmed.distillation import FourierPrompt
from fedmed.distillation.network import build_network, get_network
from fedmed.errors import FederationError, TeacherUnavailableError
from fedmed.export import load_model
from fedmed.export.run import load_network
from fedmed.protocol.messages import MODEL, REPORT, make_content, read_model, read_values
from fedmed.storage.checkpoints import RunCheckpoints
from fedmed.storage.history import read_history
from server.rounds.fopro_record import LARGEST_PROMPT_VALUE
from tests.support.federation import Federation
from tests.support.fopro import PROMPT, TEACHER, make_fopro

Make = Callable[..., Federation]
TRAINING_ONLY = ("projector", "aux", "teacher", "fpg")


def go(make: Make, name: str = "run", **settings: Any) -> Federation:
    federation = make(name, **({"rounds": 2, "fopro": make_fopro()} | settings))
    federation.go()
    return federation


def model_of(federation: Federation, round_number: int) -> dict[str, torch.Tensor]:
    return load_file(RunCheckpoints(federation.run.checkpoints).load(round_number).model_path)


def model_of_start(federation: Federation) -> dict[str, torch.Tensor]:
    return load_file(federation.run.initial_model)


def test_prompts_are_averaged_with_the_weights_of_the_models(make_federation: Make) -> None:
    sent: dict[str, dict[str, torch.Tensor]] = {}
    images: dict[str, int] = {}

    def look(site: str, request: Message, reply: Message) -> Message:
        if request.metadata.message_type == "train" and MODEL in reply.content:
            sent[site] = load(read_model(reply))
            images[site] = int(read_values(reply, REPORT)["num_images"])
        return reply

    federation = make_federation(rounds=1, fopro=make_fopro(), data=DATA)
    federation.go(federation.grid(look))
    averaged, total = model_of(federation, 1), sum(images.values())
    assert {name.split(".")[0] for name in averaged} == {"model", "projector", "auxiliary", "fpg"}
    for name in ("fpg.theta", "projector.0.weight", "model.0.weight"):
        expected = sum(sent[site][name].double() * images[site] for site in federation.sites) / total
        torch.testing.assert_close(averaged[name].double(), expected, rtol=1e-6, atol=1e-9)
    assert averaged["fpg.theta"].abs().max() > 0
    assert averaged["model.1.num_batches_tracked"].dtype == averaged["projector.1.num_batches_tracked"].dtype
    assert averaged["model.1.num_batches_tracked"].dtype == torch.int64


DATA = {"source": "phantom", "images_per_site": 40, "num_classes": 3, "image_size": 16}


def test_identity_prompts_average_to_the_identity(make_federation: Make) -> None:
    federation = go(make_federation, rounds=1, fopro=make_fopro(prompt=PROMPT | {"steps": 0, "first_steps": 0}))
    assert not model_of(federation, 1)["fpg.theta"].any()
    assert read_history(federation.run.history_file)[0].fopro.sites["site_01"].bands is None


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (20.0, None),
        (-20.5, "('fpg.theta') holds the value 20.5, and 20 is the largest"),
        (1e6, "holds the value 1e+06"),
        (float("nan"), "'fpg.theta' holds NaN"),
        (float("inf"), "'fpg.theta' holds an infinite value"),
    ],
)
def test_a_prompt_out_of_bounds_costs_a_site_its_part(make_federation: Make, value: float, words: str | None) -> None:
    def poison(site: str, request: Message, reply: Message) -> Message:
        if request.metadata.message_type != "train" or site != "site_02" or MODEL not in reply.content:
            return reply
        tensors = load(read_model(reply))
        tensors["fpg.theta"][1, 2, 3] = value
        return Message(make_content(REPORT, read_values(reply, REPORT), model=save(tensors)), reply_to=request)

    federation = make_federation(rounds=1, fopro=make_fopro(prompt=PROMPT | {"first_steps": 0}), calibrate=False)
    federation.go(federation.grid(poison))
    line = read_history(federation.run.history_file)[0].participation[1]
    assert line.status == ("accepted" if words is None else "quarantined")
    assert words is None or words in line.reason
    assert model_of(federation, 1)["fpg.theta"].any() == (words is None)


def test_the_bound_of_a_prompt_takes_no_gain_away() -> None:
    """tanh is 1 in float32 at half of it, so that what the upsampling takes away does not matter."""
    prompt = FourierPrompt(grid=4)
    with torch.no_grad():
        assert prompt.theta is not None
        prompt.theta.fill_(LARGEST_PROMPT_VALUE / 2)
        assert prompt.gain(torch.zeros(1, 3, 16, 16)).min() == prompt.g_max


def test_small_sites_keep_their_prompt_to_themselves(make_federation: Make) -> None:
    """20 images of a site leave 13 for training, which is below 20."""
    federation = go(make_federation, rounds=1, data=DATA | {"images_per_site": 20})
    assert not model_of(federation, 1)["fpg.theta"].any()
    told = read_history(federation.run.history_file)[0].fopro
    assert all(site.bands is None and site.ekd > 0 for site in told.sites.values())


def test_history_has_the_gain_by_band(make_federation: Make) -> None:
    federation = go(make_federation)
    told = [record.fopro for record in read_history(federation.run.history_file)]
    assert [len(record.bands) for record in told] == [5, 5]
    assert {len(site.bands) for site in told[0].sites.values()} == {5}
    weights = [line.images for line in read_history(federation.run.history_file)[0].participation]
    ekd = [told[0].sites[name].ekd for name in sorted(told[0].sites)]
    mean = sum(w * e for w, e in zip(weights, ekd, strict=True)) / sum(weights)
    assert told[0].ekd == pytest.approx(mean)
    assert told[0].teacher == TEACHER["name"]
    report = json.loads((federation.run.report / "report.json").read_text())
    assert [record["gains"] for record in report["distillation"]["rounds"]] == [
        [band["gain"] for band in record.bands] for record in told
    ]
    page = (federation.run.report / "index.html").read_text()
    assert "What did the teacher do?" in page
    assert "a reconstruction: its authors" in page


@pytest.mark.parametrize("moment", ["mid-round", "after the round"])
def test_same_bits_in_any_order_and_after_a_resume(make_federation: Make, moment: str) -> None:
    """With momentum and BatchNorm kept at the site, features cached and an update in 8 bits."""
    settings: dict[str, Any] = {
        "rounds": 2,
        "fopro": make_fopro(prompt={"mode": "none"}) if moment == "mid-round" else make_fopro(),
        "batch_norm": "local",
        "compression": "int8",
        "data": DATA | {"augmentation": "none"},
        "training": {"optimizer": {"lr": 0.05}, "batch_size": 8, "keep_momentum": True, "epochs_per_round": 2},
    }
    undisturbed, killed = make_federation("undisturbed", **settings), make_federation("killed", **settings)
    undisturbed.go(undisturbed.grid(order=lambda ids: ids[::-1]))

    killed.go_until(2, killed.sites[1] if moment == "mid-round" else None)
    killed.go()
    assert killed.final_model() == undisturbed.final_model()
    assert not any("running_mean" in name for name in model_of(killed, 2))


@pytest.mark.parametrize("batch_norm", ["average", "recalibrate", "local"])
def test_released_model_has_no_trace_of_the_distillation(make_federation: Make, batch_norm: str) -> None:
    federation = go(make_federation, rounds=1, batch_norm=batch_norm)
    tensors = load_file(federation.run.model / "model.safetensors")
    assert not [name for name in tensors if name.startswith(("model.", *TRAINING_ONLY))]
    chosen = json.loads(federation.run.finished_file.read_text())["chosen_round"]
    x_BCHW = torch.randn(4, 3, 16, 16)
    site = federation.sites[0] if batch_norm == "local" else None
    assert json.loads((federation.run.model / "manifest.json").read_text())["plan"]["fopro"] is None
    exported = load_network(federation.run, federation.config, chosen, site)
    assert exported.whole is exported.model
    if batch_norm == "average":
        trained = build_network(federation.config.make_plan())
        trained.fill(RunCheckpoints(federation.run.checkpoints).load(chosen).model_path.read_bytes(), {})
        expected = trained.model.eval()(x_BCHW)
        assert load_model(federation.run.model)[0](x_BCHW).equal(expected)
        assert exported.model.eval()(x_BCHW).equal(expected)
    if batch_norm == "local":
        running = exported.model.state_dict()["1.running_mean"]
        assert running.abs().max() > 0


def test_benefit_and_fine_tuning_use_the_same_method(make_federation: Make) -> None:
    federation = go(make_federation, rounds=1, benefit=True)
    report = json.loads((federation.run.report / "report.json").read_text())
    assert set(report["benefit"]) == set(federation.sites)
    models = report["benefit"]["site_01"]["models"]
    assert set(models) == {"federated", "batch_norm", "fine_tuned", "local"}
    state = load_file(sorted((federation.run.sites / "site_01" / "local").glob("*.safetensors"))[-1])
    assert "model/fpg.theta" in state
    assert "model/projector.0.weight" in state


def test_of_a_frozen_teacher_only_the_layer_travels_and_learns(make_federation: Make) -> None:
    options = {key: value for key, value in TEACHER.items() if key != "name"} | {"teacher": TEACHER["name"]}
    federation = make_federation(rounds=1, model={"name": "frozen_teacher", **options}, loss={"balanced_softmax": 1.0})
    before = get_network(federation.config.make_plan()).model.state_dict()
    teacher = {name: tensor.clone() for name, tensor in before.items() if name.startswith("teacher.")}
    federation.go()
    sent = model_of(federation, 1)
    assert set(sent) == {"head.weight", "head.bias"}
    assert not sent["head.weight"].equal(model_of_start(federation)["head.weight"])
    model, _ = load_model(federation.run.model)
    released = model.state_dict()
    assert all(released[name].equal(tensor) for name, tensor in teacher.items())
    assert released["head.weight"].equal(sent["head.weight"])


def test_site_with_another_teacher_cannot_join(make_federation: Make) -> None:
    def change(site: str, request: Message, reply: Message) -> Message:
        if request.metadata.message_type == "query" and site == "site_02":
            values = read_values(reply, REPORT)
            values["teacher"] = values["teacher"] | {"sha256": "f" * 64}
            return Message(make_content(REPORT, values), reply_to=request)
        return reply

    federation = make_federation(rounds=1, fopro=make_fopro())
    federation.go(federation.grid(change))
    note = next(note for note in federation.listener.notes if "site_02 cannot join" in note)
    assert "different teachers" in note
    assert "f" * 64 in note
    assert "Give all of them the same one" in note
    assert [line.site for line in read_history(federation.run.history_file)[0].participation] == [
        "site_01",
        "site_03",
    ]


@pytest.mark.parametrize("told", [None, "x", {"sha256": 1}, {"name": [], "source": 1, "sha256": 1, "image_size": 1}])
def test_site_that_tells_no_teacher_cannot_join(make_federation: Make, told: object) -> None:
    def change(site: str, request: Message, reply: Message) -> Message:
        if request.metadata.message_type != "query":
            return reply
        return Message(make_content(REPORT, read_values(reply, REPORT) | {"teacher": told}), reply_to=request)

    federation = make_federation(rounds=1, fopro=make_fopro())
    with pytest.raises(FederationError, match="0 sites could join"):
        federation.go(federation.grid(change))
    assert "does not say which teacher" in federation.listener.notes[0]


def test_missing_teacher_ends_the_run_at_its_start(make_federation: Make, tmp_path: Path) -> None:
    missing = TEACHER | {
        "name": "resnet18",
        "source": "file",
        "layout": "torchvision",
        "path": str(tmp_path / "no.pth"),
    }
    federation = make_federation(fopro=make_fopro(teacher=missing))
    with pytest.raises(TeacherUnavailableError, match=r"no\.pth.*teacher: none"):
        federation.go()
    assert not read_history(federation.run.history_file)


def test_sites_of_a_process_share_one_network(make_federation: Make) -> None:
    plan = make_federation(fopro=make_fopro()).config.make_plan()
    assert get_network(plan) is get_network(plan)
    assert client_site.app is not None
