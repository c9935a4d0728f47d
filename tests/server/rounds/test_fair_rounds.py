"""Whole federations under each rule for fairness, in this process."""

import functools

import pytest
from flwr.app import Message

from fedmed.errors import FederationError
from fedmed.protocol.messages import MODEL, REPORT, make_content, read_model, read_values
from fedmed.storage.history import read_history
from server import federation as federation_app
from tests.support.federation import is_training
from tests.support.fopro import make_fopro

RULES = {
    "q_fedavg": {"kind": "q_fedavg", "q": 1.0},
    "agnostic": {"kind": "agnostic", "step": 0.5},
    "group_minimax": {"kind": "group_minimax", "attribute": "sex", "step": 0.5},
    "fairfed": {"kind": "fairfed", "attribute": "sex", "figure": "gap_accuracy"},
    "gap_to_local": {"kind": "gap_to_local"},
    "divergence": {"kind": "divergence"},
}


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """Spares the time for what comes after the rounds."""
    monkeypatch.setattr(federation_app, "write_final_report", lambda *arguments: None)


@pytest.fixture
def make_federation(make_federation):
    """Make federations that tell patient groups apart."""
    return functools.partial(make_federation, fairness={})


def settings_of(rule):
    attributes = ["sex"] if "attribute" in RULES[rule] else []
    return {
        "aggregation": {"fair": RULES[rule]},
        "benefit": rule == "gap_to_local",
        "calibrate": False,
        "fairness": {"attributes": attributes},
    } | ({"fopro": make_fopro()} if rule == "divergence" else {})


def run_with_a_boast(federation, **told):
    """Run with a first site that tells something else in training, and return its line of the first round."""

    def boast(site, request, reply):
        if site == federation.sites[0] and is_training(request):
            values = read_values(reply, REPORT) | told
            return Message(make_content(REPORT, values, model=read_model(reply)), reply_to=request)
        return reply

    federation.go(federation.grid(boast))
    return read_history(federation.run.history_file)[0].participation[0]


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_trains_and_goes_on_where_it_stopped(make_federation, rule):
    """The weights are in the history, and what a rule remembers survives a kill: a resumed run has the same bits."""
    undisturbed, killed = (make_federation(name, **settings_of(rule)) for name in ("undisturbed", "killed"))
    undisturbed.go()

    killed.go_until(3)
    killed.go()
    assert killed.final_model() == undisturbed.final_model()
    records = read_history(undisturbed.run.history_file)
    for record in records:
        weights = record.weights
        assert set(weights) == set(undisturbed.sites)
        assert all(weight >= 0 for weight in weights.values())
        total = sum(weights.values())
        assert 0 < total < 1 if rule == "q_fedavg" else total == pytest.approx(1.0)
    assert [record.weights for record in read_history(killed.run.history_file)] == [r.weights for r in records]


def test_rules_give_other_models_than_fedavg(make_federation):
    models = {}
    for rule in (None, "agnostic", "group_minimax"):
        federation = make_federation(str(rule), **(settings_of(rule) if rule else {"benefit": False}))
        federation.go()
        models[rule] = federation.final_model()
    assert len(set(models.values())) == 3


def test_a_loss_that_cannot_be_true_costs_a_site_its_part(make_federation):
    federation = make_federation(**settings_of("agnostic"))

    line = run_with_a_boast(federation, start_loss=-5.0)
    assert line.status == "quarantined"
    assert "no number from 0" in str(line.reason)


@pytest.mark.parametrize("size_power", [0.0, 1.0])
def test_weights_by_divergence_are_those_of_the_numbers_that_the_sites_told(make_federation, size_power):
    """Each site has n images and tells r: n^a r^b, divided by the sum; with a = 1, b = 0 FedAvg."""
    told = {}

    def look(site, request, reply):
        if request.metadata.message_type == "train" and MODEL in reply.content:
            told[site] = read_values(reply, REPORT)
        return reply

    rule = {"kind": "divergence", "size_power": size_power, "divergence_power": 1 - size_power, "floor": 1}
    federation = make_federation(**settings_of("divergence") | {"rounds": 1, "aggregation": {"fair": rule}})
    federation.go(federation.grid(look))
    numbers = {site: values["num_images" if size_power else "mas_weight"] for site, values in told.items()}
    total = sum(numbers.values())
    weights = read_history(federation.run.history_file)[0].weights
    assert weights == pytest.approx({site: number / total for site, number in numbers.items()})
    assert len({values["mas_weight"] for values in told.values()}) == 3
    assert all(0 < values["mas_weight"] <= 1 for values in told.values())


def test_a_divergence_that_cannot_be_true_costs_a_site_its_part(make_federation):
    federation = make_federation(**settings_of("divergence") | {"rounds": 1})

    line = run_with_a_boast(federation, mas_weight=50.0)
    assert line.status == "quarantined"
    assert "'mas_weight'" in str(line.reason)


def test_an_attribute_that_no_site_has_stops_the_run_at_the_start(make_federation):
    rule = {"kind": "group_minimax", "attribute": "gender"}
    federation = make_federation(aggregation={"fair": rule}, fairness={"attributes": None})
    with pytest.raises(FederationError, match=r"'gender', which no site tells apart\. Allowed: .*sex"):
        federation.go()
