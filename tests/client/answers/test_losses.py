"""What a site tells and applies for a fair aggregation, message by message."""

from collections import Counter

import pytest
import torch
from torch.nn.functional import cross_entropy

from client.answers.losses import weigh_images
from client.hospital.site_data import open_site
from fedmed.config import FoproConfig, Plan
from fedmed.distillation.network import build_network, get_network
from fedmed.errors import WireError
from fedmed.protocol.messages import REPORT, read_model, read_values
from fedmed.training.evaluate import compute_logits
from tests.client.support.hospital import CLASSES, HospitalSite, make_rows
from tests.client.test_site import Site
from tests.support.fopro import make_fopro


def by_group(attribute):
    rule = {"kind": "group_minimax", "attribute": attribute}
    return {"aggregation": {"fair": rule}, "fairness": {"attributes": ["sex", "age_band"]}}


def losses_of(site, plan):
    part = open_site(site.config).data.train
    network = get_network(plan)
    network.fill(site.model, {})
    logits = compute_logits(network.model, part, plan, device=torch.device("cpu"))
    return part, cross_entropy(logits, part.labels, reduction="none").double()


def test_nothing_is_told_where_nothing_is_asked_for(make_federation):
    site = Site(make_federation())
    told = read_values(site.ask("train", site.model, round=1), REPORT)
    assert set(told) == {"num_images", "loss", "learning_rate", "train_s"}


def test_the_loss_before_training_is_that_of_the_global_model(make_federation):
    site = Site(make_federation(aggregation={"fair": {"kind": "agnostic"}}))
    told = read_values(site.ask("train", site.model, round=1), REPORT)
    _, losses = losses_of(site, site.plan)
    assert told["start_loss"] == pytest.approx(losses.mean().item())


def test_asking_for_losses_does_not_change_the_training(make_federation):
    plain, asked = (Site(make_federation(name, **settings)) for name, settings in
                    (("plain", {}), ("asked", {"aggregation": {"fair": {"kind": "q_fedavg"}}})))  # fmt: skip
    updates = [read_model(site.ask("train", site.model, round=1)) for site in (plain, asked)]
    assert updates[0] == updates[1]


def test_of_the_distance_from_the_teacher_one_number_is_told(make_federation):
    rule = {"aggregation": {"fair": {"kind": "divergence"}}}
    plain, asked = (
        Site(make_federation(name, fopro=make_fopro(), **settings))
        for name, settings in (("plain", {}), ("asked", rule))
    )
    answers = [site.ask("train", site.model, round=1) for site in (plain, asked)]
    told = [read_values(answer, REPORT) for answer in answers]
    assert set(told[1]) == set(told[0]) | {"mas_weight"}
    assert isinstance(told[1]["mas_weight"], float)
    assert 0 < told[1]["mas_weight"] <= 1
    assert read_model(answers[0]) == read_model(answers[1])


@pytest.mark.parametrize(("k", "is_told"), [(3, True), (1000, False)])
def test_a_hospital_with_few_images_tells_no_distance(tmp_path, k, is_told):
    site = hospital(tmp_path, 0, suppression={"k": k, "k_row": 1})
    fopro = FoproConfig.model_validate(make_fopro()).make_plan().model_dump()
    plan = {"divergence": "plain", "fopro": fopro}
    model = build_network(Plan.model_validate(site.plan.model_dump() | plan)).pack()
    told = read_values(site.ask("train", model, plan, round=1), REPORT)
    assert ("mas_weight" in told) == is_told
    (sent,) = [part for part in site.events("sent")[-1]["parts"] if part["name"] == REPORT]
    assert ("mas_weight" in sent["keys"]) == is_told


@pytest.mark.parametrize("attribute", ["sex", "sex x age_band"])
def test_losses_by_group_add_up(make_federation, attribute):
    site = Site(make_federation(**by_group(attribute)))
    told = read_values(site.ask("train", site.model, round=1), REPORT)["group_losses"]
    part, losses = losses_of(site, site.plan)
    groups = part.attributes["sex"]
    if attribute != "sex":
        groups = [f"{sex}, {age}" for sex, age in zip(groups, part.attributes["age_band"], strict=True)]
    assert {group: n for group, (n, _) in told.items()} == Counter(groups)
    for group, (_, total) in told.items():
        own = [loss for loss, name in zip(losses.tolist(), groups, strict=True) if name == group]
        assert total == pytest.approx(sum(own))


def test_weights_of_groups_reach_their_images(make_federation):
    site = Site(make_federation(**by_group("sex")))
    opened = open_site(site.config)
    weights = weigh_images(site.plan, opened, {"female": 0.5})
    assert weights.tolist() == [0.5 if sex == "female" else 1.0 for sex in opened.data.train.attributes["sex"]]
    assert weigh_images(site.plan, opened, {}) is None


def test_weights_of_groups_change_the_update(make_federation):
    site = Site(make_federation(**by_group("sex")))
    updates = [
        read_model(site.ask("train", site.model, round=1, group_weights=weights))
        for weights in ({}, {"female": 1.0, "male": 1.0}, {"female": 0.1, "male": 1.9})
    ]
    assert updates[2] != updates[0]
    assert len(updates[1]) == len(updates[0])


@pytest.mark.parametrize("weights", [{"female": -1.0}, {"female": 1e9}, {"female": "1"}, {"female": True}, [1.0]])
def test_weights_that_cannot_be_are_refused(make_federation, weights):
    site = Site(make_federation(**by_group("sex")))
    with pytest.raises(WireError, match="weight"):
        site.ask("train", site.model, round=1, group_weights=weights)


def test_weights_that_the_plan_does_not_foresee_are_refused(make_federation):
    site = Site(make_federation())
    with pytest.raises(WireError, match=r"'group_weights'\. Allowed: in a training whose plan"):
        site.ask("train", site.model, round=1, group_weights={"female": 1.0})


BY_WARD = {"losses": "groups", "loss_attribute": "ward"}


def hospital(tmp_path, num_other, **policy):
    """A hospital whose patients are 'a', but for a few images of 'b'."""
    rows = make_rows()
    for number, row in enumerate(rows):
        row["ward"] = "b" if number % len(rows) < num_other else "a"
    data = {
        "source": "image_table",
        "root": "images",
        "group_column": "patient",
        "classes": CLASSES,
        "image_size": 16,
        "cache_mib": 0,
        "attribute_columns": ["ward"],
    }
    return HospitalSite(tmp_path, rows, data=data, policy={"suppression": {"k": 6, "k_row": 3}} | policy)


def test_a_hospital_holds_small_groups_back(tmp_path):
    """Of 70 images 4 are of ward b: fewer than k = 6 train, so neither group may be told."""
    site = hospital(tmp_path, 4)
    told = read_values(site.ask("train", site.model, BY_WARD, round=1), REPORT)
    assert told["group_losses"] == {}


def test_a_hospital_tells_large_groups(tmp_path):
    site = hospital(tmp_path, 30)
    told = read_values(site.ask("train", site.model, BY_WARD, round=1), REPORT)
    assert set(told["group_losses"]) == {"a", "b"}
    assert sum(n for n, _ in told["group_losses"].values()) == told["num_images"]


def test_a_hospital_without_the_attribute_tells_nothing_and_trains(tmp_path):
    site = hospital(tmp_path, 30)
    plan = {"losses": "groups", "loss_attribute": "sex"}
    told = read_values(site.ask("train", site.model, plan, round=1, group_weights={"female": 2.0}), REPORT)
    assert "group_losses" not in told
