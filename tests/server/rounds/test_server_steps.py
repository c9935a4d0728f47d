"""Whole federations under each step of the server, in this process."""

from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from flwr.app import Error, Message

from fedmed.errors import FederationError
from fedmed.storage.history import read_history
from fedmed.training.network import PROMPT, Network
from server import federation as federation_app
from tests.server.rounds.test_loop import Make, change_model, scale
from tests.support.federation import Federation, is_training
from tests.support.fopro import make_fopro

STEPS: dict[str, dict[str, Any]] = {
    "fedavgm": {"kind": "fedavgm", "momentum": 0.5},
    "fedadam": {"kind": "fedadam", "lr": 0.02},
    "fedyogi": {"kind": "fedyogi", "lr": 0.02},
}


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares the time for what comes after the rounds."""
    monkeypatch.setattr(federation_app, "write_final_report", lambda *arguments: None)


def moments_of(federation: Federation, round_number: int = 3) -> bytes:
    return (federation.run.checkpoints / f"round_{round_number:05d}" / "moments.safetensors").read_bytes()


def model_of(federation: Federation, round_number: int) -> dict[str, np.ndarray]:
    folder = federation.run.checkpoints / f"round_{round_number:05d}"
    return safetensors.numpy.load((folder / "model.safetensors").read_bytes())


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("moment", ["mid-round", "after the round"])
def test_a_resumed_run_has_the_same_model_and_moments(make_federation: Make, step: str, moment: str) -> None:
    undisturbed, killed = (make_federation(name, server_step=STEPS[step]) for name in ("undisturbed", "killed"))
    undisturbed.go()
    if moment == "mid-round":
        killed.go_until(2, killed.sites[1])
    else:
        killed.go_until(3)
    killed.go()
    assert killed.final_model() == undisturbed.final_model()
    assert moments_of(killed) == moments_of(undisturbed)


def test_the_first_step_follows_the_average_by_hand(make_federation: Make) -> None:
    """From the same start the sites send the same updates, so a is the plain federation's first model: x + 0.5 (a - x).

    BatchNorm's running statistics and counts are those of a, and the scores are of the stepped model.
    """
    plain = make_federation("plain", rounds=1)
    stepped = make_federation("stepped", rounds=1, server_step={"kind": "fedavgm", "lr": 0.5})
    plain.go()
    stepped.go()
    x, a, found = model_of(plain, 0), model_of(plain, 1), model_of(stepped, 1)
    parameters = Network(stepped.config.make_plan()).parameter_names
    assert "1.running_var" in set(found) - parameters
    for name, values in found.items():
        if name in parameters:
            change = a[name].astype(np.float64) - x[name]
            np.testing.assert_array_equal(values, (x[name] + 0.5 * change.astype(np.float32)).astype(np.float32))
        else:
            np.testing.assert_array_equal(values, a[name])
    moments = safetensors.numpy.load(moments_of(stepped, 1))
    assert set(moments) == {f"m/{name}" for name in parameters}
    records = [read_history(federation.run.history_file)[0] for federation in (plain, stepped)]
    assert records[0].weights == records[1].weights
    assert records[0].model_sha256 != records[1].model_sha256


def test_without_a_step_there_is_nothing_to_remember(make_federation: Make) -> None:
    federation = make_federation(rounds=1)
    federation.go()
    folder = federation.run.checkpoints / "round_00001"
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "state.json"}
    assert '"format":1' in (folder / "state.json").read_text()


@pytest.mark.parametrize("harm", ["changed", "gone"])
def test_damaged_moments_fall_back_to_the_checkpoint_before(make_federation: Make, harm: str) -> None:
    federation, undisturbed = (make_federation(name, server_step=STEPS["fedadam"]) for name in ("damaged", "sound"))
    federation.go()
    undisturbed.go()
    path = federation.run.checkpoints / "round_00003" / "moments.safetensors"
    if harm == "changed":
        path.write_bytes(path.read_bytes()[:-4] + b"\0\1\2\3")
    else:
        path.unlink()
    federation.go()
    assert "Going on from round 2" in " ".join(federation.listener.notes)
    assert federation.final_model() == undisturbed.final_model()
    assert moments_of(federation) == moments_of(undisturbed)


def test_a_round_without_enough_updates_leaves_model_and_moments(make_federation: Make) -> None:
    """Neither the first round nor a later one moves anything until it has updates."""
    settings = {"server_step": STEPS["fedyogi"], "min_sites": 3, "round_deadline_s": 0.2}
    federation, undisturbed = make_federation("short of updates", **settings), make_federation("whole", **settings)
    undisturbed.go()
    for number in (1, 2):
        lost = federation.grid(
            lambda site, request, reply, number=number: None if is_training(request, number) else reply
        )
        with pytest.raises(FederationError, match=f"Round {number} had fewer than min_sites"):
            federation.go(lost)
        assert sorted(path.name for path in federation.run.checkpoints.glob("round_*"))[-1] == f"round_{number - 1:05d}"
    assert moments_of(federation, 1) == moments_of(undisturbed, 1)
    federation.go()
    assert federation.final_model() == undisturbed.final_model()
    assert moments_of(federation) == moments_of(undisturbed)


@pytest.mark.parametrize(
    "settings",
    [{"compression": "int8"}, {"batch_norm": "local"}, {"aggregation": {"fair": {"kind": "q_fedavg", "q": 1.0}}}],
    ids=["int8", "BatchNorm local", "q_fedavg"],
)
def test_steps_go_with_what_else_there_is(make_federation: Make, settings: dict[str, Any]) -> None:
    plain, stepped = (make_federation(name, **settings, **more) for name, more in
                      (("plain", {}), ("stepped", {"server_step": STEPS["fedadam"]})))  # fmt: skip
    plain.go()
    stepped.go()
    assert stepped.final_model() != plain.final_model()
    assert set(model_of(stepped, 3)) == set(model_of(plain, 3))
    statuses = {line.status for r in read_history(stepped.run.history_file) for line in r.participation}
    assert statuses == {"accepted"}


def test_quarantined_updates_do_not_move_the_moments(make_federation: Make) -> None:
    """With the third site out of the average, the step is that of a federation whose third site is not there."""
    step = {"server_step": STEPS["fedavgm"], "rounds": 1}
    federation, without = make_federation("quarantined", **step), make_federation("without", **step)
    bad = federation.sites[2]

    def spoil(site: str, request: Message, reply: Message) -> Message:
        return change_model(reply, lambda t: scale(t, 1e4)) if site == bad and is_training(request) else reply

    def lose(site: str, request: Message, reply: Message) -> Message:
        lost = site == bad and is_training(request)
        return Message(Error(code=0, reason="away"), reply_to=request) if lost else reply

    federation.go(federation.grid(spoil))
    without.go(without.grid(lose))
    line = next(line for line in read_history(federation.run.history_file)[0].participation if line.site == bad)
    assert line.status == "quarantined"
    assert moments_of(federation, 1) == moments_of(without, 1)
    assert federation.final_model() == without.final_model()


def test_a_distillation_steps_network_and_projector_and_averages_the_prompt(make_federation: Make) -> None:
    settings: dict[str, Any] = {"fopro": make_fopro(), "rounds": 1}
    plain = make_federation("plain", **settings)
    stepped = make_federation("stepped", **settings, server_step={"kind": "fedadam", "lr": 0.02})
    plain.go()
    stepped.go()
    a, found = model_of(plain, 1), model_of(stepped, 1)
    moments = safetensors.numpy.load(moments_of(stepped, 1))
    assert {name.partition("/")[2].partition(".")[0] for name in moments} >= {"model", "projector"}
    prompts = [name for name in found if name.startswith(PROMPT)]
    assert prompts
    for name in prompts:
        assert f"m/{name}" not in moments
        np.testing.assert_array_equal(found[name], a[name])
    assert any(not np.array_equal(found[name], a[name]) for name in found if name.startswith("projector."))
