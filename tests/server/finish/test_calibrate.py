"""One temperature from all sites' sums, from the sites to the program that lies beside the released model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from client.hospital.site_data import open_site
from fedmed import predict
from fedmed.data import make_eval_transform
from fedmed.errors import RunFolderError, WireError
from fedmed.export.run import export_run, reproduce
from fedmed.metrics.rounding import round_digits
from fedmed.metrics.site_tables import FEDERATED, UNCALIBRATED
from fedmed.metrics.temperature import GRID, STEP, temperature_sums
from fedmed.protocol.messages import REPORT, REQUEST, SUMS, make_content, read_sums, read_values
from fedmed.storage.audit import verify_audit
from fedmed.storage.checkpoints import RunCheckpoints
from fedmed.training.network import Network
from server.finish.calibrate import Sums, _read, _solve
from server.rounds.scoring import load_tables
from tests.support.deployment_grid import Hospitals
from tests.support.federation import Federation

Make = Callable[..., Federation]
KIND = "evaluate.calibrate"


@pytest.fixture(autouse=True)
def no_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports and candidates have tests of their own and take most of the time."""
    for name in ("write_final_report", "make_candidate"):
        monkeypatch.setattr(f"server.federation.{name}", lambda *_: None)


def chosen_network(federation: Federation) -> Network:
    plan = federation.config.make_plan()
    chosen = int(json.loads(federation.run.finished_file.read_text())["chosen_round"])
    network = Network(plan)
    network.fill(RunCheckpoints(federation.run.checkpoints).load(chosen).model_path.read_bytes(), {})
    return network


def validation_logits(federation: Federation) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the chosen model's outputs for all sites' validation images, as nobody in a real federation has them."""
    plan, model = federation.config.make_plan(), chosen_network(federation).model.eval()
    transform = make_eval_transform(plan.augmentation, plan.image_size)
    parts = [open_site(config).data.validation for config in federation.grid()._configs.values()]
    with torch.no_grad():
        logits = torch.cat([model(transform(part.images(range(len(part))))) for part in parts])
    return logits.double(), torch.cat([part.labels for part in parts])


def test_temperature_is_that_of_all_validation_images(make_federation: Make) -> None:
    """Found here by trying all temperatures on all logits at once; with this seed the best is inside the range."""
    federation = make_federation(rounds=2, seed=1, benefit=False, data=DATA)
    asked: list[dict[str, Any]] = []

    def look(site: str, request: Message, reply: Message) -> Message:
        if request.metadata.message_type == "evaluate":
            asked.append(read_values(request, REQUEST))
        return reply

    federation.go(federation.grid(look))
    found = federation.run.read_temperature()
    assert found is not None
    logits, labels = validation_logits(federation)
    assert found["n"] == len(labels)
    assert found["temperature"] / STEP == pytest.approx(round(found["temperature"] / STEP))
    tried = torch.linspace(max(found["temperature"] - 0.1, 0.01), found["temperature"] + 0.1, 2001)
    losses = torch.stack([cross_entropy(logits / t, labels) for t in tried])
    assert abs(float(tried[losses.argmin()]) - found["temperature"]) <= STEP / 2 + 0.002 * found["temperature"]
    here = float(cross_entropy(logits / found["temperature"], labels))
    assert found["nll_before"] == pytest.approx(float(cross_entropy(logits, labels)), rel=1e-4)
    assert found["nll_after"] == pytest.approx(here, rel=1e-4)
    assert found["nll_after"] < found["nll_before"]
    # The test is made with it, once, and before nobody has heard of it.
    told = {(values["part"], values.get("temperature")) for values in asked}
    assert told == {("validation", None), ("test", found["temperature"])}
    assert verify_audit(federation.run.audit_file).ok


DATA = {"source": "phantom", "images_per_site": 60, "num_classes": 3, "image_size": 16}


def test_a_site_that_claims_most_images_does_not_choose_the_temperature() -> None:
    """Two sites count the same: as if the large one had told its mean over as many images as the small one."""

    def draw(n: int, sharpness: float, seed: int) -> Sums:
        rng = torch.Generator().manual_seed(seed)
        logits = torch.randn(n, 3, generator=rng)
        labels = torch.multinomial((logits * sharpness).softmax(dim=1), 1, generator=rng)[:, 0]
        return n, temperature_sums(logits, labels).numpy()

    small, large = draw(200, 2.0, 0), draw(2000, 0.5, 1)
    shrunk = 200, large[1] / 10
    sites, alike = {"a": small, "b": large}, {"a": small, "b": shrunk}
    assert _solve(sites, "auto").temperature == _solve(alike).temperature
    assert _solve(sites).temperature > _solve(sites, "auto").temperature + 0.1
    assert _solve(sites, "auto").n == 2200
    assert _solve(alike, "auto") == _solve(alike)


def test_both_forms_are_tested(make_federation: Make) -> None:
    """The classes are the same; the confidence is not."""
    federation = make_federation(rounds=1, benefit=False, data=DATA)
    federation.go()
    for tables in load_tables(federation.run.tables / "test").values():
        shipped, raw = (tables.models[name]["site"] for name in (FEDERATED, UNCALIBRATED))
        assert (shipped.counts == raw.counts).all()
        assert (shipped.brier != raw.brier).any()


def test_released_model_divides_by_it(make_federation: Make, tmp_path: Path) -> None:
    federation = make_federation(rounds=1, benefit=False, data=DATA)
    federation.go()
    found = federation.run.read_temperature()
    assert found is not None
    manifest = export_run(federation.run, tmp_path / "model")
    assert manifest["temperature"] == found["temperature"] != 1
    assert manifest["calibration"] == {key: found[key] for key in ("n", "nll_before", "nll_after")}
    card = (tmp_path / "model" / "model_card.md").read_text()
    assert f"divides the network's outputs by the temperature {found['temperature']:.3f}" in card
    artefact = predict.open_artefact(tmp_path / "model", threads=1)
    assert artefact.temperature == found["temperature"]
    part = open_site(federation.grid()._configs[1]).data.test
    plan, model = federation.config.make_plan(), chosen_network(federation).model.eval()
    x_BCHW = make_eval_transform(plan.augmentation, plan.image_size)(part.images(range(8)))
    with torch.no_grad():
        logits = model(x_BCHW)
    # The network itself stays as it was trained.
    torch.testing.assert_close(torch.from_numpy(artefact.compute_logits(x_BCHW.numpy())), logits, rtol=0, atol=1e-4)
    # The logged tables are of the divided outputs, and are reproduced as such.
    result = reproduce(federation.run, tmp_path / "model")
    assert result.succeeded
    assert result.figures["auc"][0] == pytest.approx(result.figures["auc"][1])


def test_fitted_once(make_federation: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = make_federation(rounds=1, benefit=False)
    with monkeypatch.context() as patch:
        patch.setattr("server.federation._test_once", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            federation.go()
    before = federation.run.temperature_file.read_bytes()
    grid = federation.grid()
    federation.go(grid)
    assert KIND not in {kind for _, kind in grid.sent}
    assert federation.run.temperature_file.read_bytes() == before


def test_without_calibrate_there_is_none(make_federation: Make) -> None:
    federation = make_federation(rounds=1, benefit=False, calibrate=False)
    grid = federation.grid()
    federation.go(grid)
    assert KIND not in {kind for _, kind in grid.sent}
    assert federation.run.read_temperature() is None
    for tables in load_tables(federation.run.tables / "test").values():
        assert UNCALIBRATED not in tables.models


def test_too_few_images(make_federation: Make) -> None:
    """Three sites with six validation images each: 18, and 20 are needed."""
    federation = make_federation(rounds=1, benefit=False)
    assert all(len(open_site(config).data.validation) <= 6 for config in federation.grid()._configs.values())
    federation.go()
    assert json.loads(federation.run.temperature_file.read_text())["fitted"] is False
    assert federation.run.read_temperature() is None


def test_damaged_file_is_no_temperature_of_one(make_federation: Make) -> None:
    federation = make_federation(rounds=1, benefit=False)
    federation.run.temperature_file.write_text("{")
    with pytest.raises(RunFolderError, match="probabilities depend on it"):
        federation.run.read_temperature()


@given(st.integers(0, 2**31), st.integers(20, 200), st.floats(0.1, 30.0), st.integers(1, 20))
def test_sums_with_three_digits_are_those_of_a_temperature(seed: int, n: int, sharpness: float, k: int) -> None:
    """A hospital sends them with three digits and of a multiple of k images; between two points they hardly differ."""
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    rng = torch.Generator().manual_seed(seed)
    logits_NK = sharpness * torch.randn(n, 3, generator=rng)
    labels_N = torch.randint(0, 3, (n,), generator=rng)
    told = n // k * k
    sums_J2 = round_digits((temperature_sums(logits_NK, labels_N) * (told / n)).numpy())
    content = make_content(
        REPORT, {"model_sha256": "0" * 64, "n": told}, sums={"temperature": torch.from_numpy(sums_J2)}
    )
    message = Message(content, dst_node_id=1, message_type=KIND)
    number, read = _read(message, "0" * 64, n)
    assert (number, read.tolist()) == (told, sums_J2.tolist())
    far = sums_J2.copy()
    far[60, 0] *= 1.5  # a likelihood that fits neither neighbour
    content = make_content(REPORT, {"model_sha256": "0" * 64, "n": told}, sums={"temperature": torch.from_numpy(far)})
    with pytest.raises(WireError, match="does not fit its slopes"):
        _read(Message(content, dst_node_id=1, message_type=KIND), "0" * 64, n)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda sums: sums * float("nan"), "not those of a temperature"),
        (lambda sums: sums[:5], "not those of a temperature"),
        (lambda sums: -sums, "cannot be true"),
        (lambda sums: sums.flip(0), "cannot be true"),
        (lambda sums: sums.float(), "not float64"),
    ],
    ids=["nan", "short", "negative", "turned", "type"],
)
def test_sums_that_cannot_be_true_are_left_out(
    make_federation: Make, change: Callable[[torch.Tensor], torch.Tensor], reason: str
) -> None:
    federation = make_federation(rounds=1, benefit=False)
    bad = federation.sites[0]

    def lie(site: str, request: Message, reply: Message) -> Message:
        if site == bad and request.metadata.message_type == KIND:
            sums = {"temperature": change(read_sums(reply)["temperature"]).contiguous()}
            reply.content[SUMS] = make_content(REPORT, {}, sums=sums)[SUMS]
        return reply

    federation.go(federation.grid(lie))
    record = json.loads(federation.run.temperature_file.read_text())
    assert record["sites"] == list(federation.sites[1:])
    assert any(bad in note and reason in note for note in federation.listener.notes)


@pytest.mark.parametrize("n", [-1, 10_000, True, None])
def test_numbers_that_cannot_be_true_are_left_out(make_federation: Make, n: object) -> None:
    federation = make_federation(rounds=1, benefit=False)
    bad = federation.sites[0]

    def lie(site: str, request: Message, reply: Message) -> Message:
        if site == bad and request.metadata.message_type == KIND:
            values = read_values(reply, REPORT) | {"n": n}
            reply.content[REPORT] = make_content(REPORT, values)[REPORT]
        return reply

    federation.go(federation.grid(lie))
    assert json.loads(federation.run.temperature_file.read_text())["sites"] == list(federation.sites[1:])


def test_hospital_withholds_what_is_too_small(tmp_path: Path) -> None:
    """With k above its number of validation images a hospital tells no sums at all."""
    hospitals = Hospitals(tmp_path)
    hospitals.change_client("site_01", policy={"suppression": {"k": 1000, "k_row": 1}})
    replies: dict[str, Message] = {}

    def look(site: str, request: Message, reply: Message) -> Message:
        if request.metadata.message_type == KIND:
            replies[site] = reply
        return reply

    hospitals.go(look)
    assert set(replies["site_01"].content) == {REPORT}
    assert read_values(replies["site_01"], REPORT)["n"] == 0
    assert read_sums(replies["site_02"])["temperature"].shape == (len(GRID), 2)
