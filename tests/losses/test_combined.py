import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from fedmed.errors import ConfigError
from fedmed.losses import CombinedLoss, build_loss, cws_loss, list_losses

COUNTS = [50, 10, 0, 3]
NAMES = ["balanced_softmax", "ce", "class_balanced_ce", "cws", "focal", "logit_adjustment"]


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.normal(size=(16, 4)), dtype=torch.float32, requires_grad=True)
    return logits, torch.tensor(rng.integers(0, 4, 16))


def value_and_gradient(loss, batch):
    logits, target = batch
    value = loss(logits, target)
    return value.detach(), torch.autograd.grad(value, logits)[0]


def test_all_terms_are_listed():
    assert list_losses() == NAMES


@pytest.mark.parametrize("terms", [{"ce": 1, "cws": 0}, {"cws": {"weight": 0.0}, "ce": 1.0}, {"ce": {}}])
def test_a_term_of_weight_zero_leaves_cross_entropy_bit_for_bit(terms, batch):
    value, gradient = value_and_gradient(build_loss(terms, COUNTS), batch)
    expected, expected_gradient = value_and_gradient(cross_entropy, batch)
    assert torch.equal(value, expected)
    assert torch.equal(gradient, expected_gradient)


def test_a_term_of_weight_zero_is_not_computed():
    assert len(build_loss({"ce": 1.0, "cws": 0, "focal": 0.0}, COUNTS).terms) == 1


def test_terms_are_weighted_and_have_their_options(batch):
    loss = build_loss({"ce": 2, "cws": {"weight": 0.5, "absent": "present", "form": "lse", "eps": 1e-6}}, COUNTS)
    assert isinstance(loss, CombinedLoss)
    expected = 2 * cross_entropy(*batch) + 0.5 * cws_loss(*batch, "present", "lse")
    assert loss(*batch).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("counts", [COUNTS, [0, 0, 0, 0], [1, 1, 1, 1]])
def test_every_term_is_finite_whatever_the_counts(name, counts, batch):
    value, gradient = value_and_gradient(build_loss({name: 1.0}, counts), batch)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("name", "options"),
    [("focal", {"gamma": 0.5}), ("class_balanced_ce", {"beta": 0.9}), ("logit_adjustment", {"tau": 2}), ("ce", {})],
)
def test_options_reach_their_term(name, options, batch):
    default, changed = (build_loss({name: o}, COUNTS)(*batch).item() for o in ({}, options))
    assert (default == changed) == (name == "ce")


def test_balanced_softmax_is_logit_adjustment_with_tau_one(batch):
    a, b = (build_loss(t, COUNTS)(*batch) for t in ({"balanced_softmax": 1}, {"logit_adjustment": {"tau": 1.0}}))
    assert torch.equal(a, b)


def test_nothing_of_a_loss_is_in_its_state():
    loss = build_loss(dict.fromkeys(NAMES, 1.0), COUNTS)
    assert list(loss.state_dict()) == []
    assert list(loss.parameters()) == []


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"crossentropy": 1.0}, "no loss 'crossentropy'"),
        ({"focl": 1.0}, "Did you mean 'focal'"),
        ({7: 1.0}, "no loss '7'"),
        ({"ce": 1.0, "focal": {"weight": 0, "alpha": 1}}, "no option 'alpha'"),
        ({"cws": {3: 1}}, "no option '3'"),
        ({"ce": {"beta": 1}}, "Allowed: none"),
        ({"ce": -1.0}, "The weight of 'loss.ce' is -1.0"),
        ({"ce": math.nan}, "finite number from 0"),
        ({"ce": math.inf}, "finite number from 0"),
        ({"ce": True}, "finite number from 0"),
        ({"ce": "1"}, "finite number from 0"),
        ({"ce": None}, "finite number from 0"),
        ({"ce": {"weight": [1]}}, "finite number from 0"),
        ({"ce": 0, "cws": 0}, "no term has a weight above 0"),
        ({}, "no term has a weight above 0"),
        ("ce", "Needed: a weight for each term"),
        ({"cws": {"absent": "none"}}, "'loss.cws' cannot be built. 'absent'"),
        ({"focal": {"gamma": -2}}, "'loss.focal' cannot be built. 'gamma' is -2"),
        ({"class_balanced_ce": {"beta": 1}}, "'beta' is 1"),
    ],
)
def test_settings_that_are_not_allowed_are_refused(terms, message):
    with pytest.raises(ConfigError, match=message):
        build_loss(terms, COUNTS)


def train_linear_model(terms, seed):
    """Macro recall on balanced test data of a linear model trained on a long-tailed mixture of three Gaussians."""
    rng = np.random.default_rng(seed)
    centres, counts = np.array([[0.0, 0.0], [1.5, 0.0], [0.0, 1.5]]), [400, 30, 10]
    y, y_test = np.repeat(np.arange(3), counts), np.repeat(np.arange(3), 500)
    x, x_test = (torch.tensor(centres[t] + rng.normal(size=(len(t), 2)), dtype=torch.float32) for t in (y, y_test))
    target = torch.tensor(y)
    weight = torch.zeros(3, 3, requires_grad=True)
    loss, optimizer = build_loss(terms, counts), torch.optim.SGD([weight], lr=0.5)
    for _ in range(150):
        batch = torch.tensor(rng.integers(0, len(y), 64))
        optimizer.zero_grad()
        loss(torch.cat([x[batch], torch.ones(64, 1)], dim=1) @ weight, target[batch]).backward()
        optimizer.step()
    predicted = (torch.cat([x_test, torch.ones(1500, 1)], dim=1) @ weight).argmax(dim=1).numpy()
    return np.mean([(predicted[y_test == k] == k).mean() for k in range(3)])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cws_beside_cross_entropy_does_not_lower_the_macro_recall(seed):
    alone, beside = train_linear_model({"ce": 1.0}, seed), train_linear_model({"ce": 1.0, "cws": 1.0}, seed)
    assert beside >= alone
