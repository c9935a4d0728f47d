"""The models with which a site compares the federation's, each against the same thing done by hand."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import batch_norm

from client.answers.compared_models import compute_compared_logits
from client.answers.own_model import LocalTraining
from client.guard.requests import Request
from client.hospital.site_data import Site, open_site
from fedmed.config import Plan
from fedmed.data import make_eval_transform
from fedmed.metrics.site_tables import BATCH_NORM, COMPARED_MODELS, FINE_TUNED, LOCAL
from fedmed.seeding import seeded_torch
from fedmed.training.evaluate import compute_logits
from fedmed.training.fit import fit
from fedmed.training.network import Network
from tests.support.federation import Federation

Make = Callable[..., Federation]


class Case:
    """A site that is asked to compare, with some final model."""

    def __init__(self, federation: Federation) -> None:
        self.site: Site = open_site(federation.grid()._configs[1])
        self.plan: Plan = federation.config.make_plan()
        self.network = self.make_final()
        self.request = Request(kind="evaluate", plan=self.plan, round=2, part="test", compare=list(COMPARED_MODELS))

    def make_final(self) -> Network:
        network = Network(self.plan)
        with seeded_torch(0, "tests", "final"), torch.no_grad():
            for parameter in network.model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return network

    def compare(self, *names: str, site: Site | None = None) -> dict[str, torch.Tensor]:
        return compute_compared_logits(
            self.network, self.request.model_copy(update={"compare": names}), site or self.site
        )

    def logits(self, network: Network) -> torch.Tensor:
        return compute_logits(network.model, self.site.data.test, self.plan, device=self.site.device)


@pytest.fixture
def case(make_federation: Make) -> Case:
    return Case(make_federation(rounds=2, training={"optimizer": {"lr": 0.05}, "batch_size": 8, "proximal_mu": 0.3}))


def test_batch_norm_is_that_of_the_training_images(case: Case) -> None:
    """The tiny network's only BatchNorm follows a convolution: its mean and variance are computed here at once."""
    found = case.compare(BATCH_NORM)
    model = case.make_final().model
    transform = make_eval_transform(case.plan.augmentation, case.plan.image_size)
    train, test = case.site.data.train, case.site.data.test
    with torch.no_grad():
        x_BCHW = model[0](transform(train.images(range(len(train)))))
        mean, variance = x_BCHW.mean((0, 2, 3)), x_BCHW.var((0, 2, 3))
        tested = model[0](transform(test.images(range(len(test)))))
        expected = model[2:](batch_norm(tested, mean, variance, model[1].weight, model[1].bias, eps=model[1].eps))
    torch.testing.assert_close(found[BATCH_NORM], expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[BATCH_NORM], case.logits(case.make_final()), atol=1e-3)


def test_fine_tuned_is_one_more_round_like_the_last(case: Case) -> None:
    """Whatever round was chosen. Cosine over two epochs: the second has half of the base rate."""
    found = compute_compared_logits(
        case.network, case.request.model_copy(update={"round": 1, "compare": [FINE_TUNED]}), case.site
    )
    network = case.make_final()
    training = case.plan.training.model_copy(update={"proximal_mu": 0.0})
    plan = case.plan.model_copy(update={"training": training})
    result = fit(
        network.model, case.site.data.train, plan, site=f"{case.site.name} fine-tuned", round_number=2,
        device=case.site.device,
    )  # fmt: skip
    assert result.learning_rate == pytest.approx(0.025)
    assert found[FINE_TUNED].equal(case.logits(network))
    assert not found[FINE_TUNED].equal(case.logits(case.make_final()))


def test_local_is_the_best_of_its_own(case: Case) -> None:
    training = LocalTraining(case.site, case.plan)
    training.train(Network(case.plan).pack(), 2, 1e6)
    found = case.compare(LOCAL)
    network = Network(case.plan)
    assert training.load_best(network) is not None
    assert found[LOCAL].equal(case.logits(network))


def test_local_without_its_full_budget_is_left_out(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    assert set(case.compare(*COMPARED_MODELS)) == {BATCH_NORM, FINE_TUNED}
    assert "no sound model of its own" in caplog.text
    LocalTraining(case.site, case.plan).train(Network(case.plan).pack(), 1, 1e6)
    assert case.compare(LOCAL) == {}
    assert "has had 1 of 2 rounds" in caplog.text


def test_each_begins_with_the_federations_model(case: Case) -> None:
    """One after the other or each alone: the same; and the network is the federation's again."""
    LocalTraining(case.site, case.plan).train(Network(case.plan).pack(), 2, 1e6)
    together = case.compare(*COMPARED_MODELS)
    assert set(together) == set(COMPARED_MODELS)
    for name in COMPARED_MODELS:
        assert case.compare(name)[name].equal(together[name]), name
    expected = case.make_final().model.state_dict()
    for name, tensor in case.network.model.state_dict().items():
        assert tensor.equal(expected[name]), name


def test_nothing_is_compared_where_the_policy_says_so(case: Case) -> None:
    policy = case.site.policy.model_copy(update={"benefit": False})
    assert case.compare(*COMPARED_MODELS, site=replace(case.site, policy=policy)) == {}


def test_no_batch_norm_no_comparison(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.answers.compared_models.tracked_norms", lambda _: {})
    assert case.compare(BATCH_NORM) == {}


def test_site_without_training_images(case: Case) -> None:
    from fedmed.data import ImagePart

    empty = ImagePart((), [], {}, case.site.data.train._reader)
    site = replace(case.site, data=replace(case.site.data, train=empty))
    assert case.compare(BATCH_NORM, FINE_TUNED, site=site) == {}
