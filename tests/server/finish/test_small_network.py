"""Compression of the aggregated network into a small one: distilled, recalibrated, judged, and released or not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from pydantic import TypeAdapter
from torch import nn

from client.hospital.site_data import open_site
from fedmed.data import make_eval_transform
from fedmed.distillation import CompactResult, ExploreResult, ProxyDataUnavailableError, distil_compact, make_prompt
from fedmed.errors import CheckpointError, ConfigError, RunFolderError
from fedmed.export.run import export_run, load_network, read_chosen_round, reproduce
from fedmed.metrics.site_tables import FEDERATED, LOCAL, SITE_ATTRIBUTE, STUDENT, TEACHER
from fedmed.protocol.messages import REQUEST, TABLES, read_values
from fedmed.storage.audit import verify_audit
from fedmed.storage.checkpoints import RunCheckpoints
from fedmed.storage.records import CompressionRecord
from fedmed.training.network import Network
from server.finish import distil_at_server as student
from server.rounds.scoring import load_tables
from tests.support.federation import Federation
from tests.support.fopro import make_fopro

Make = Callable[..., Federation]
ANYTHING = {"balanced_accuracy": 1.0, "worst_class_recall": 1.0, "gap": 1.0}
DATA = {"source": "phantom", "images_per_site": 60, "num_classes": 3, "image_size": 16}


def fopro(kind: str = "proxy", proxy: Any = ("phantom", 40), gate: Any = ANYTHING, **changes: Any) -> dict[str, Any]:
    """Return settings without a teacher at the sites, and with a student of another width than the trained network."""
    section = {
        "kind": kind,
        "student": {"name": "tiny", "width": 6},
        "explore_steps": 3,
        "steps": 12,
        "evaluate_every": 6,
        "batch_size": 8,
        "rounds": 2,
        "gate": gate,
    }
    source = None if proxy is None else {"source": proxy[0], "images" if proxy[0] == "phantom" else "root": proxy[1]}
    return {"teacher": "none", "compression": section | changes, "proxy": source}


def without_teacher(section: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key != "teacher"}


@pytest.fixture
def no_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports and candidates take most of the time."""
    for name in ("write_final_report", "make_candidate"):
        monkeypatch.setattr(f"server.federation.{name}", lambda *_: None)


def decision_of(federation: Federation) -> dict[str, Any]:
    written = federation.run.compression_file.read_bytes()
    TypeAdapter(CompressionRecord).validate_json(written, strict=True, extra="forbid")
    found = federation.run.read_compression()
    assert found is not None
    return found


def network_of(federation: Federation, path: Path, **model: Any) -> Network:
    plan = federation.config.make_plan()
    network = Network(plan.model_copy(update={"model": plan.model.model_copy(update=model)}))
    network.fill(path.read_bytes(), {})
    return network


def trained_network(federation: Federation) -> Network:
    chosen = read_chosen_round(federation.run)
    return network_of(federation, RunCheckpoints(federation.run.checkpoints).load(chosen).model_path)


def zero_a_class(teacher: nn.Module, small: nn.Module, *_: Any, **__: Any) -> CompactResult:
    """Stand in for the distillation: the teacher itself, except that it never answers what it answers most often."""
    small.load_state_dict(teacher.state_dict())
    with torch.no_grad():
        small[-1].bias[ZEROED] = -1e6  # type: ignore[index]
    return nothing_learned()


ZEROED = 0


def nothing_learned(*_: Any, **__: Any) -> CompactResult:
    """Stand in for the distillation: the student stays as it is."""
    return CompactResult(make_prompt({"mode": "none"}), ExploreResult(), [], 0, {"train": 0.0}, ())


def test_accepted_student_is_tested_and_released(make_federation: Make, tmp_path: Path) -> None:
    federation = make_federation(rounds=1, data=DATA, fopro=fopro())
    asked: list[dict[str, Any]] = []

    def look(site: str, request: Message, reply: Message) -> Message:
        asked.append(read_values(request, REQUEST) | {"kind": request.metadata.message_type})
        return reply

    federation.go(federation.grid(look))
    found = decision_of(federation)
    assert (found["status"], found["kind"]) == ("accepted", "proxy")
    assert set(found["phases"]) == {"explore", "targets", "train", "distance", "recalibrate", "gate"}
    assert found["distance"]["proxy"] > 0
    assert found["distance"]["sites"] > 0
    assert found["gate_sites"] == list(federation.sites)
    assert found["sizes"][STUDENT]["parameters"] > found["sizes"][TEACHER]["parameters"] > 0
    # Recalibration, temperature and test are about the student; the test compares it with what it was distilled from.
    small = {"name": "tiny", "width": 6}
    for kind in ("evaluate.recalibrate", "evaluate.calibrate"):
        assert [one["plan"]["model"] for one in asked if one["kind"] == kind] == [small] * 3
    tests = [one for one in asked if one.get("part") == "test"]
    assert [(one["plan"]["model"], one["other"]["name"]) for one in tests] == [(small, TEACHER)] * 3
    assert {one["model_sha256"] for one in tests} == {found["model_sha256"]}
    assert {one["other"]["sha256"] for one in tests} == {found["from_sha256"]}
    for tables in load_tables(federation.run.tables / "test").values():
        cells = tables.paired[TEACHER][SITE_ATTRIBUTE].cells.sum(axis=(0, 1))
        assert cells[1].sum() == np.trace(tables.models[FEDERATED][SITE_ATTRIBUTE].counts.sum(axis=0))
        assert cells[:, 1].sum() == np.trace(tables.models[TEACHER][SITE_ATTRIBUTE].counts.sum(axis=0))
    manifest = export_run(federation.run, tmp_path / "model")
    assert manifest["plan"]["model"] == small
    assert manifest["plan"]["fopro"] is None
    assert not [name for name in load_network_names(federation) if name.startswith(("projector", "aux", "teacher"))]
    assert reproduce(federation.run, tmp_path / "model").succeeded
    assert verify_audit(federation.run.audit_file).ok


def load_network_names(federation: Federation) -> list[str]:
    run = federation.run
    return list(load_network(run, run.read_settings(), read_chosen_round(run)).model.state_dict())


def test_student_has_the_statistics_of_all_training_images(make_federation: Make, no_products: None) -> None:
    """Its only BatchNorm follows a convolution: mean and variance are computed here at once, from pooled images."""
    federation = make_federation(rounds=1, fopro=fopro())
    federation.go()
    run, plan = federation.run, federation.config.make_plan()
    small = network_of(federation, run.path / decision_of(federation)["model_file"], width=6).model
    before = network_of(federation, run.compression / "distilled" / "model.safetensors", width=6).model
    transform = make_eval_transform(plan.augmentation, plan.image_size)
    parts = [open_site(config).data.train for config in federation.grid()._configs.values()]
    images = torch.cat([transform(part.images(range(len(part)))) for part in parts])
    with torch.no_grad():
        x_BCHW = small[0](images).double()  # type: ignore[index]
    state = small.state_dict()
    torch.testing.assert_close(state["1.running_mean"].double(), x_BCHW.mean((0, 2, 3)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state["1.running_var"].double(), x_BCHW.var((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert not before.state_dict()["1.running_mean"].equal(state["1.running_mean"])


def agreement_rises(federation: Federation, monkeypatch: pytest.MonkeyPatch, distil: Callable[..., Any]) -> bool:
    """Return whether the student decides on proxy images more often like the large network than it did untrained."""
    shares: list[float] = []

    def watch(teacher: nn.Module, small: nn.Module, proxy: Any, *args: Any, **kwargs: Any) -> CompactResult:
        def measure() -> float:
            small.train()  # its own BatchNorm statistics of these images, as recalibration would give it
            with torch.no_grad():
                x = torch.cat([(pixels - 0.5) / 0.5 for pixels in proxy.batches(64)])
                return float((small(x).argmax(1) == teacher.eval()(x).argmax(1)).float().mean())

        before = small.state_dict()
        shares.append(measure())
        small.load_state_dict(before)
        result: CompactResult = distil(teacher, small, proxy, *args, **kwargs)
        shares.append(measure())
        small.eval()
        return result

    monkeypatch.setattr(student, "distil_compact", watch)
    federation.go()
    return shares[1] > shares[0] + 0.05


@pytest.mark.usefixtures("no_products")
@pytest.mark.parametrize(("distil", "expected"), [(distil_compact, True), (nothing_learned, False)])
def test_student_learns_to_decide_like_the_trained_network(
    make_federation: Make, monkeypatch: pytest.MonkeyPatch, distil: Callable[..., Any], expected: bool
) -> None:
    """With nothing in place of the distillation, the negative control, it does not."""
    settings = fopro(steps=100, evaluate_every=50, lr=0.02, batch_size=32)
    federation = make_federation(rounds=2, data=DATA, fopro=settings)
    assert agreement_rises(federation, monkeypatch, distil) is expected


def test_student_that_lost_a_class_is_rejected(make_federation: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mean would pass; the class that it never answers does not. The trained network is released."""
    monkeypatch.setattr(student, "distil_compact", zero_a_class)
    gate = {"balanced_accuracy": 1.0, "worst_class_recall": 0.05, "gap": 1.0}
    student_model = {"name": "tiny", "width": 8}
    federation = make_federation(
        rounds=4, data=DATA, model=student_model, fopro=fopro(gate=gate, student=student_model)
    )
    federation.go()
    found = decision_of(federation)
    checks = {(check["name"], check["subject"]): check for check in found["decision"]["checks"]}
    assert checks["balanced_accuracy", "all"]["passed"]
    assert not checks["class", federation.config.classes[ZEROED]]["passed"]  # type: ignore[index]
    assert found["status"] == "rejected"
    assert f"recall of '{federation.config.classes[ZEROED]}'" in found["reason"]  # type: ignore[index]
    assert any("rejected" in note and "recall" in note for note in federation.listener.notes)
    for tables in load_tables(federation.run.tables / "test").values():
        assert TEACHER not in tables.models
    run = federation.run
    released = load_network(run, run.read_settings(), read_chosen_round(run)).model.state_dict()
    for name, tensor in trained_network(federation).model.state_dict().items():
        assert released[name].equal(tensor), name


@pytest.mark.usefixtures("no_products")
def test_skip_releases_the_trained_network(make_federation: Make) -> None:
    federation = make_federation(rounds=1, fopro=fopro("skip", proxy=None))
    grid = federation.grid()
    federation.go(grid)
    assert decision_of(federation)["status"] == "skipped"
    assert {kind for _, kind in grid.sent} == {"query", "train", "evaluate", "evaluate.calibrate"}


@pytest.mark.usefixtures("no_products")
def test_sites_distil_where_there_are_no_proxy_images(make_federation: Make) -> None:
    federation = make_federation(rounds=1, data=DATA, fopro=fopro("co_distillation", proxy=None, lr=0.02, rounds=3))
    grid = federation.grid()
    federation.go(grid)
    found = decision_of(federation)
    losses = [line["train_loss"] for line in found["distilled"]["history"]]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    assert [kind for _, kind in grid.sent].count("train.distil") == 9
    assert (found["status"], found["distilled"]["mismatch"]) == ("accepted", None)
    # The projector stays at the sites.
    names = network_of(federation, federation.run.compression / "distilled" / "model.safetensors", width=6)
    assert not [name for name in names.model.state_dict() if "projector" in name]
    assert list((federation.run.sites / federation.sites[0] / "distil").glob("round_*"))


@pytest.mark.parametrize(
    ("proxy", "words"), [(None, "no unlabelled images are named"), (("folder", "/nowhere/at/all"), "no folder")]
)
def test_without_proxy_images_the_run_does_not_begin(make_federation: Make, proxy: Any, words: str) -> None:
    federation = make_federation(fopro=fopro(proxy=proxy))
    with pytest.raises(ProxyDataUnavailableError, match=words) as raised:
        federation.go()
    assert "co_distillation" in str(raised.value)
    assert "skip" in str(raised.value)
    assert not federation.run.history_file.exists() or not federation.run.history_file.read_text()


def test_local_batch_norm_cannot_be_compressed(make_federation: Make) -> None:
    with pytest.raises(ConfigError, match="batch_norm"):
        make_federation(batch_norm="local", fopro=fopro()).go()


class StoppedError(Exception):
    """The process ends."""


PHASES = {
    "distilled": ("finish.small_network", "_recalibrate"),
    "recalibrated": ("finish.small_network", "_ask_gate"),
    "judged": ("finish.small_network", "decide_gate"),
    "concluded": ("federation", "train_local"),
}


@pytest.fixture
def finished(make_federation: Make, no_products: None) -> Federation:
    federation = make_federation("whole", rounds=1, fopro=fopro())
    federation.go()
    return federation


@pytest.mark.usefixtures("no_products")
def test_a_restart_goes_on_after_the_last_phase(
    make_federation: Make, monkeypatch: pytest.MonkeyPatch, finished: Federation
) -> None:
    """Stopped after each phase in turn, no phase is done twice, and the bits are those of a run in one go."""
    federation = make_federation("stopped", rounds=1, fopro=fopro())
    sent: list[str] = []
    for module, name in PHASES.values():
        with monkeypatch.context() as patch:
            patch.setattr(f"server.{module}.{name}", lambda *_, **__: (_ for _ in ()).throw(StoppedError))
            grid = federation.grid()
            with pytest.raises(StoppedError):
                federation.go(grid)
            sent += [kind for _, kind in grid.sent if kind != "query"]
            monkeypatch.setattr(student, "distil_compact", lambda *_, **__: pytest.fail("distilled twice"))
    federation.go()
    assert sent.count("evaluate.recalibrate") == 3
    assert sent.count("evaluate") == 2 * 3  # of the round, and of the gate
    same = ("model_sha256", "from_sha256", "decision", "distance", "status")
    found, expected = decision_of(federation), decision_of(finished)
    assert {key: found[key] for key in same} == {key: expected[key] for key in same}
    tables, others = (load_tables(one.run.tables / "test") for one in (federation, finished))
    for site in tables:
        assert (tables[site].site.counts == others[site].site.counts).all()
        assert (tables[site].site.brier == others[site].site.brier).all()


@pytest.mark.usefixtures("no_products")
def test_distillations_between_the_rounds_are_where_the_next_one_starts(
    make_federation: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was stopped after round 2 and one in one go give the same bits, without doing anything twice."""
    whole = make_federation("whole", rounds=3, fopro=fopro(every=1))
    whole.go()
    assert [line["round"] for line in decision_of(whole)["earlier"]] == [1, 2]
    stopped = make_federation("stopped", rounds=3, fopro=fopro(every=1))
    started: list[torch.Tensor] = []

    def watch(teacher: nn.Module, small: nn.Module, *args: Any, **kwargs: Any) -> CompactResult:
        started.append(small.state_dict()["0.weight"].clone())
        if len(started) == 2:
            raise StoppedError
        return distil_compact(teacher, small, *args, **kwargs)

    monkeypatch.setattr(student, "distil_compact", watch)
    with pytest.raises(StoppedError):
        stopped.go()
    stopped.go()
    assert len(started) == 4  # after round 1; after round 2, twice; at the end
    first = network_of(stopped, stopped.run.compression / "round_00001" / "model.safetensors", width=6)
    assert started[1].equal(first.model.state_dict()["0.weight"])
    assert not started[0].equal(started[1])
    assert decision_of(stopped)["model_sha256"] == decision_of(whole)["model_sha256"]


@pytest.mark.usefixtures("no_products")
def test_co_distillation_goes_on_after_the_last_round(make_federation: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_federation("whole", rounds=1, fopro=fopro("co_distillation", proxy=None))
    whole.go()
    stopped = make_federation("stopped", rounds=1, fopro=fopro("co_distillation", proxy=None))
    with monkeypatch.context() as patch:
        patch.setattr("server.finish.distil_at_sites._Rounds.conclude", lambda *_: (_ for _ in ()).throw(StoppedError))
        with pytest.raises(StoppedError):
            stopped.go()
    grid = stopped.grid()
    stopped.go(grid)
    assert "train.distil" not in {kind for _, kind in grid.sent}
    assert decision_of(stopped)["model_sha256"] == decision_of(whole)["model_sha256"]


@pytest.mark.usefixtures("no_products")
def test_a_sites_own_model_is_compared_though_it_is_of_the_trained_network(make_federation: Make) -> None:
    """Also where that network learned from a teacher, of which the released one has nothing."""
    federation = make_federation(rounds=1, benefit=True, fopro=make_fopro() | without_teacher(fopro()))
    federation.go()
    assert federation.run.read_compression()["status"] == "accepted"  # type: ignore[index]
    for tables in load_tables(federation.run.tables / "test").values():
        assert {LOCAL, TEACHER} <= set(tables.paired)


@pytest.mark.usefixtures("no_products")
def test_a_site_whose_answer_lacks_the_comparison_does_not_judge(make_federation: Make) -> None:
    federation = make_federation(rounds=1, fopro=fopro())
    bad = federation.sites[0]

    def lie(site: str, request: Message, reply: Message) -> Message:
        values = read_values(request, REQUEST)
        if site == bad and (values.get("other") or {}).get("name") == STUDENT:
            reply.content[TABLES] = of_round[site]
        elif request.metadata.message_type == "evaluate":
            of_round[site] = reply.content[TABLES]
        return reply

    of_round: dict[str, Any] = {}
    federation.go(federation.grid(lie))
    assert decision_of(federation)["gate_sites"] == list(federation.sites[1:])
    assert any("no comparison with the model 'student'" in note for note in federation.listener.notes)


def test_what_is_damaged_is_said(finished: Federation) -> None:
    run = finished.run
    (run.path / decision_of(finished)["model_file"]).write_bytes(b"x")
    with pytest.raises(CheckpointError, match="gone or damaged"):
        load_network(run, run.read_settings(), read_chosen_round(run))
    run.compression_file.write_text(json.dumps({"kind": "proxy"}))
    with pytest.raises(RunFolderError, match="which network is released"):
        run.read_compression()
