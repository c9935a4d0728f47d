"""A hospital with the thresholds that it has by itself (k = 10, k_row = 5): checked, approved, and asked everything.

The images are made up; they have patients and two attributes, which their patients' groups come from.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from client.check.approval import Wish, approve
from client.check.run import render_table, run_preflight
from client.guard.approvals import Approvals
from client.guard.audit import verify_site_audit
from fedmed.config.client import ClientConfig, PolicyConfig
from fedmed.fairness.reconstruction.run import check_run
from tests.client.support.kit import FakeFleet, connect_to, make_hello, make_kit, serve
from tests.support.deployment_grid import Hospitals

DATA = {"source": "phantom", "images_per_site": 300, "num_classes": 3, "image_size": 16}
SERVER: dict[str, Any] = {
    "rounds": 2,
    "min_sites": 2,
    "batch_norm": "recalibrate",
    "round_deadline_s": 200,
    "study": {"id": "phantoms", "approval": "EK 7/26"},
}


def make_hospitals(folder: Path, policy: dict[str, Any]) -> dict[str, ClientConfig]:
    """Put the kit of a hospital in the place of the generous site of other tests."""
    kits = {}
    for name in ("site_01", "site_02"):
        settings = {"name": name, "data_sites": 2, "data_site": name, "insecure": True, "policy": policy}
        (folder / name / "state" / "approved_plans.json").unlink()
        kits[name] = make_kit(folder / name, DATA, **settings)
    return kits


def list_events(config: ClientConfig, name: str) -> list[dict[str, Any]]:
    lines = (Path(config.state_dir) / "audit.jsonl").read_text().splitlines()
    return [entry["fields"] for entry in map(json.loads, lines) if entry["event"] == name]


@pytest.mark.ci
@pytest.mark.parametrize("choice", ["figure", "tables"])
def test_a_hospital_as_it_comes_takes_part_in_everything(tmp_path: Path, choice: str) -> None:
    policy = {"study": "phantoms"} | ({"validation_tables": True} if choice == "tables" else {})
    federation = Hospitals(tmp_path, choice=choice, **SERVER)
    kits = make_hospitals(tmp_path, policy)
    assert all(config.policy == PolicyConfig.model_validate(policy) for config in kits.values())
    for name, config in kits.items():
        fleet = FakeFleet(make_hello(federation.plan.model_dump(mode="json"), site=name))
        with serve(lambda connection: None) as port:
            reached = config.model_copy(update={"server": f"127.0.0.1:{port}"})
            results = run_preflight(reached, connect=connect_to(fleet))
        problems = {one.name for one in results if one.status not in {"ok", "skipped"}}
        # There is no TLS, nobody has approved yet, and 300 images have groups that are too small to be told.
        assert problems == {"settings", "approval", "groups"}, render_table(results)
        would_leave = {one.name: one.found for one in results if one.name.startswith("leaves: ")}
        nothing = {name for name, found in would_leave.items() if found.startswith("nothing: ")}
        by_choice = "leaves: validation tables" if choice == "figure" else "leaves: validation figures"
        alerts = "leaves: counts of alert scores"
        assert nothing == {by_choice, alerts, "leaves: update of the small network"}
        assert approve(config, Wish(yes=True), connect_to(fleet)) == 0
        assert [one.sha256 for one in Approvals(Path(config.state_dir)).read()] == [federation.plan.sha256]
    federation.go()

    for config in kits.values():
        state = Path(config.state_dir)
        for bad in ("refused", "withheld", "failed"):
            assert list_events(config, bad) == []
        slots = json.loads((state / "runs" / federation.plan.run_id / "ledger.json").read_text())["slots"]
        scored = "figure" if choice == "figure" else "evaluate"
        wanted = {"train": 2, scored: 2, "local": 2, "recalibrate": 1, "calibrate": 1, "test": 1, "release": 1}
        assert {slot: one["times"] for slot, one in slots.items()} == wanted
        assert verify_site_audit(state).ok
    report = json.loads((federation.run.report / "report.json").read_text())
    assert report["thresholds"] == {"k": 10, "k_row": 5, "k_bin": 5, "unit": "patients"}
    assert [one for one in check_run(federation.run.path, 5, 100) if one.exposed] == []
