"""The round loop, with real ClientApps and a Grid in this process."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from flwr.app import Message

from fedmed.errors import CheckpointError, FederationError, FedmedError
from fedmed.export import load_model
from fedmed.metrics.site_tables import FEDERATED, SITE_ATTRIBUTE, SiteTables
from fedmed.metrics.tables import combine_tables
from fedmed.protocol.messages import (
    MODEL,
    REPORT,
    TABLES,
    make_content,
    read_model,
    read_report,
    read_tables,
    read_values,
)
from fedmed.protocol.tensors import pack_tensors, unpack_tensors
from fedmed.storage.audit import verify_audit
from fedmed.storage.history import read_history
from server.rounds import scoring
from tests.support.federation import Federation, is_training

Make = Callable[..., Federation]


def change_model(reply: Message, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Message:
    """Return the reply with other tensors in it."""
    values = read_values(reply, REPORT)
    packed = pack_tensors(change(unpack_tensors(read_model(reply))))
    reply.content[MODEL] = make_content(REPORT, values, model=packed)[MODEL]
    return reply


def change_values(reply: Message, **new: Any) -> Message:
    values = read_values(reply, REPORT) | new
    reply.content[REPORT] = make_content(REPORT, values)[REPORT]
    return reply


def scale(tensors: dict[str, Any], factor: float) -> dict[str, Any]:
    return {name: t * factor if t.is_floating_point() else t for name, t in tensors.items()}


def statuses(federation: Federation, round_number: int) -> dict[str, str]:
    record = read_history(federation.run.history_file)[round_number - 1]
    return {line.site: line.status for line in record.participation}


def reason(federation: Federation, round_number: int, site: str) -> str:
    record = read_history(federation.run.history_file)[round_number - 1]
    return next(line.reason for line in record.participation if line.site == site)


def test_run_leaves_a_complete_folder(make_federation: Make) -> None:
    federation = make_federation()
    federation.go()
    run = federation.run
    for path in (run.config_file, run.environment_file, run.history_file, run.metrics_file, run.audit_file):
        assert path.stat().st_size > 0
    report = json.loads((run.report / "report.json").read_text())
    assert report["classes"] == federation.config.classes
    assert (run.report / "index.html").is_file()
    assert [record.round for record in read_history(run.history_file)] == [1, 2, 3]
    assert verify_audit(run.audit_file).ok


def test_average_of_the_updates_by_hand(make_federation: Make) -> None:
    seen: dict[str, dict[str, np.ndarray]] = {}

    def keep(site: str, request: Message, reply: Message) -> Message:
        if is_training(request):
            seen[site] = safetensors.numpy.load(read_model(reply))
        return reply

    federation = make_federation(rounds=1)
    federation.go(federation.grid(keep))
    images = {line.site: line.images for line in read_history(federation.run.history_file)[0].participation}
    total = sum(images.values())
    result = safetensors.numpy.load(federation.final_model())
    assert set(result) == set(seen[federation.sites[0]])
    for name, found in result.items():
        if found.dtype.kind == "f":
            expected = sum(seen[site][name].astype(np.float64) * images[site] for site in federation.sites) / total
            np.testing.assert_array_equal(found, expected.astype(found.dtype))
        else:
            np.testing.assert_array_equal(found, max(seen[site][name] for site in federation.sites))


def test_bits_do_not_depend_on_the_order_of_replies(make_federation: Make) -> None:
    first, second = make_federation("first"), make_federation("second")
    first.go()
    second.go(second.grid(order=lambda ids: ids[::-1]))
    assert first.final_model() == second.final_model()


def test_seed_matters(make_federation: Make) -> None:
    first, second = make_federation("first", rounds=1), make_federation("second", rounds=1, seed=1)
    first.go()
    second.go()
    assert first.final_model() != second.final_model()


@pytest.mark.parametrize("settings", [{}, {"keep": True}], ids=["plain", "momentum kept, BatchNorm local"])
@pytest.mark.parametrize("moment", ["mid-round", "after the round"])
def test_resumed_run_has_the_same_bits(make_federation: Make, settings: dict[str, bool], moment: str) -> None:
    if settings:
        extra: dict[str, Any] = {
            "batch_norm": "local",
            "training": {"optimizer": {"lr": 0.05}, "batch_size": 8, "keep_momentum": True},
        }
    else:
        extra = {}
    undisturbed, killed = make_federation("undisturbed", **extra), make_federation("killed", **extra)
    undisturbed.go()

    if moment == "mid-round":
        killed.go_until(2, killed.sites[1])  # the server has one update of the round already
    else:
        killed.go_until(3)
    killed.go()
    assert killed.final_model() == undisturbed.final_model()
    strip = ("finished", "wall_s", "participation")
    histories = [
        [
            {key: value for key, value in record.to_json().items() if key not in strip}
            for record in read_history(f.run.history_file)
        ]
        for f in (undisturbed, killed)
    ]
    assert histories[0] == histories[1]
    for name in ("figures", "sites", "confusion"):
        reports = [json.loads((f.run.report / "report.json").read_text()) for f in (undisturbed, killed)]
        assert reports[0][name] == reports[1][name]
    assert verify_audit(killed.run.audit_file).ok


def test_local_batch_norm_stays_at_the_sites(make_federation: Make) -> None:
    federation = make_federation(batch_norm="local")
    federation.go()
    names = set(safetensors.numpy.load(federation.final_model()))
    assert names == {"0.weight", "5.weight", "5.bias"}


def test_momentum_kept_at_the_site_changes_the_result(make_federation: Make) -> None:
    plain = make_federation("plain")
    training = {"optimizer": {"lr": 0.05}, "batch_size": 8, "keep_momentum": True}
    kept = make_federation("kept", training=training)
    plain.go()
    kept.go()
    assert plain.final_model() != kept.final_model()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda r: change_model(r, lambda t: scale(t, float("nan"))), "NaN"),
        (lambda r: change_model(r, lambda t: {k: v for k, v in t.items() if k != "5.bias"}), "5.bias"),
        (lambda r: change_model(r, lambda t: t | {"5.bias": t["5.bias"][:1]}), "5.bias"),
        (lambda r: change_model(r, lambda t: t | {"5.bias": t["5.bias"].double()}), "5.bias"),
        (lambda r: change_model(r, lambda t: scale(t, 1000.0)), "norm"),
        (lambda r: change_values(r, num_images=10**9), "images"),
        (lambda r: change_values(r, num_images=-1), "images"),
        (lambda r: change_values(r, num_images="many"), "images"),
    ],
    ids=["nan", "missing key", "shape", "dtype", "norm", "huge count", "negative count", "no count"],
)
def test_bad_update_is_quarantined_and_the_round_goes_on(
    make_federation: Make, change: Callable[[Message], Message], expected: str
) -> None:
    federation = make_federation(rounds=1)
    bad = federation.sites[1]
    federation.go(federation.grid(lambda site, q, reply: change(reply) if is_training(q) and site == bad else reply))
    assert statuses(federation, 1) == {s: "quarantined" if s == bad else "accepted" for s in federation.sites}
    assert expected.lower() in reason(federation, 1, bad).lower()
    assert all(np.isfinite(t).all() for t in safetensors.numpy.load(federation.final_model()).values())


@pytest.mark.parametrize(
    ("kind", "reader"),
    [("query", "attendance.read_report"), ("train", "updates.read_report"), ("evaluate", "scoring.read_tables")],
)
def test_an_answer_that_no_check_has_foreseen_ends_no_run(
    make_federation: Make, monkeypatch: pytest.MonkeyPatch, kind: str, reader: str
) -> None:
    """Reading it raises what Python does for a wrong type; only its site is left out."""
    federation = make_federation(rounds=1)
    bad = federation.sites[1]
    read: Callable[..., Any] = {"query": read_report, "train": read_report, "evaluate": read_tables}[kind]

    def mark(site: str, request: Message, reply: Message) -> Message:
        if site == bad and request.metadata.message_type == kind:
            reply.content["odd"] = make_content(REPORT, {})[REPORT]
        return reply

    def fail(message: Message, *rest: Any) -> Any:
        if "odd" in message.content:
            raise AttributeError("'str' object has no attribute 'items'")
        return read(message, *rest)

    monkeypatch.setattr(f"server.rounds.{reader}", fail)
    federation.go(federation.grid(mark))
    if kind == "train":
        assert statuses(federation, 1)[bad] == "quarantined"
    assert statuses(federation, 1)[federation.sites[0]] == "accepted"
    said = [*federation.listener.notes, reason(federation, 1, bad) if kind == "train" else ""]
    assert any("malformed (AttributeError)" in text for text in said)


def test_site_whose_images_vary_thirty_times_more_is_not_quarantined(make_federation: Make) -> None:
    federation = make_federation(rounds=1)
    wide = federation.sites[1]

    def widen(site: str, request: Message, reply: Message) -> Message:
        if not is_training(request) or site != wide:
            return reply
        return change_model(reply, lambda t: t | {"1.running_var": t["1.running_var"] * 900})

    federation.go(federation.grid(widen))
    assert set(statuses(federation, 1).values()) == {"accepted"}


def test_failing_site_is_left_out_with_its_reason(make_federation: Make) -> None:
    federation = make_federation(rounds=1)

    def fail(site: str, request: Message, reply: Message) -> Message:
        if is_training(request) and site == federation.sites[0]:
            from flwr.app import Error

            return Message(Error(code=0, reason="disk is full"), reply_to=request)
        return reply

    federation.go(federation.grid(fail))
    assert statuses(federation, 1)[federation.sites[0]] == "error"
    assert reason(federation, 1, federation.sites[0]) == "disk is full"


def test_late_site_becomes_dormant_and_is_welcomed_back(make_federation: Make) -> None:
    federation = make_federation(rounds=6, max_missed_rounds=2, round_deadline_s=0.3)
    away = federation.sites[2]

    def lose(site: str, request: Message, reply: Message) -> Message | None:
        return (
            None if site == away and is_training(request) and read_values(request, "request")["round"] <= 2 else reply
        )

    grid = federation.grid(lose)
    federation.go(grid)
    found = [statuses(federation, number)[away] for number in range(1, 7)]
    # Missed twice, then asked in passing in round 3; its answer is there before round 4.
    assert found == ["late", "late", "dormant", "accepted", "accepted", "accepted"]
    assert "round_deadline_s = 0.3" in reason(federation, 1, away)


def test_too_few_updates_end_the_run_and_nothing_is_lost(make_federation: Make) -> None:
    federation = make_federation(min_sites=3, round_deadline_s=0.2)
    lost = federation.grid(lambda site, q, r: None if is_training(q, 2) and site == federation.sites[0] else r)
    with pytest.raises(FederationError, match=r"Round 2 had fewer than min_sites = 3 usable updates in 3 attempts"):
        federation.go(lost)
    assert [record.round for record in read_history(federation.run.history_file)] == [1]
    federation.go()
    assert len(read_history(federation.run.history_file)) == 3
    undisturbed = make_federation("undisturbed", min_sites=3)
    undisturbed.go()
    assert federation.final_model() == undisturbed.final_model()


def test_nobody_there_is_a_clear_error(make_federation: Make) -> None:
    federation = make_federation(min_sites=2)
    grid = federation.grid()
    grid.offline = {1, 2, 3}
    with pytest.raises(FederationError, match="0 sites could join, min_sites = 2 are needed"):
        federation.go(grid)


def test_site_with_another_model_name_or_version_cannot_join(make_federation: Make) -> None:
    def lie(site: str, request: Message, reply: Message) -> Message:
        if request.metadata.message_type != "query":
            return reply
        changes = [{"model_digest": "other"}, {"site": "somebody"}, {"versions": {"fedmed": "0.0.9", "flwr": "1.41.0"}}]
        return change_values(reply, **dict(zip(federation.sites, changes, strict=False)).get(site, {}))

    federation = make_federation(rounds=1, sites=4)
    federation.go(federation.grid(lie))
    assert list(statuses(federation, 1)) == [federation.sites[3]]
    notes = " ".join(federation.listener.notes)
    assert "Its definition of the model differs" in notes
    assert "It runs {'fedmed': '0.0.9', 'flwr': '1.41.0'}" in notes
    assert "It calls itself 'somebody'" in notes


def test_test_images_are_scored_once_for_a_model(make_federation: Make) -> None:
    federation = make_federation(rounds=1)
    federation.go()
    stored = sorted(federation.run.sites.glob("*/test_tables/*"))
    before = [path.stat().st_mtime_ns for path in stored]
    assert len(stored) == 3
    federation.go()
    assert sorted(federation.run.sites.glob("*/test_tables/*")) == stored
    assert [path.stat().st_mtime_ns for path in stored] == before


def test_damaged_newest_checkpoint_falls_back_and_says_so(make_federation: Make) -> None:
    federation, undisturbed = make_federation(), make_federation("undisturbed")
    federation.go()
    undisturbed.go()
    model = federation.run.checkpoints / "round_00003" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-4] + b"\0\1\2\3")
    federation.go()
    assert "Going on from round 2" in " ".join(federation.listener.notes)
    assert federation.final_model() == undisturbed.final_model()
    assert [record.round for record in read_history(federation.run.history_file)] == [1, 2, 3]


def test_old_checkpoints_and_tables_are_removed(make_federation: Make) -> None:
    federation = make_federation(rounds=6)
    federation.go()
    report = json.loads((federation.run.report / "report.json").read_text())
    kept = {4, 5, 6, report["chosen_round"]}
    names = {f"round_{number:05d}" for number in kept}
    assert {path.name for path in federation.run.checkpoints.glob("round_*")} == names
    tables = {path.name for path in federation.run.tables.iterdir()}
    chosen = f"round_{report['chosen_round']:05d}"
    assert tables == {"test", "sites.json", "temperature.json", "shift.json", "round_00006", chosen}


def test_chosen_round_is_the_best_on_validation(make_federation: Make) -> None:
    federation = make_federation(rounds=4, seed=1)
    federation.go()
    values = [r.validation.pooled["balanced_accuracy"] for r in read_history(federation.run.history_file)]
    report = json.loads((federation.run.report / "report.json").read_text())
    assert report["chosen_round"] == values.index(max(values)) + 1


def test_model_folder_reproduces_the_logged_test_figure(make_federation: Make) -> None:
    import torch

    from client.hospital.site_data import open_site
    from fedmed.metrics.classification import compute_figures
    from fedmed.training.evaluate import evaluate

    federation = make_federation()
    federation.go()
    model, manifest = load_model(federation.run.model)
    assert manifest["classes"] == federation.config.classes
    plan = federation.config.make_plan()
    tables = []
    for config in federation.grid()._configs.values():
        site = open_site(config)
        tables.append(evaluate(model, site.data.test, plan, group=site.name, device=torch.device("cpu")))
    report = json.loads((federation.run.report / "report.json").read_text())
    again = compute_figures(combine_tables(tables).pool())["balanced_accuracy"].value
    assert again == pytest.approx(report["figures"]["balanced_accuracy"]["value"], abs=1e-12)


def test_changed_model_file_is_refused(make_federation: Make) -> None:
    federation = make_federation(rounds=1)
    federation.go()
    shutil.copy(federation.run.checkpoints / "round_00000" / "model.safetensors", federation.run.model)
    with pytest.raises(FedmedError, match="has been changed"):
        load_model(federation.run.model)


def test_half_written_test_tables_do_not_count(make_federation: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = make_federation()
    write, count = scoring.write_atomically, iter(range(100))

    def fail_once(path: Path, data: bytes) -> None:
        if path.parent.name.startswith(".test.") and next(count) == 1:
            raise CheckpointError("The disk is full")
        write(path, data)

    monkeypatch.setattr(scoring, "write_atomically", fail_once)
    with pytest.raises(CheckpointError):
        federation.go()
    assert not (federation.run.tables / "test").exists()
    federation.go()
    report = json.loads((federation.run.report / "report.json").read_text())
    assert sorted(report["sites"]) == sorted(federation.sites)


def test_lost_best_round_is_replaced_by_the_best_that_is_left(make_federation: Make) -> None:
    federation = make_federation(rounds=4, seed=1)

    federation.go_until(4)
    newest = federation.run.checkpoints / "round_00003"
    state = json.loads((newest / "state.json").read_bytes())
    values = [record.validation.pooled["balanced_accuracy"] for record in read_history(federation.run.history_file)]
    best = state["state"]["best_round"]
    assert best == 1 + values.index(max(values))
    assert best != 3, "the test needs a best round that is not the newest"
    shutil.rmtree(federation.run.checkpoints / f"round_{best:05d}")
    federation.go()
    report = json.loads((federation.run.report / "report.json").read_text())
    assert report["chosen_round"] != best
    assert any("The best round that is left is" in note for note in federation.listener.notes)


def test_revoked_site_takes_part_no_more(make_federation: Make) -> None:
    federation = make_federation()
    gone = federation.sites[1]

    def revoke(site: str, request: Message, reply: Message) -> Message:
        if is_training(request, 2):
            roster = federation.run.read_roster()
            federation.run.write_roster({node: name for node, name in roster.items() if name != gone})
        return reply

    federation.go(federation.grid(revoke))
    assert statuses(federation, 2)[gone] == "revoked"
    assert gone not in statuses(federation, 3)
    assert any(f"{gone} is no longer on the list" in note for note in federation.listener.notes)


def test_absurd_evaluation_counts_are_refused(make_federation: Make) -> None:
    federation = make_federation()
    liar = federation.sites[0]

    def multiply(site: str, request: Message, reply: Message) -> Message:
        if site == liar and request.metadata.message_type == "evaluate":
            tables = read_tables(reply)
            many = SiteTables({FEDERATED: {SITE_ATTRIBUTE: combine_tables([tables.site] * 1000)}})
            reply.content[TABLES] = make_content(REPORT, read_values(reply, REPORT), tables=many)[TABLES]
        return reply

    federation.go(federation.grid(multiply))
    assert any(note.startswith(liar) and "of a site with" in note for note in federation.listener.notes)
    record = read_history(federation.run.history_file)[0]
    assert liar not in record.validation.sites
