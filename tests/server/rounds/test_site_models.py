"""The small network learns from the mean answer of the sites' single models (FedDF), which are kept until then."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from flwr.app import Message
from torch import nn

from fedmed.config import StudentConfig
from fedmed.distillation import CompactResult, compute_targets, distil_compact, make_prompt
from fedmed.distillation.network import build_network
from fedmed.errors import CheckpointError, ConfigError
from fedmed.protocol.messages import read_model
from server.finish import distil_at_server as student
from tests.server.finish.test_small_network import DATA, StoppedError, decision_of, fopro
from tests.support.federation import Federation

Make = Callable[..., Federation]
ENSEMBLE: dict[str, Any] = {"target": "ensemble"}


@pytest.fixture(autouse=True)
def _no_products(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("write_final_report", "make_candidate"):
        monkeypatch.setattr(f"server.federation.{name}", lambda *_: None)


def kept_rounds(federation: Federation) -> list[str]:
    root = federation.run.compression / "site_models"
    return sorted(path.name for path in root.iterdir()) if root.exists() else []


@pytest.mark.parametrize("compression", ["none", "fp16"])
def test_target_is_the_mean_of_the_answers_of_the_rounds_two_site_models(
    make_federation: Make, monkeypatch: pytest.MonkeyPatch, compression: str
) -> None:
    """The sites' models are taken from their answers, and both networks' answers are written out here."""
    federation = make_federation(
        rounds=1, sites=2, data=DATA, compression=compression, fopro=fopro(gate={"gap": 0.0}, **ENSEMBLE)
    )
    sent: dict[str, bytes] = {}

    def look(site: str, request: Message, reply: Message) -> Message:
        if request.metadata.message_type == "train" and compression == "none":
            sent[site] = read_model(reply)
        return reply

    seen: list[torch.Tensor] = []

    def watch(teacher: Any, small: nn.Module, proxy: Any, settings: Any, **others: Any) -> CompactResult:
        prompt = make_prompt({"mode": "none"})
        options: Any = {"batch_size": 16, "device": torch.device("cpu")}
        seen.append(compute_targets(teacher, prompt, proxy, **options).logits)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in proxy.statistics)
        x = (proxy.pixels(range(len(proxy))) - mean) / std
        for packed in sent.values():
            network = build_network(federation.config.make_plan())
            network.fill(packed, {})
            with torch.no_grad():
                seen.append(network.model.eval()(x))
        return distil_compact(teacher, small, proxy, settings, **others)

    monkeypatch.setattr(student, "distil_compact", watch)
    federation.go(federation.grid(look))
    if compression == "none":
        target, first, second = seen
        torch.testing.assert_close(target, (first + second) / 2)
        assert (first - second).abs().max() > 1e-3
    found = decision_of(federation)["distilled"]
    assert (found["target"], found["members"]) == ("ensemble", list(federation.sites))
    assert "no BatchNorm statistics in common" in found["notes"][0]
    assert found["mismatch"] > 0  # of the proxy images from the aggregated network's statistics, as always
    assert kept_rounds(federation) == []


def test_only_the_newest_and_the_best_round_are_kept_and_a_restart_finds_them(
    make_federation: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = fopro(every=2, **ENSEMBLE)
    whole = make_federation("whole", rounds=4, fopro=settings)
    whole.go()
    stopped = make_federation("stopped", rounds=4, fopro=settings)
    rounds: list[list[str]] = []

    def stop(*args: Any, **kwargs: Any) -> CompactResult:
        rounds.append(kept_rounds(stopped))
        if len(rounds) in {1, 3}:  # after round 2, and at the end
            raise StoppedError
        return distil_compact(*args, **kwargs)

    monkeypatch.setattr(student, "distil_compact", stop)
    for _ in range(2):
        with pytest.raises(StoppedError):
            stopped.go()
    stopped.go()
    best = f"round_{decision_of(stopped)['round']:05d}"
    assert [shown[-1] for shown in rounds] == ["round_00002"] * 2 + ["round_00004"] * 2
    assert set(rounds[-1]) == {best, "round_00004"}
    assert decision_of(stopped)["model_sha256"] == decision_of(whole)["model_sha256"]
    assert kept_rounds(stopped) == []


@pytest.mark.parametrize("damage", ["changed", "gone", "all gone"])
def test_what_is_damaged_or_gone_is_said(make_federation: Make, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    federation = make_federation(rounds=1, fopro=fopro(**ENSEMBLE))

    def harm(*args: Any, **kwargs: Any) -> CompactResult:
        file = federation.run.compression / "site_models" / "round_00001" / f"{federation.sites[1]}.safetensors"
        if damage == "changed":
            file.write_bytes(file.read_bytes()[:-1] + b"\x01")
        elif damage == "gone":
            file.unlink()
        else:
            for path in file.parent.iterdir():
                path.unlink()
            raise StoppedError
        return distil_compact(*args, **kwargs)

    monkeypatch.setattr(student, "distil_compact", harm)
    if damage == "all gone":
        with pytest.raises(StoppedError):
            federation.go()
    with pytest.raises(CheckpointError, match=r"after round 1 are not all there .*target: global in .*config\.yaml"):
        federation.go()


def test_other_targets_keep_nothing(make_federation: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = make_federation(rounds=1, fopro=fopro())
    found: list[list[str]] = []

    def look(*args: Any, **kwargs: Any) -> CompactResult:
        found.append(kept_rounds(federation) + [path.name for path in federation.run.updates.glob("site*")])
        return distil_compact(*args, **kwargs)

    monkeypatch.setattr(student, "distil_compact", look)
    federation.go()
    assert found == [[]]
    assert decision_of(federation)["distilled"]["target"] == "global"


def test_where_there_are_no_single_models_nothing_begins(make_federation: Make) -> None:
    with pytest.raises(ConfigError, match="no site's complete network"):
        make_federation(batch_norm="local", fopro=fopro(**ENSEMBLE)).go()
    with pytest.raises(ValueError, match="'target' is 'ensemble' and 'kind' is 'co_distillation'"):
        StudentConfig(kind="co_distillation", target="ensemble")
