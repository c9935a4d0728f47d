"""Code from outside fedmed at a hospital: refused, compared and only then imported."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from client.guard.outside_code import check_extensions
from client.release.content import Manifest
from client.release.own_artefact import make_own_model
from fedmed.config import Plan, make_student_plan
from fedmed.config.client import PolicyConfig
from fedmed.errors import DataError, PolicyError, WireError, describe_error
from fedmed.extensions import find_extension
from fedmed.training.network import Network
from tests.client.support.hospital import PLAN, POLICY, HospitalSite
from tests.client.support.kit import make_kit
from tests.support.extension_package import IMAGES, LOSS, MODEL, PACKAGE, importable, install

LOOSE = "marking_networks:build"
MARKING = """
import pathlib
from torch import nn
pathlib.Path({marker!r}).touch()
def build(num_classes, *, fail=False):
    if fail:
        raise OSError("/srv/private/patient-17.png")
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The example package is installed, and a loose module that leaves the file ``imported`` when it is run."""
    torch.set_num_threads(1)
    with importable(install(tmp_path / "site-packages")) as folder:
        (folder / "marking_networks.py").write_text(MARKING.format(marker=str(tmp_path / "imported")))
        yield tmp_path


def allow(*entries: Any) -> dict[str, Any]:
    return POLICY | {"extensions": list(entries)}


def make_plan(model: str = MODEL, **changes: Any) -> dict[str, Any]:
    """Return the keys of a plan with the code that they mean here."""
    keys: dict[str, Any] = {"model": {"name": model}, **changes}
    described = Plan.model_validate(PLAN | keys).describe_extensions()
    return keys | {"extensions": [one.model_dump() for one in described.extensions]}


def test_code_is_refused_by_default_and_not_imported(folder: Path) -> None:
    site = HospitalSite(folder)
    for kind, values in (("query", {}), ("train", {"round": 1}), ("evaluate", {"round": 1, "part": "validation"})):
        with pytest.raises(PolicyError) as caught:
            site.ask(kind, site.model, make_plan(LOOSE), **values)
        assert len(str(caught.value).splitlines()) == 1
    found = find_extension(LOOSE)
    assert str(caught.value) == (
        f"The site's policy refuses this request. policy.extensions: found {found}, allowed none. Use what fedmed has "
        "itself in server.yaml. Or, once somebody at the site has read that code, which runs with the site's rights, "
        "list it in the policy in the site's client.yaml; a loose file with its sha256."
    )
    assert not (folder / "imported").exists()
    assert [one["refusals"][0]["key"] for one in site.events("refused")] == ["extensions"] * 3


def test_loose_file_needs_its_hash_in_the_policy(folder: Path) -> None:
    plan = make_plan(LOOSE)
    site = HospitalSite(folder, policy=allow(LOOSE))
    with pytest.raises(PolicyError, match=r"policy\.extensions: found 'marking_networks:build' of a loose file"):
        site.ask("query", plan=plan)
    assert not (folder / "imported").exists()
    site.restart(policy=allow({"path": LOOSE, "sha256": find_extension(LOOSE).sha256})).ask("query", plan=plan)
    assert (folder / "imported").exists()


def test_allowed_code_trains_and_is_scored(folder: Path) -> None:
    site = HospitalSite(folder, policy=allow(MODEL, {"path": LOSS, "version": "1.0"}))
    plan = make_plan(loss={LOSS: {"smoothing": 0.2}})
    model = Network(Plan.model_validate(PLAN | plan)).pack()
    assert site.ask("query", plan=plan).has_content()
    assert site.ask("train", model, plan, round=1).has_content()
    assert site.ask("evaluate", model, plan, round=1, part="validation").has_content()
    assert site.events("refused") == []
    (policy,) = site.events("policy")
    assert [entry["path"] for entry in policy["extensions"]] == [MODEL, LOSS]


@pytest.mark.parametrize("entry", [{"version": "0.9"}, {"sha256": "0" * 64}])
def test_policy_may_insist_on_a_version_or_a_file(folder: Path, entry: dict[str, str]) -> None:
    site = HospitalSite(folder, policy=allow({"path": MODEL, **entry}))
    ((key, value),) = entry.items()
    told = {"version": "version 0.9", "sha256": "SHA-256 000000000000"}[key]
    with pytest.raises(PolicyError, match=rf"allowed '{MODEL}', {told}\. "):
        site.ask("query", plan=make_plan())
    assert value
    assert not [name for name in sys.modules if name.startswith(PACKAGE)]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"version": "2.0"}, r"Found here: .* of example-extension 1\.0, .*Wanted: .* 2\.0, .*Install the version"),
        ({"sha256": "0" * 64}, r"Found here: .*Wanted: .*SHA-256 000000000000.* the file differs"),
    ],
)
def test_other_code_than_the_servers_is_not_imported(folder: Path, change: dict[str, str], problem: str) -> None:
    plan = make_plan()
    plan["extensions"][0] |= change
    with pytest.raises(WireError, match=problem) as caught:
        HospitalSite(folder, policy=allow(MODEL)).ask("query", plan=plan)
    assert len(str(caught.value).splitlines()) == 1
    assert not [name for name in sys.modules if name.startswith(PACKAGE)]


def test_code_that_is_not_installed_is_named(folder: Path) -> None:
    plan = make_plan()
    plan["model"] = {"name": "absent_package.networks:build"}
    plan["extensions"][0]["path"] = plan["model"]["name"]
    site = HospitalSite(folder, policy=allow(plan["model"]["name"]))
    with pytest.raises(WireError, match=r"is not installed here.*Wanted: .*example-extension 1\.0"):
        site.ask("query", plan=plan)


def test_what_the_plan_does_not_describe_is_refused() -> None:
    policy = PolicyConfig.model_validate({"extensions": [MODEL, LOSS]})
    plan = Plan.model_validate(PLAN | {"model": {"name": MODEL}, "loss": {"os:system": 1.0}})
    (refusal,) = check_extensions(policy, plan)
    assert refusal.found == f"'{MODEL}', not described; 'os:system', not described"
    assert refusal.allowed == f"'{MODEL}'; '{LOSS}'"


def test_second_model_is_looked_at_too(folder: Path) -> None:
    site = HospitalSite(folder)
    described = make_plan(LOOSE)
    plan = {"student": {"model": described["model"]}, "extensions": described["extensions"]}
    small = make_student_plan(Plan.model_validate(PLAN | plan)).model_dump(mode="json")
    assert small["extensions"] == described["extensions"]
    other = {"name": "student", "plan": small, "sha256": "0" * 64}
    with pytest.raises(PolicyError, match=r"policy\.extensions"):
        site.ask("evaluate", site.model, plan, round=1, part="validation", other=other)
    assert not (folder / "imported").exists()


def test_what_failing_code_says_stays_at_the_site(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    site = HospitalSite(folder, policy=allow({"path": LOOSE, "sha256": find_extension(LOOSE).sha256}))
    plan = make_plan(LOOSE)
    plan["model"]["fail"] = True
    with pytest.raises(WireError) as caught:
        site.ask("query", plan=plan)
    assert describe_error(caught.value).endswith("its code from outside fedmed has failed; the site's log says more.")
    assert "patient-17" not in str(caught.value)
    assert "patient-17" in caplog.text


def test_released_model_runs_no_code_either_that_is_not_allowed(folder: Path) -> None:
    config = make_kit(folder / "kit")
    manifest = Manifest(
        "0" * 64, {"plan": PLAN | make_plan(LOOSE), "chosen_round": 1}, "run1", "0" * 64, {}, None, {}, {}
    )
    with pytest.raises(PolicyError, match=r"policy\.extensions"):
        make_own_model(config, manifest)
    assert not (folder / "imported").exists()


def test_own_source_needs_no_entry_and_is_no_permission_for_a_plan(folder: Path) -> None:
    data = {"source": IMAGES, "image_size": 16, "options": {"sites": 1, "images_per_site": 60}}
    site = HospitalSite(folder, [], data=data)
    plan = {"classes": ["horizontal", "vertical"]}
    assert site.ask("query", plan=plan).has_content()
    with pytest.raises(PolicyError, match=r"policy\.extensions"):
        site.ask("query", plan=plan | make_plan(IMAGES))
    (folder / "away").mkdir()
    away = HospitalSite(folder / "away", [], data=data | {"source": "absent_package.images:read"})
    with pytest.raises(DataError, match=r"data\.source: .*is not installed here") as caught:
        away.ask("query", plan=plan)
    assert "absent" not in describe_error(caught.value)
