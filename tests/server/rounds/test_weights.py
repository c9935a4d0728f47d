"""From what sites have told to the weights of their updates, by hand, and to the average."""

import json

import numpy as np
import pytest
import torch

from fedmed.aggregation import average_updates, make_rule
from fedmed.config import RunConfig
from fedmed.errors import FederationError
from fedmed.metrics.site_tables import FEDERATED, SITE_ATTRIBUTE, SiteTables
from fedmed.metrics.tables import tables_from_logits
from fedmed.storage.tensor_files import TensorFile
from server.rounds.updates import Update, UpdateCollector
from server.rounds.weights import to_weighted, weigh_updates
from tests.aggregation.support.updates import write_update

LR = {"optimizer": {"lr": 0.5, "momentum": 0.0}, "schedule": {"name": "constant"}}


def make_config(fair, weighting="images", **changes):
    return RunConfig(sites=2, rounds=4, training=LR, aggregation={"fair": fair, "weighting": weighting}, **changes)


def make_collector(folder, **sites):
    """Sites with 30, 10 and 10 images and whatever is given for each."""
    model = write_update(folder, "model", {"w": np.float32([0.0, 8.0])})
    collector = UpdateCollector(folder, TensorFile(model.path), {"a": 30, "b": 10, "c": 10}, frozenset({"w"}))
    for (name, told), images in zip(sites.items(), (30, 10, 10), strict=False):
        collector.updates[name] = Update(name, "accepted", images=images, update_norm=1.0, **told)
    return collector


def weigh(config, collector, state=None, *, round_number=1, before=None, local=None):
    return weigh_updates(
        config,
        collector,
        state or {},
        round_number=round_number,
        before=lambda: before or {},
        local_losses=lambda: local or {},
    )


@pytest.mark.parametrize(("weighting", "expected"), [("images", 0.75), ("equal", 0.5)])
def test_without_a_rule_weights_are_shares(tmp_path, weighting, expected):
    weights, state = weigh(make_config(None, weighting), make_collector(tmp_path, a={}, b={}))
    assert weights == {"a": expected, "b": 1 - expected}
    assert state == {}
    assert make_rule(None).to_request(state) == {}


def test_left_out_updates_have_no_weight(tmp_path):
    collector = make_collector(tmp_path, a={}, b={})
    collector.updates["b"].status = "quarantined"
    assert weigh(make_config(None), collector)[0] == {"a": 1.0}


def test_q_fedavg_with_the_rate_of_the_round(tmp_path):
    """q = 1, L = 1/0.5 = 2, norms 1: a_k = p_k F_k / (sum p (2 + F)) with F = (1, 5): (0.75, 1.25) / (2 + 2)."""
    collector = make_collector(tmp_path, a={"start_loss": 1.0}, b={"start_loss": 5.0})
    weights, _ = weigh(make_config({"kind": "q_fedavg", "q": 1.0}), collector)
    assert weights == pytest.approx({"a": 0.75 / 4, "b": 1.25 / 4})
    flat, _ = weigh(make_config({"kind": "q_fedavg", "q": 1.0, "lipschitz": 0.5}), collector)
    assert flat == pytest.approx({"a": 0.75 / 2.5, "b": 1.25 / 2.5})


def test_q_fedavg_allows_for_many_steps_with_momentum(tmp_path):
    """30 and 10 images in batches of at least 8: 3 steps and 1, on average 3/4 3 + 1/4 1 = 2.5.

    Two epochs at the rate 0.5 with momentum 0.5: 0.5 * 5 / 0.5 = 5. q = 1 and norms 1:
    a_k = p_k F_k / (sum p (1/5 + F)) with F = (1, 5): (0.75, 1.25) / (1/5 + 2).
    """
    config = make_config({"kind": "q_fedavg", "q": 1.0})
    config.training.batch_size, config.training.epochs_per_round, config.training.optimizer.momentum = 8, 2, 0.5
    collector = make_collector(tmp_path, a={"start_loss": 1.0}, b={"start_loss": 5.0})
    assert weigh(config, collector)[0] == pytest.approx({"a": 0.75 * 5 / 11, "b": 1.25 * 5 / 11})


FOPRO = {"fopro": {"teacher": {"name": "test_resnet", "source": "random", "layout": "timm"}}}


def test_divergence_with_a_silent_site(tmp_path):
    """30, 10 and 10 images; c tells nothing and has the mean (30 * 0.2 + 10 * 0.6) / 40 = 0.3.

    With a = 0, b = 1: 0.2 : 0.6 : 0.3.
    """
    rule = {"kind": "divergence", "size_power": 0.0, "floor": 0}
    collector = make_collector(tmp_path, a={"divergence": 0.2}, b={"divergence": 0.6}, c={})
    weights, state = weigh(make_config(rule, **FOPRO), collector)
    assert weights == pytest.approx({"a": 2 / 11, "b": 6 / 11, "c": 3 / 11})
    assert state == {}
    assert [update.site for update in to_weighted(collector, weights, collector.file_of("model"))] == ["a", "b", "c"]


def test_divergence_leaves_small_sites_their_share(tmp_path):
    """b and c have 10 images, below the floor of 20: the weights of FedAvg."""
    told = {"a": {"divergence": 0.2}, "b": {"divergence": 0.9}, "c": {"divergence": 0.9}}
    weights, _ = weigh(make_config({"kind": "divergence"}, **FOPRO), make_collector(tmp_path, **told))
    assert weights == pytest.approx({"a": 0.6, "b": 0.2, "c": 0.2})


def test_divergence_of_nobody_is_explained(tmp_path):
    with pytest.raises(FederationError, match=r"no site told its own in round 4\. .*images of one class"):
        weigh(make_config({"kind": "divergence"}, **FOPRO), make_collector(tmp_path, a={}, b={}), round_number=4)


def test_q_fedavg_counts_a_silent_site_as_the_mean(tmp_path):
    collector = make_collector(tmp_path, a={"start_loss": 2.0}, b={})
    weights, _ = weigh(make_config({"kind": "q_fedavg", "q": 1.0}), collector)
    assert weights["a"] / weights["b"] == pytest.approx(3.0)


@pytest.mark.parametrize("kind", ["q_fedavg", "agnostic", "gap_to_local"])
def test_a_rule_without_any_loss_stops_the_run(tmp_path, kind):
    with pytest.raises(FederationError, match=f"'{kind}' needs the sites' losses.*round 3"):
        weigh(make_config({"kind": kind}), make_collector(tmp_path, a={}, b={}), round_number=3)


def test_agnostic_remembers_sites_that_are_away(tmp_path):
    """Step log 2 and losses 1 and 2: b gains the factor 2 on a: 3:1 becomes 3:2, next to 3:4, then a is away."""
    config = make_config({"kind": "agnostic", "step": float(np.log(2))})
    collector = make_collector(tmp_path, a={"start_loss": 1.0}, b={"start_loss": 2.0})
    weights, state = weigh(config, collector)
    assert weights == pytest.approx({"a": 0.6, "b": 0.4})
    weights, state = weigh(config, collector, json.loads(json.dumps(state)))
    assert weights == pytest.approx({"a": 3 / 7, "b": 4 / 7})
    collector.updates["a"].status = "late"
    weights, state = weigh(config, collector, state)
    assert weights == {"b": 1.0}
    assert state["weights"] == pytest.approx({"a": 3 / 7, "b": 4 / 7})


def test_group_minimax_moves_groups_and_leaves_sites(tmp_path):
    """f: 20 images with the mean loss (10 + 10)/20 = 1, m: 20 with (20 + 20)/20 = 2; step log 2 makes 1:1 to 1:2."""
    config = make_config({"kind": "group_minimax", "attribute": "sex", "step": float(np.log(2))})
    assert config.model_copy(update={"classes": ["x", "y"]}).make_plan().loss_attribute == "sex"
    told = {"a": {"f": (15, 10.0), "m": (15, 20.0)}, "b": {"f": (5, 10.0), "m": (5, 20.0)}}
    collector = make_collector(tmp_path, **{site: {"group_losses": losses} for site, losses in told.items()})
    weights, state = weigh(config, collector)
    assert weights == {"a": 0.75, "b": 0.25}
    assert state["weights"] == pytest.approx({"f": 1 / 3, "m": 2 / 3})
    request = make_rule(config.aggregation.fair).to_request(state)
    assert request == {"group_weights": pytest.approx({"f": 2 / 3, "m": 4 / 3})}
    _, again = weigh(config, collector, json.loads(json.dumps(state)))
    assert again["weights"] == pytest.approx({"f": 1 / 5, "m": 4 / 5})


def test_group_minimax_without_groups_stops_the_run(tmp_path):
    config = make_config({"kind": "group_minimax", "attribute": "sex"})
    with pytest.raises(FederationError, match="needs losses by 'sex', and no site told any"):
        weigh(config, make_collector(tmp_path, a={}, b={}))


def site_tables(right):
    """Ten images of one class for each group, of which so many are right: ``{"f": 9, "m": 5}``."""
    answers = [(group, index < number) for group, number in right.items() for index in range(10)]
    logits = torch.tensor([[1.0, 0.0] if is_right else [0.0, 1.0] for _, is_right in answers])
    return tables_from_logits(logits, torch.zeros(len(answers), dtype=torch.int64), [group for group, _ in answers])


FAIRFED = {"kind": "fairfed", "attribute": "sex", "figure": "gap_accuracy", "beta": 1.0}
BEFORE = {
    site: SiteTables({FEDERATED: {SITE_ATTRIBUTE: site_tables({site: 5}), "sex": site_tables(right)}})
    for site, right in {"a": {"f": 9, "m": 5}, "b": {"f": 5, "m": 5}, "c": {"f": 9, "m": 5}}.items()
}


def test_fairfed_compares_each_site_with_all(tmp_path):
    """Gaps in accuracy: 0.4, 0 and 0.4; together f 23/30 and m 15/30: 4/15. Distances: 2/15, 4/15, 2/15; mean 8/45.

    Weights 1/3 each become 1/3 + 2/45, 1/3 - 4/45 and 1/3 + 2/45.
    """
    collector = make_collector(tmp_path, a={}, b={}, c={})
    weights, state = weigh(make_config(FAIRFED, "equal"), collector, before=BEFORE, round_number=2)
    assert weights == pytest.approx({"a": 17 / 45, "b": 11 / 45, "c": 17 / 45})
    assert state["weights"] == pytest.approx(weights)


def test_fairfed_begins_with_the_shares(tmp_path):
    weights, state = weigh(make_config(FAIRFED), make_collector(tmp_path, a={}, b={}))
    assert weights == {"a": 0.75, "b": 0.25}
    only_site = {"a": SiteTables({FEDERATED: {SITE_ATTRIBUTE: site_tables({"a": 5})}})}
    assert (
        weigh(make_config(FAIRFED), make_collector(tmp_path, a={}, b={}), state, round_number=2, before=only_site)[0]
        == weights
    )


def test_fairfed_goes_on_where_all_weight_is_away(tmp_path):
    collector = make_collector(tmp_path, a={}, b={})
    collector.updates["a"].status = "late"
    assert weigh(make_config(FAIRFED), collector, {"weights": {"a": 1.0, "b": 0.0}}, round_number=2)[0] == {"b": 1.0}


def test_gap_to_local_by_hand(tmp_path):
    """Gaps 1 - 0.5 and 2 - 0.5, mean 0.75: a 0.75 (1 + 2*0.5*(-0.25)), b 0.25 (1 + 2*0.5*0.75)."""
    collector = make_collector(tmp_path, a={"start_loss": 1.0}, b={"start_loss": 2.0})
    config = make_config({"kind": "gap_to_local", "strength": 0.5})
    weights, _ = weigh(config, collector, local={"a": 0.5, "b": 0.5})
    assert weights == pytest.approx({"a": 0.5625, "b": 0.4375})


def test_the_global_model_keeps_what_a_short_step_leaves(tmp_path):
    """w = (0, 8), a's 1 and 4, b's 2 and 0 with weights 0.2 and 0.3: 0.5 w + 0.2 a + 0.3 b = (0.8, 4.8)."""
    collector = make_collector(tmp_path, a={}, b={})
    model = tmp_path / "model.safetensors"
    write_update(tmp_path, "a", {"w": np.float32([1.0, 4.0])})
    write_update(tmp_path, "b", {"w": np.float32([2.0, 0.0])})
    updates = to_weighted(collector, {"a": 0.2, "b": 0.3}, model)
    assert [update.path.stem for update in updates] == ["model", "a", "b"]
    assert dict(average_updates(updates))["w"] == pytest.approx([0.8, 4.8])


def test_weights_of_zero_and_full_steps_leave_files_out(tmp_path):
    collector = make_collector(tmp_path, a={}, b={})
    updates = to_weighted(collector, {"a": 1.0, "b": 0.0}, tmp_path / "model.safetensors")
    assert [(update.site, update.weight) for update in updates] == [("a", 1.0)]


def test_integers_are_those_of_a_site_that_took_part(tmp_path):
    """The global model has counted 5 batches, sites go on from there."""
    model = write_update(tmp_path, "global", {"n": np.int64([5])}).path
    collector = make_collector(tmp_path, a={}, b={})
    for site, count in {"a": 15, "b": 10}.items():
        write_update(tmp_path, site, {"n": np.int64([count])})
    assert dict(average_updates(to_weighted(collector, {"a": 0.1, "b": 0.1}, model)))["n"] == [10]
