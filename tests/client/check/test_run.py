"""``flower-client --check``: the run as a whole, files, network, machine, and what would leave.

The checks of images and labels are in ``test_preflight_data.py``.
"""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client.check import memory as preflight_memory
from client.check import run as preflight
from client.check.context import Check, CheckContext
from client.check.memory import estimate_training_bytes
from client.check.model import format_seconds
from client.check.network import compare_clocks
from client.check.run import CHECKS, CheckResult, has_failed, render_table, run_preflight, to_json
from client.guard.message_parts import list_parts
from client.site import app
from fedmed.config import Plan
from fedmed.config.client import ClientConfig
from fedmed.config.files import dump_config
from fedmed.errors import ConnectionRefusedByServerError
from fedmed.keys import Authority, fingerprint, read_public_key
from fedmed.metrics.packing import pack_site_tables
from fedmed.metrics.site_tables import FEDERATED, MODELS, PAIRED_MODELS, PairedTables, SiteTables
from fedmed.protocol.messages import REQUEST, make_content, read_tables
from fedmed.protocol.quantisation import estimate_bytes
from fedmed.training.network import Network
from tests.client.support.kit import (
    CLASSES,
    PLAN,
    FakeFleet,
    answer_tls,
    connect_to,
    issue,
    make_class_folders,
    make_head,
    make_hello,
    make_kit,
    serve,
)
from tests.support.approval import approve_request

COUNTS = {"benign": 40, "malignant": 20, "other": 8}
Found = dict[str, CheckResult]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def config(tmp_path: Path) -> ClientConfig:
    """A site without TLS, for all that does not concern TLS."""
    return make_kit(tmp_path, make_class_folders(tmp_path / "images", COUNTS), insecure=True)


def check(config: ClientConfig, hello: dict[str, Any] | Exception | None = None, **options: Any) -> Found:
    """Run everything against a server that accepts connections, and return the results by name."""
    fleet = FakeFleet(make_hello() if hello is None else hello)
    with serve(lambda connection: None) as port:
        if config.insecure:
            config = config.model_copy(update={"server": f"127.0.0.1:{port}"})
        return {result.name: result for result in run_preflight(config, connect=connect_to(fleet), **options)}


def with_policy(config: ClientConfig, **changes: Any) -> ClientConfig:
    return config.model_copy(update={"policy": config.policy.model_copy(update=changes)})


def test_everything_is_right_over_tls(tmp_path: Path) -> None:
    config = make_kit(tmp_path, make_class_folders(tmp_path / "images", COUNTS))
    before = sorted(tmp_path.rglob("*"))
    context = issue(tmp_path / "server", tmp_path / "authority", days=90)
    with serve(answer_tls(context)) as port:
        config = config.model_copy(update={"server": f"127.0.0.1:{port}"})
        config = with_policy(config, suppression=config.policy.suppression.model_copy(update={"k": 4, "k_row": 3}))
        config = with_policy(config, approved_plan=Plan.model_validate(PLAN).sha256)
        results = run_preflight(config, connect=connect_to(FakeFleet(make_hello())))
    found = {result.name: result for result in results}
    assert {name: result.found for name, result in found.items() if result.status != "ok"} == {}
    assert not has_failed(results)
    assert [result.name for result in results] == [one.name for one in CHECKS]
    assert found["TLS"].found.startswith("TLSv1.3; the certificate is signed by our authority")
    until = datetime.now(UTC) + timedelta(days=90)
    assert found["server certificate"].found in {
        f"valid until {day:%Y-%m-%d}, {days} days" for day in (until, until - timedelta(hours=1)) for days in (89, 90)
    }
    line = read_public_key(tmp_path / "site.pub")
    assert fingerprint(line) in found["site key"].found
    assert found["authentication"].found == "the server knows this site as 'north'"
    assert found["plan"].found.startswith("study 'skin', approval EK 7/26; tiny for 3 classes at 16 pixels; 4 rounds")
    # Nothing of the site's own state was made or changed.
    left = {path for path in tmp_path.rglob("*") if "server" not in path.parts} - set(before)
    assert left == {tmp_path / "state"}
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


def test_results_as_table_and_json(config: ClientConfig) -> None:
    results = [
        CheckResult("one", "ok", "fine [1/2]"),
        CheckResult("two", "failed", "x is 3; allowed: 2", "Write x: 2."),
        CheckResult("three", "skipped", "Not run, because 'two' failed."),
    ]
    table = render_table(results)
    assert "fine [1/2]" in table
    assert "→ Write x: 2." in table
    assert "1 ok, 1 failed, 1 skipped. Correct what failed, then run --check again." in table
    told = json.loads(to_json(results))
    assert told["ok"] is False
    assert told["checks"][1] == {
        "name": "two",
        "status": "failed",
        "found": "x is 3; allowed: 2",
        "advice": "Write x: 2.",
    }
    assert has_failed(results)
    assert not has_failed(results[:1])


def test_unreachable_server_fails_once_and_names_the_cause(config: ClientConfig) -> None:
    with serve(lambda connection: None) as port:
        pass
    config = config.model_copy(update={"server": f"127.0.0.1:{port}"})
    found = {one.name: one for one in run_preflight(config, connect=connect_to(FakeFleet({})))}
    assert [name for name, result in found.items() if result.status == "failed"] == ["connection"]
    assert found["versions"].found == "Not run, because 'connection' failed."
    assert found["leaves: test tables"].found == "Not run, because 'classes' could not be checked."
    assert found["data"].status == "ok"
    assert found["class counts"].status == "ok"


def test_offline_leaves_the_network_alone(config: ClientConfig) -> None:
    def connect(config: ClientConfig) -> FakeFleet:
        raise AssertionError("the network was used")

    found = {one.name: one for one in run_preflight(config, offline=True, connect=connect)}
    assert found["connection"].found == "Not run, because the network was to be left alone (offline)."
    assert found["model"].found == found["connection"].found
    assert {found[name].status for name in ("site key", "data", "class counts", "attributes")} == {"ok"}


def test_fault_of_a_check_becomes_its_result(config: ClientConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(context: CheckContext, name: str) -> CheckResult:
        raise ZeroDivisionError("by zero")

    def succeed(context: CheckContext, name: str) -> CheckResult:
        return CheckResult(name, "ok", "fine")

    checks = (Check("a", break_down), Check("b", succeed, ("a",)), Check("c", succeed))
    monkeypatch.setattr(preflight, "CHECKS", checks)
    broken, after, apart = run_preflight(config)
    assert broken.status == "failed"
    assert re.fullmatch(
        r"The check itself ended with ZeroDivisionError \(test_run.py, line \d+\): by zero", broken.found
    )
    assert "not foreseen" in broken.advice
    assert (after.status, after.found) == ("skipped", "Not run, because 'a' failed.")
    assert apart.status == "ok"


def test_names_are_told_as_checks_begin(config: ClientConfig) -> None:
    names: list[str] = []
    run_preflight(config, offline=True, on_start=names.append)
    assert names == [one.name for one in CHECKS]


# --- files -----------------------------------------------------------------------------------------------------------


def test_key_that_others_can_read(config: ClientConfig) -> None:
    Path(config.key).chmod(0o644)
    found = check(config)
    assert found["site key"].status == "failed"
    assert f"chmod 600 '{config.key}'" in found["site key"].found
    assert found["authentication"].found == "Not run, because 'site key' failed."


def test_release_key_of_another_kind(config: ClientConfig, tmp_path: Path) -> None:
    Path(config.release_key).write_bytes((tmp_path / "site.pub").read_bytes())
    assert "is no Ed25519 public key" in check(config, offline=True)["release key"].found
    Path(config.release_key).unlink()
    assert "cannot be read: No such file" in check(config, offline=True)["release key"].found


def test_authority_missing_expired_and_in_a_bundle(tmp_path: Path) -> None:
    config = make_kit(tmp_path)
    assert check(config, offline=True)["authority"].status == "ok"
    old = datetime.now(UTC) - timedelta(days=21 * 365.25)
    Authority.create(tmp_path / "old", now=old)
    expired = (tmp_path / "old" / "ca.pem").read_bytes()
    good = Path(config.ca).read_bytes()
    Path(config.ca).write_bytes(good + expired)
    assert check(config, offline=True)["authority"].found == "2 certificates, 1 of them not expired"
    Path(config.ca).write_bytes(expired)
    assert check(config, offline=True)["authority"].status == "failed"
    Path(config.ca).write_text("hello")
    assert "holds no certificate" in check(config, offline=True)["authority"].found
    Path(config.ca).unlink()
    assert "cannot be read" in check(config, offline=True)["authority"].found


def test_state_folder_that_cannot_be_made(config: ClientConfig, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    found = check(config, offline=True)
    assert found["state folder"].status == "failed"
    assert found["data"].found == "Not run, because 'state folder' failed."


# --- network ---------------------------------------------------------------------------------------------------------


def test_certificate_that_ends_soon(tmp_path: Path) -> None:
    config = make_kit(tmp_path)
    with serve(answer_tls(issue(tmp_path / "server", tmp_path / "authority", days=12))) as port:
        config = config.model_copy(update={"server": f"127.0.0.1:{port}"})
        found = {one.name: one for one in run_preflight(config, connect=connect_to(FakeFleet(make_hello())))}
    assert found["server certificate"].status == "warning"
    assert found["server certificate"].found.endswith("12 days")


def test_certificate_of_another_authority(tmp_path: Path) -> None:
    config = make_kit(tmp_path)
    Authority.create(tmp_path / "other")
    with serve(answer_tls(issue(tmp_path / "server", tmp_path / "other"))) as port:
        config = config.model_copy(update={"server": f"127.0.0.1:{port}"})
        found = {one.name: one for one in run_preflight(config, connect=connect_to(FakeFleet(make_hello())))}
    assert found["TLS"].status == "failed"
    assert found["authentication"].found == "Not run, because 'TLS' failed."
    assert found["clock"].status == "skipped"


def test_refused_site_still_learns_of_its_clock(config: ClientConfig) -> None:
    reason = "The server does not know this site, or the clocks differ."
    refused = ConnectionRefusedByServerError(f"{reason} Trying again from time to time.")
    later = datetime.now(UTC) + timedelta(seconds=60)
    with serve(lambda connection: connection.recv(4096) and connection.sendall(make_head(later))) as port:
        config = config.model_copy(update={"server": f"127.0.0.1:{port}"})
        found = {one.name: one for one in run_preflight(config, connect=connect_to(FakeFleet(refused)))}
    assert found["authentication"].found == reason
    assert found["clock"].status == "failed"
    assert re.match(r"this machine is (59|60)\.\d s behind the server", found["clock"].found)
    assert "NTP" in found["clock"].advice


@pytest.mark.parametrize(
    ("ahead", "status"), [(0, "ok"), (2, "ok"), (4, "warning"), (6, "failed"), (-6, "warning"), (-12, "failed")]
)
def test_clock(config: ClientConfig, ahead: float, status: str) -> None:
    time = (datetime.now(UTC) - timedelta(seconds=ahead)).isoformat()
    assert check(config, make_hello(time=time))["clock"].status == status


def test_clocks_are_compared_within_the_time_of_the_question() -> None:
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    before, after = noon, noon + timedelta(seconds=4)
    assert compare_clocks(before, noon + timedelta(seconds=3), after) == 0
    assert compare_clocks(before, noon - timedelta(seconds=5), after) == 5
    assert compare_clocks(before, noon + timedelta(seconds=6), after) == -2


def test_versions(config: ClientConfig) -> None:
    versions = make_hello()["versions"]
    torch_only = check(config, make_hello(versions=versions | {"torch": "1.0"}))["versions"]
    assert torch_only.status == "warning"
    assert torch_only.found == f"torch {versions['torch']} here, 1.0 at the server"
    other = check(config, make_hello(versions=versions | {"fedmed": "9.9"}))["versions"]
    assert (other.status, other.advice) == ("failed", "Install the server's version here: fedmed-hospitals==9.9.")


def test_key_of_another_site(config: ClientConfig) -> None:
    found = check(config, make_hello(site="south"))["authentication"]
    assert found.status == "failed"
    assert "the site 'south', client.yaml says name: north" in found.found


def test_answer_of_another_program(config: ClientConfig) -> None:
    assert "not as a fedmed server does" in check(config, {"hello": "world"})["authentication"].found


def test_server_without_a_plan_and_with_one_of_another_version(config: ClientConfig) -> None:
    without = check(config, make_hello() | {"plan": None})
    assert without["plan"].status == "skipped"
    assert without["model"].found == "Not run, because 'plan' could not be checked."
    assert not has_failed(list(without.values()))
    strange = make_hello()
    strange["plan"] |= {"new_setting": 1}
    assert "must run the same version" in check(config, strange)["plan"].advice


def test_what_is_no_proxy_is_said_without_its_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:hush@proxy.example.org:port")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    found = check(make_kit(tmp_path, server="fedmed.example.org:8443"))
    assert found["server address"].status == "failed"
    assert "HTTPS_PROXY names no HTTP proxy" in found["server address"].found
    assert "hush" not in to_json(list(found.values()))


def test_proxy_leaves_only_the_greeting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:hush@proxy.example.org:3128")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    config = make_kit(tmp_path, server="fedmed.example.org:8443")
    found = check(config)
    for name in ("server address", "connection", "TLS", "server certificate"):
        assert found[name].status == "skipped"
        assert "through the proxy proxy.example.org:3128" in found[name].found
    assert found["authentication"].found.endswith("as 'north' through the proxy proxy.example.org:3128")
    assert found["versions"].status == "ok"
    assert "hush" not in to_json(list(found.values()))


# --- plan and machine ------------------------------------------------------------------------------------------------


def test_policy_against_the_plan(config: ClientConfig) -> None:
    refused = check(with_policy(config, max_rounds=3, study="lung"))
    assert refused["policy"].status == "failed"
    assert "policy.study: 'skin'; allowed: 'lung'." in refused["policy"].found
    assert "policy.max_rounds: 4 rounds; allowed: up to 3." in refused["policy"].found
    assert refused["leaves: test tables"].found == "Not run, because 'policy' failed."


def test_policy_that_limits_when_and_what(config: ClientConfig) -> None:
    later = datetime.now() + timedelta(hours=2)
    span = f"{later:%H:%M}-{later + timedelta(hours=1):%H:%M}"
    found = check(with_policy(config, hours=[span], test_tables=False))
    assert found["policy"].status == "warning"
    assert f"allowed: {span}" in found["policy"].found
    assert found["leaves: update, none"].status == "ok"
    assert found["leaves: test tables"].found.startswith("nothing: ")
    assert "policy.test_tables" in found["leaves: test tables"].found
    assert "policy.test_tables" in found["leaves: comparison"].found


def test_model_differs_or_is_unknown_or_too_large(config: ClientConfig) -> None:
    other = check(config, make_hello(model_digest="0" * 64))["model"]
    assert other.status == "failed"
    assert "differs from the server's" in other.found
    hello = make_hello()
    hello["plan"]["model"] = {"name": "resnet19"}
    unknown = check(with_policy(config, models=["resnet19"]), hello)["model"]
    assert unknown.status == "failed"
    assert "There is no model 'resnet19'" in unknown.found
    large = check(with_policy(config, max_message_mib=1), make_hello({"model": {"name": "tiny", "width": 60_000}}))[
        "model"
    ]
    assert large.status == "failed"
    assert "allowed: up to 1" in large.found


def test_memory(config: ClientConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check(config)["memory"].status == "ok"
    monkeypatch.setattr(preflight_memory, "find_free_memory", lambda: 1000)
    found = check(config)
    assert found["memory"].status == "failed"
    assert "it does not fit" in found["memory"].found
    assert found["training step"].found == "Not run, because 'memory' failed."


def test_memory_of_a_training_step() -> None:
    """``tiny`` at 16 px: conv 4 x 4 x 4 and BatchNorm and ReLU the same, pool 4, flatten 4, linear 3: 203 numbers."""
    plan = Plan.model_validate(PLAN)
    model = Network(plan).model
    weights = 4 * 3 * 9 + 4 + 4 + (4 * 3 + 3)
    state = weights * 4 + 2 * 4 * 4 + 8  # running mean and variance, and an int64
    momentum_and_gradient = 2 * weights * 4
    assert estimate_training_bytes(model, plan) == state + momentum_and_gradient + 2 * 203 * 4 * 8
    adam = plan.training.model_copy(update={"optimizer": plan.training.optimizer.model_copy(update={"name": "adam"})})
    more = estimate_training_bytes(model, plan.model_copy(update={"training": adam}))
    assert more == estimate_training_bytes(model, plan) + weights * 4


def test_disk(config: ClientConfig) -> None:
    found = check(with_policy(config, max_disk_gib=0.1))["disk"]
    assert found.status == "failed"
    assert "0.1 GiB used (policy.max_disk_gib)" in found.found


def test_step_longer_than_the_server_waits(config: ClientConfig) -> None:
    assert check(config, make_hello(round_deadline_s=3600))["training step"].status == "ok"
    found = check(config, make_hello(round_deadline_s=1e-9))["training step"]
    assert found.status == "warning"
    assert "would miss every round" in found.advice


@pytest.mark.parametrize(("seconds", "text"), [(0.0123, "0.012 s"), (45, "45 s"), (600, "10 min"), (9000, "2.5 h")])
def test_times_for_people(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


# --- what would leave ------------------------------------------------------------------------------------------------


def read_bytes(text: str, part: str) -> int:
    match = re.search(rf"{part} ([\d,]+) bytes", text)
    assert match is not None, text
    return int(match[1].replace(",", ""))


def score(config: ClientConfig, folder: Path, plan: Plan, part: str, packed: bytes) -> Message:
    """Return the real answer of the site."""
    (folder / "whole.yaml").write_text(dump_config(config.model_copy(update={"state_dir": str(folder / "whole")})))
    values = {"plan": plan.model_dump(mode="json"), "round": 1, "part": part}
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    message = Message(make_content(REQUEST, values, model=packed), dst_node_id=1, message_type="evaluate")
    approve_request(folder / "whole", message)
    return app(message, Context(1, 1, {"client-config": str(folder / "whole.yaml")}, RecordDict(), {}))


def test_sizes_are_those_of_the_real_replies(config: ClientConfig, tmp_path: Path) -> None:
    plan = {"model": {"name": "tiny", "width": 64}, "choice": "tables"}
    limits = config.policy.suppression.model_copy(update={"k": 4, "k_row": 3})
    config = with_policy(config, suppression=limits, validation_tables=True)
    found = check(config, make_hello(plan))
    network = Network(Plan.model_validate(PLAN | plan))
    packed = network.pack()
    state = network.model.state_dict()
    from fedmed.storage.tensor_files import TensorSpec

    layout = {name: TensorSpec(tuple(state[name].shape), state[name].numpy().dtype) for name in network.shared}
    assert read_bytes(found["leaves: update, none"].found, "model") == len(packed)
    assert read_bytes(found["leaves: update, fp16"].found, "model") == estimate_bytes(layout, "fp16")
    assert read_bytes(found["leaves: update, int8"].found, "model") == estimate_bytes(layout, "int8")
    assert found["leaves: update, none"].found.endswith("(the plan's)")
    for part in ("validation", "test"):
        reply = score(config, tmp_path, Plan.model_validate(PLAN | plan), part, packed)
        (size,) = (one["bytes"] for one in list_parts(reply.content) if one["name"] == "tables")
        assert read_bytes(found[f"leaves: {part} tables"].found, "tables") == size
    own = read_tables(reply).models[FEDERATED]["site"]
    paired = {"site": PairedTables(own.groups, np.zeros((1, 3, 2, 2), np.int64), np.ones((1, 3)))}
    all_models = SiteTables({name: {"site": own} for name in MODELS}, dict.fromkeys(PAIRED_MODELS, paired))
    largest = len(pack_site_tables(all_models))
    assert f", up to {largest:,} bytes with a temperature and" in found["leaves: test tables"].found
    assert found["leaves: validation tables"].found.endswith("without the AUC, without histograms of scores")
    assert found["leaves: test tables"].found.endswith("with the AUC, without histograms of scores")
    assert "(artefact_sha256, comparison, model_sha256)" in found["leaves: comparison"].found


def test_withheld_rows_are_those_of_all_images(config: ClientConfig) -> None:
    """Rows of fewer than 5 images stay here; the sample of few images must decide as all images would."""
    limits = config.policy.suppression.model_copy(update={"k": 6, "k_row": 5})
    allowed = with_policy(config, suppression=limits, validation_tables=True)
    found = check(allowed, make_hello({"choice": "tables"}))
    counts = dict(re.findall(r"(\w+) (\d+/\d+/\d+)", found["class counts"].found))
    assert {label: sum(map(int, text.split("/"))) for label, text in counts.items()} == COUNTS
    for place, part in ((1, "validation"), (2, "test")):
        rows = [int(counts[label].split("/")[place]) for label in CLASSES]
        wanted = sum(number >= 5 for number in rows) if sum(rows) >= 6 else 0
        assert f"of the site for {wanted} of 3 classes" in found[f"leaves: {part} tables"].found


def test_description_is_shown_word_for_word(config: ClientConfig) -> None:
    told = json.loads(check(config)["leaves: description"].found.partition(": ")[2])
    assert told["site"] == "north"
    assert told["class_counts"] is None
    assert told["thresholds"] == {"k": 10, "k_row": 5, "k_bin": 5}
    limits = config.policy.suppression.model_copy(update={"k": 1, "k_row": 1})
    open_site = with_policy(config.model_copy(update={"share_class_counts": True}), suppression=limits)
    shared = json.loads(check(open_site)["leaves: description"].found.partition(": ")[2])
    assert [sum(of_class) for of_class in zip(*shared["class_counts"].values(), strict=True)] == [*COUNTS.values()]
