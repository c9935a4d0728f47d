"""Nothing but the greeting is answered before a person has approved the plan; and then nothing beyond it."""

from pathlib import Path
from typing import Any

import pytest

from client.guard.bounds import check_bounds
from client.hospital.bounded import bound_batch, bound_groups
from client.hospital.site_data import open_site
from fedmed.config import Plan
from fedmed.config.client import PolicyConfig
from fedmed.errors import PolicyError
from fedmed.protocol.kinds import KINDS
from fedmed.protocol.messages import REPORT, read_values
from tests.client.support.hospital import PLAN, POLICY, HospitalSite
from tests.support.approval import approve

MAIN = Plan.model_validate(PLAN)


@pytest.fixture
def site(tmp_path: Path) -> HospitalSite:
    hospital = HospitalSite(tmp_path)
    hospital.approves = False
    return hospital


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in {"release", "distil"}])
def test_without_an_approval_nothing_is_answered(site: HospitalSite, kind: str) -> None:
    values = {"round": 1, "part": "validation"} if kind in {"evaluate", "figure", "alert"} else {"round": 1}
    plan = {"benefit": True, "choice": "figure" if kind == "figure" else "tables"}
    plan |= {"operating": {"alert_classes": ["b"], "sensitivity": 0.9}} if kind == "alert" else {}
    model = None if kind == "query" else site.model
    with pytest.raises(PolicyError) as caught:
        site.ask(KINDS[kind].flower, model, plan, **values)
    sha256 = Plan.model_validate(PLAN | plan).sha256
    line = f"this site has not approved the plan {sha256} yet; a person there types flower-client --approve."
    assert str(caught.value) == line
    assert caught.value.shareable
    (refused,) = site.events("refused")
    assert refused["refusals"][0]["key"] == "approved_plan"
    assert site.events("sent")[0]["text"].endswith(line)
    assert not (site.state / "runs").exists()


def test_a_running_site_goes_on_as_soon_as_somebody_has_approved(site: HospitalSite) -> None:
    with pytest.raises(PolicyError, match="has not approved the plan"):
        site.ask("query")
    approve(site.state, MAIN)
    assert read_values(site.ask("query"), REPORT)["site"] == "north"
    approve(site.state, PLAN | {"rounds": 9})  # a changed study is a new approval, and takes the first one back
    with pytest.raises(
        PolicyError, match=rf"The plan of this run was {Plan.model_validate(PLAN | {'rounds': 9}).sha256}"
    ):
        site.ask("query")


CHANGES: dict[str, dict[str, Any]] = {
    "rate": {"training": {"optimizer": {"lr": 1e-9}, "batch_size": 8}},
    "momentum": {"training": {"optimizer": {"lr": 0.05, "momentum": 0.0}, "batch_size": 8}},
    "batch": {"training": {"optimizer": {"lr": 0.05}, "batch_size": 40}},
    "more rounds": {"rounds": 5},
    "groups": {"losses": "groups", "loss_attribute": "site"},
    "run": {"run_id": "run2"},
    "classes": {"fairness": {"attributes": ["sex"]}},
    "attempts": {"attempts": 4},
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_plan_is_refused_and_written_down(site: HospitalSite, name: str) -> None:
    approve(site.state, MAIN)
    for kind, values in (("query", {}), ("train", {"round": 1})):
        with pytest.raises(PolicyError, match="has not approved the plan"):
            site.ask(kind, None if kind == "query" else site.model, CHANGES[name], **values)
    assert len(site.events("refused")) == 2
    site.ask("train", site.model, round=1)


BOUNDS: dict[str, tuple[dict[str, Any], str]] = {
    "tiny rate": ({"training": {"optimizer": {"lr": 1e-9}}}, "a learning rate of 1e-09, allowed 1e-05 to 10"),
    "huge rate": ({"training": {"optimizer": {"lr": 1e6}}}, "a learning rate of 1e"),
    "only a warm-up": ({"training": {"schedule": {"warmup_epochs": 10**9}}}, "a learning rate of"),
    "mostly a warm-up": ({"training": {"schedule": {"warmup_epochs": 3}}}, "3 epochs of warm-up of 4"),
    "steps to nothing": (
        {"training": {"schedule": {"name": "step", "milestones": [0.25], "gamma": 1e-9}}},
        "a learning rate that falls to",
    ),
    "tiny loss": ({"loss": {"ce": 1e-6}}, "the weight 1e-06"),
    "huge loss": ({"loss": {"focal": {"weight": 1e30, "gamma": 50}}}, "the weight 1e+30"),
    "focal": ({"loss": {"focal": {"gamma": 50}}}, "gamma 50, allowed 0 to 10"),
    "tiny rate and loss": ({"training": {"optimizer": {"lr": 1e-4}}, "loss": {"ce": 0.01}}, "scaled to 0.01"),
    "gradients cut away": ({"training": {"clip_norm": 1e-9}}, "gradients cut to 1e-09"),
    "momentum": ({"training": {"optimizer": {"momentum": 0.99999}}}, "training.optimizer.momentum 0.99999"),
    "pull": ({"training": {"proximal_mu": 1e9}}, "training.proximal_mu 1e+09"),
    "decay": ({"training": {"optimizer": {"weight_decay": 100}}}, "training.optimizer.weight_decay 100"),
    "crossing": ({"fairness": {"intersections": [["sex", "age", "ward"]]}}, "the crossing of 3 attributes"),
    "losses by a crossing": ({"losses": "groups", "loss_attribute": "a x b x c"}, "the crossing of 3 attributes"),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_what_would_make_an_update_tell_more_is_refused_even_if_approved(name: str) -> None:
    change, expected = BOUNDS[name]
    refusals = list(map(str, check_bounds(PolicyConfig(), Plan.model_validate(PLAN | change))))
    assert any(expected in refusal for refusal in refusals), refusals


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"training": {"optimizer": {"lr": 1e-5}}},
        {"training": {"schedule": {"name": "step"}}},
        {"training": {"schedule": {"name": "official"}}},
        {"training": {"schedule": {"warmup_epochs": 2}}},
        {"training": {"optimizer": {"name": "adamw", "lr": 1e-3}, "clip_norm": 1.0, "proximal_mu": 0.1}},
        {"loss": {"ce": 1.0, "cws": {"weight": 0.5, "absent": "present"}, "focal": 0}},
        {"fairness": {"intersections": [["sex", "age"]]}},
    ],
)
def test_what_studies_use_is_within_the_bounds(change: dict[str, Any]) -> None:
    assert check_bounds(PolicyConfig(), Plan.model_validate(PLAN | change)) == []


SMALL = {"kind": "co_distillation", "model": {"name": "tiny", "width": 6}}
WORK: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "steps": (
        {"fopro": {"prompt": {"steps": 1000}}},
        {"fopro": {"prompt": {"steps": 1001}}},
        "found fopro.prompt.steps 1001, allowed up to 1000. Change fopro.prompt.steps in server.yaml",
    ),
    "first steps": (
        {"fopro": {"prompt": {"first_steps": 1000}}},
        {"fopro": {"prompt": {"first_steps": 10**9}}},
        "found fopro.prompt.first_steps 1000000000, allowed up to 1000.",
    ),
    "hidden": (
        {"fopro": {"prompt": {"hidden": 4096}}},
        {"fopro": {"prompt": {"hidden": 4097}}},
        "found fopro.prompt.hidden 4097, allowed up to 4096",
    ),
    "cache": (
        {"fopro": {"cache_mib": 16_384}},
        {"fopro": {"cache_mib": 16_385}},
        "found fopro.cache_mib 16385, allowed up to 16384",
    ),
    "attempts": ({"attempts": 10_000}, {"attempts": 10_001}, "found attempts 10001, allowed up to 10000"),
    "milestones": (
        {"training": {"schedule": {"name": "step", "milestones": [0.5] * 2}}},
        {"training": {"schedule": {"name": "step", "milestones": [0.5] * 101}}},
        "found training.schedule.milestones 101, allowed up to 100",
    ),
    "rounds of a small network": (
        {"student": SMALL | {"rounds": 1000}},
        {"student": SMALL | {"rounds": 1001}},
        "policy.max_rounds: found fopro.compression.rounds 1001, allowed up to 1000",
    ),
}


@pytest.mark.parametrize("name", WORK)
def test_a_plan_cannot_ask_for_any_amount_of_work(name: str) -> None:
    allowed, refused, expected = WORK[name]
    assert check_bounds(PolicyConfig(), Plan.model_validate(PLAN | allowed)) == []
    (refusal,) = check_bounds(PolicyConfig(), Plan.model_validate(PLAN | refused))
    assert expected in str(refusal)


@pytest.mark.parametrize(
    ("batch", "num_images", "most", "expected"),
    [(32, 100, 256, 32), (100_000, 100, 256, 50), (51, 100, 256, 50), (400, 1000, 256, 256), (8, 100, 4, 4)],
)
def test_a_batch_is_at_most_half_of_the_images(batch: int, num_images: int, most: int, expected: int) -> None:
    plan = Plan.model_validate(PLAN | {"training": {"batch_size": batch}})
    assert bound_batch(PolicyConfig(max_batch=most), plan, num_images).training.batch_size == expected


def test_a_site_trains_with_its_own_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from client import site as site_module

    site = HospitalSite(tmp_path)
    used: list[int] = []
    fit = site_module.fit

    def watch(model: Any, part: Any, plan: Plan, **options: Any) -> Any:
        used.append(plan.training.batch_size)
        return fit(model, part, plan, **options)

    monkeypatch.setattr(site_module, "fit", watch)
    half = open_site(site.config).count_patients("train") // 2
    site.ask("train", site.model, {"training": {"optimizer": {"lr": 0.05}, "batch_size": half + 1}}, round=1)
    assert used == [half]


def test_few_images_are_not_trained_on_and_both_sides_say_so(tmp_path: Path) -> None:
    site = HospitalSite(tmp_path, policy=POLICY | {"min_images": 50})
    assert len(open_site(site.config).data.train) < 50
    assert read_values(site.ask("train", site.model, round=1), REPORT) == {"declined": True}
    site.ask("evaluate", site.model, round=1, part="validation")
    enough = site.restart(policy={"min_images": len(open_site(site.config).data.train)})
    assert "loss" in read_values(enough.ask("train", site.model, round=2), REPORT)


def test_only_listed_attributes_and_crossings_are_told_apart() -> None:
    def bound(policy: dict[str, Any], asked: dict[str, Any] | None = None) -> tuple[Any, Any]:
        plan = Plan.model_validate(PLAN | ({} if asked is None else {"fairness": asked}))
        found = bound_groups(PolicyConfig.model_validate(policy), plan, ["sex", "age", "ward"]).fairness
        return found.attributes, found.intersections

    assert bound({}) == (None, "pairs")
    assert bound({"attributes": ["sex", "age"]}) == (["sex", "age"], [["sex", "age"]])
    assert bound({"attributes": []}) == ([], "none")
    assert bound({"crossings": [["age", "sex"]]}) == (["sex", "age", "ward"], [["sex", "age"]])
    assert bound({"crossings": []}) == (["sex", "age", "ward"], "none")
    assert bound({"attributes": ["ward"]}, {"attributes": ["sex"]}) == ([], "none")
    assert bound({"attributes": ["sex"]}, {"intersections": [["sex", "ward"]]}) == (["sex"], "none")
