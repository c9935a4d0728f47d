"""A site's model of its own, against the same training done by hand."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from client.answers import own_model as local_training
from client.answers.own_model import LocalProgress, LocalTraining
from client.hospital.site_data import Site, open_site
from fedmed.config import Plan
from fedmed.data import ImagePart
from fedmed.errors import TrainingError, WireError
from fedmed.metrics.classification import compute_figures
from fedmed.protocol.tensors import load_state
from fedmed.training.evaluate import compute_logits, evaluate
from fedmed.training.fit import fit
from fedmed.training.network import Network
from tests.support.federation import Federation

Make = Callable[..., Federation]
LONG = 1e6


class Case:
    """The first site of a small federation, and the initial model of all."""

    def __init__(self, federation: Federation) -> None:
        self.site: Site = open_site(federation.grid()._configs[1])
        self.plan: Plan = federation.config.make_plan()
        self.initial = Network(self.plan).pack()

    def training(self) -> LocalTraining:
        return LocalTraining(self.site, self.plan)

    def best(self) -> dict[str, torch.Tensor]:
        network = Network(self.plan)
        assert self.training().load_best(network) is not None
        return {name: tensor.clone() for name, tensor in network.model.state_dict().items()}

    def rounds_kept(self) -> list[str]:
        return sorted(path.stem for path in (self.site.folder / "local").glob("*.safetensors"))


@pytest.fixture
def case(make_federation: Make) -> Case:
    settings = {"optimizer": {"lr": 0.05, "momentum": 0.9}, "batch_size": 8, "proximal_mu": 0.5}
    return Case(make_federation(rounds=4, training=settings))


def train_by_hand(case: Case) -> tuple[list[dict[str, torch.Tensor]], list[float]]:
    """Return the model after each round, and its balanced accuracy on validation images."""
    training = case.plan.training.model_copy(update={"keep_momentum": True, "proximal_mu": 0.0})
    plan = case.plan.model_copy(update={"training": training})
    network, momentum = Network(case.plan), {}
    states, values = [], []
    for number in range(1, 5):
        result = fit(
            network.model, case.site.data.train, plan, site=f"{case.site.name} local", round_number=number,
            device=case.site.device, optimizer_state=momentum,
        )  # fmt: skip
        momentum = result.optimizer_state
        states.append({name: tensor.clone() for name, tensor in network.model.state_dict().items()})
        tables = evaluate(network.model, case.site.data.validation, plan, group="x", device=case.site.device)
        values.append(float(compute_figures(tables)["balanced_accuracy"].value or 0))
    return states, values


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].equal(tensor), name


def read_model(case: Case, round_number: int) -> dict[str, torch.Tensor]:
    found = case.training()._states.load_before(round_number + 1)
    assert found is not None
    return {name.removeprefix("model/"): t for name, t in found[0].items() if name.startswith("model/")}


def test_is_training_alone(case: Case) -> None:
    """The same budget on its own images, from the same start; the momentum is kept and nothing holds it back."""
    states, values = train_by_hand(case)
    progress = case.training().train(case.initial, 4, LONG)
    assert progress is not None
    best = values.index(max(values)) + 1
    assert (progress.rounds_done, progress.best_round) == (4, best)
    assert progress.best_value == pytest.approx(max(values))
    assert_same(read_model(case, 4), states[3])
    assert_same(case.best(), states[best - 1])
    assert not states[3]["0.weight"].equal(states[2]["0.weight"])


@pytest.mark.parametrize("steps", [[1, 2, 3, 4], [3, 3, 4], [2, 4]])
def test_how_many_rounds_at_a_time_makes_no_difference(case: Case, steps: list[int]) -> None:
    """Every call is a new process as far as the training knows."""
    states, values = train_by_hand(case)
    done = [case.training().train(case.initial if number == 0 else None, step, LONG)
            for number, step in enumerate(steps)]  # fmt: skip
    assert [one.rounds_done for one in done if one is not None] == steps
    assert_same(read_model(case, 4), states[3])
    assert_same(case.best(), states[values.index(max(values))])


def test_crash_in_the_middle_changes_nothing(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    states, values = train_by_hand(case)
    case.training().train(case.initial, 2, LONG)

    def crash(*arguments: Any, round_number: int, **named: Any) -> Any:
        if round_number == 4:
            raise KeyboardInterrupt
        return fit(*arguments, round_number=round_number, **named)

    with monkeypatch.context() as patch:
        patch.setattr(local_training, "fit", crash)
        with pytest.raises(KeyboardInterrupt):
            case.training().train(None, 4, LONG)
    progress = case.training().train(None, 4, LONG)
    assert progress is not None
    assert progress.rounds_done == 4
    assert_same(read_model(case, 4), states[3])
    assert_same(case.best(), states[values.index(max(values))])


def test_time_is_bounded(case: Case) -> None:
    done = [case.training().train(case.initial, 4, 0.0) for _ in range(5)]
    assert [one.rounds_done for one in done if one is not None] == [1, 2, 3, 4, 4]


def test_best_and_last_are_kept_and_no_more(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The values are 0.2, 0.6, 0.6, 0.1: the first of equals is the best."""
    values = iter([0.2, 0.6, 0.6, 0.1])
    monkeypatch.setattr(local_training, "compute_figures", lambda _: {"balanced_accuracy": Value(next(values))})
    states, _ = train_by_hand(case)
    for step in (1, 2, 3, 4):
        progress = case.training().train(case.initial, step, LONG)
    assert progress == LocalProgress(4, 2, 0.6, progress.train_s if progress else 0.0)
    assert case.rounds_kept() == ["round_00002", "round_00003", "round_00004"]
    assert_same(case.best(), states[1])


class Value:
    """A figure of which only the value counts."""

    def __init__(self, value: float | None) -> None:
        self.value = value


def test_without_validation_images_the_last_round_is_the_best(case: Case) -> None:
    data = replace(case.site.data, validation=part_of(case.site.data.validation, 0))
    progress = LocalTraining(replace(case.site, data=data), case.plan).train(case.initial, 3, LONG)
    assert progress is not None
    assert (progress.rounds_done, progress.best_round, progress.best_value) == (3, 3, None)


def part_of(part: ImagePart, number: int) -> ImagePart:
    chosen = {name: values[:number] for name, values in part.attributes.items()}
    return ImagePart(part.items[:number], part.labels[:number].tolist(), chosen, part._reader)


def test_model_is_asked_for_once(case: Case) -> None:
    assert case.training().train(None, 1, LONG) is None
    assert case.training().train(case.initial, 1, LONG) is not None
    assert case.training().train(None, 2, LONG) is not None


def test_damaged_state_is_trained_again(case: Case) -> None:
    states, values = train_by_hand(case)
    case.training().train(case.initial, 3, LONG)
    case.training().train(None, 4, LONG)
    (case.site.folder / "local" / "round_00004.safetensors").write_bytes(b"broken")
    case.training().train(case.initial, 4, LONG)
    assert_same(read_model(case, 4), states[3])
    assert_same(case.best(), states[values.index(max(values))])


def test_best_state_that_is_lost_is_trained_again(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.training().train(case.initial, 4, LONG)
    progress = case.training().load_best(Network(case.plan))
    assert progress is not None
    before = case.best()
    (case.site.folder / "local" / f"round_{progress.best_round:05d}.safetensors").unlink()
    assert case.training().load_best(Network(case.plan)) is None
    if progress.best_round < 4:
        assert case.training().train(None, 4, LONG) is None
    case.training().train(case.initial, 4, LONG)
    assert_same(case.best(), before)


def test_other_plan_of_the_same_run_is_refused(case: Case) -> None:
    """Else a server could have a hospital train for ever."""
    case.training().train(case.initial, 1, LONG)
    other = case.plan.model_copy(update={"seed": 99})
    with pytest.raises(WireError, match="not the one with which this site began"):
        LocalTraining(case.site, other).train(case.initial, 2, LONG)
    told = case.plan.model_copy(update={"study": "another name of the same thing"})
    assert LocalTraining(case.site, told).train(None, 2, LONG) is not None


def test_no_images_no_model(case: Case) -> None:
    data = replace(case.site.data, train=part_of(case.site.data.train, 0))
    with pytest.raises(TrainingError, match="no training image left"):
        LocalTraining(replace(case.site, data=data), case.plan).train(case.initial, 1, LONG)


def test_loss_is_told_only_where_the_aggregation_needs_it(case: Case) -> None:
    """Of the best state, on the training images: here by torch's cross-entropy."""
    progress = case.training().train(case.initial, 2, LONG)
    assert progress is not None
    assert case.training().describe(progress).to_values() == {"rounds_done": 2, "train_s": progress.train_s}
    plan = case.plan.model_copy(update={"losses": "site"})
    told = LocalTraining(case.site, plan).describe(progress).to_values()
    network = Network(case.plan)
    load_state(network.model, case.best(), list(network.model.state_dict()))
    part = case.site.data.train
    logits = compute_logits(network.model, part, case.plan, device=case.site.device)
    expected = torch.nn.functional.cross_entropy(logits.double(), part.labels)
    assert told == {"rounds_done": 2, "train_s": progress.train_s, "loss": pytest.approx(float(expected), rel=1e-5)}
