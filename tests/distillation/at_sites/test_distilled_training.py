"""Distillation from a teacher in a site's training, through ``fit``; numbers against loops written out here."""

import copy
import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from fedmed.aggregation.divergence_rule import MAS_WEIGHT
from fedmed.config import FoproConfig, Plan
from fedmed.data import NUM_VIEWS, draw_views, make_train_transform, make_view_transform
from fedmed.distillation import DistillationStudent, FourierPrompt, get_teacher
from fedmed.distillation.at_sites import ekd as feature_distillation
from fedmed.distillation.at_sites.objective import DistillationObjective
from fedmed.distillation.network import DistilledNetwork, build_network
from fedmed.training.fit import FitResult, fit
from fedmed.training.network import Network
from tests.support.fopro import PROMPT, TEACHER, make_fopro
from tests.training.test_fit import CPU, SIZE, Part, assert_same, make_plan, state

FIXED = {"mode": "none"}


def fopro_plan(training: dict[str, Any] | None = None, *, augmentation: str = "none", **changes: Any) -> Plan:
    plan = make_plan(**(training or {})).model_dump() | {
        "model": {"name": "tiny"},
        "augmentation": augmentation,
        "fopro": make_fopro(**changes),
    }
    return Plan.model_validate(plan)


def train(network: Network, plan: Plan, part: Part, round_number: int = 1, **options: Any) -> FitResult:
    return fit(
        network.trainee,
        part,  # type: ignore[arg-type]
        plan,
        site="north",
        round_number=round_number,
        device=CPU,
        objective=network.objective,
        **options,
    )


def teacher_hash(plan: Plan) -> str:
    assert plan.fopro is not None
    tensors = get_teacher(plan.fopro.teacher).state_dict()
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in tensors.values())).hexdigest()


@pytest.fixture(autouse=True)
def _register_tiny() -> None:
    import tests.support.federation  # noqa: F401  (registers the network "tiny")


def teach_by_hand(plan: Plan, part: Part) -> Tensor:
    """The teacher's features of all images, unprompted: resized by the teacher, normalised with ImageNet's numbers."""
    assert plan.fopro is not None
    with torch.no_grad():
        features: Tensor = get_teacher(plan.fopro.teacher)(part.pixels.float() / 255)
    return features


def measure_ekd(network: Network, plan: Plan, part: Part) -> float:
    assert isinstance(network.trainee, DistillationStudent)
    student = network.trainee.eval()
    with torch.no_grad():
        projected = student.run(part.normalised(range(len(part)))).projected
    assert projected is not None
    cosine = (normalize(projected, dim=1) * normalize(teach_by_hand(plan, part), dim=1)).sum(dim=1)
    return float((2 - 2 * cosine).mean())


def test_loss_of_a_batch_by_hand() -> None:
    """One step: cross-entropy + balanced softmax on the auxiliary head + 3 x mean(2 - 2 cos)."""
    plan, part = fopro_plan({"batch_size": 32}, prompt=FIXED), Part(12)
    network = DistilledNetwork(plan)
    student = copy.deepcopy(network.trainee)
    assert isinstance(student, DistillationStudent)
    with torch.no_grad():
        outputs = student.train().run(part.normalised(range(12)))
    assert outputs.auxiliary is not None
    assert outputs.projected is not None
    share = torch.bincount(part.labels, minlength=3) / 12
    cosine = (normalize(outputs.projected, dim=1) * normalize(teach_by_hand(plan, part), dim=1)).sum(dim=1)
    ekd = float((2 - 2 * cosine).mean())
    main = float(cross_entropy(outputs.logits, part.labels))
    auxiliary = float(cross_entropy(outputs.auxiliary + share.log(), part.labels))
    result = train(network, plan, part)
    assert result.loss == pytest.approx(main + auxiliary + 3 * ekd, abs=1e-4)
    assert result.told["ekd"] == pytest.approx(ekd, abs=1e-4)


def mean_by_class(distances: Tensor, labels: Tensor) -> Tensor:
    return torch.stack([distances[labels == label].mean() for label in range(3)])


@pytest.mark.parametrize("divergence", ["plain", "inverse"])
def test_divergence_from_the_teacher_by_hand(divergence: str) -> None:
    """One step on all images: v is of the same weights as w, but with the batch's statistics in BatchNorm."""
    plan, part = fopro_plan({"batch_size": 32}, prompt=FIXED), Part(12)
    plan = plan.model_copy(update={"divergence": divergence})
    network, features = DistilledNetwork(plan), teach_by_hand(plan, part)
    means = []
    for is_training in (False, True):
        student = copy.deepcopy(network.trainee)
        assert isinstance(student, DistillationStudent)
        with torch.no_grad():
            projected = student.train(is_training).run(part.normalised(range(12))).projected
        assert projected is not None
        cosine = (normalize(projected, dim=1) * normalize(features, dim=1)).sum(dim=1)
        means.append(mean_by_class(2 - 2 * cosine, part.labels).double())
    w, v = means[0], means[1] if divergence == "plain" else 1 / means[1]
    result = train(network, plan, part)
    assert result.told["mas_weight"] == pytest.approx(float((w / w.sum()) @ (v / v.sum())), abs=1e-6)


@pytest.mark.parametrize("augmentation", ["none", "adsr"])
def test_measuring_the_divergence_changes_no_bit(augmentation: str) -> None:
    plan, part = fopro_plan({"epochs_per_round": 2}, augmentation=augmentation), Part(11)  # "none" repeats its views
    networks = [DistilledNetwork(plan), DistilledNetwork(plan)]
    plain = train(networks[0], plan, part)
    asked = train(networks[1], plan.model_copy(update={"divergence": "plain"}), part)
    assert_same(state(networks[0].whole), state(networks[1].whole))
    assert plain.loss == asked.loss
    assert MAS_WEIGHT not in plain.told
    assert 0 < asked.told[MAS_WEIGHT] <= 1


def test_the_model_as_it_came_teaches_by_hand() -> None:
    """One step with lambda 1: z of the frozen copy in eval mode against P(z) in train mode; the second round's teacher
    is what the first has made.
    """
    fopro = FoproConfig.model_validate({"teacher": "self", "hidden": 8, "auxiliary": False}).make_plan()
    plan, part = fopro_plan({"batch_size": 32}).model_copy(update={"fopro": fopro}), Part(12)
    network, x = DistilledNetwork(plan), Part(12).normalised(range(12))
    for round_number in (1, 2):
        student = copy.deepcopy(network.trainee)
        assert isinstance(student, DistillationStudent)
        with torch.no_grad():
            features = student.eval().run(x).features
            outputs = student.train().run(x)
        assert outputs.projected is not None
        cosine = (normalize(outputs.projected, dim=1) * normalize(features, dim=1)).sum(dim=1)
        result = train(network, plan, part, round_number)
        expected = cross_entropy(outputs.logits, part.labels) + (2 - 2 * cosine).mean()
        assert result.loss == pytest.approx(float(expected), abs=1e-5)


def test_a_site_with_one_class_has_no_divergence() -> None:
    plan, part = fopro_plan().model_copy(update={"divergence": "plain"}), Part(12)
    part.labels = torch.zeros(12, dtype=torch.int64)
    assert MAS_WEIGHT not in train(DistilledNetwork(plan), plan, part).told


@pytest.mark.parametrize("augmentation", ["none", "flips", "hifuse"])
def test_without_its_terms_it_is_plain_training_bit_for_bit(augmentation: str) -> None:
    plan = fopro_plan({"clip_norm": 1.0}, augmentation=augmentation, weight=0.0, auxiliary=False)
    plain = plan.model_copy(update={"fopro": None})
    part = Part(19)
    networks = [build_network(plan), build_network(plain)]
    results = [train(network, each, part) for network, each in zip(networks, (plan, plain), strict=True)]
    assert_same(state(networks[0].model), state(networks[1].model))
    assert results[0].loss == results[1].loss


def test_teacher_stays_as_it_is_and_in_eval_mode() -> None:
    plan, part = fopro_plan(), Part(20)
    assert plan.fopro is not None
    before, network = teacher_hash(plan), DistilledNetwork(plan)
    network.whole.train()
    train(network, plan, part)
    teacher = get_teacher(plan.fopro.teacher)
    assert teacher_hash(plan) == before
    assert not any(module.training for module in teacher.modules())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_student_sees_the_image_and_the_teacher_the_prompted_one() -> None:
    plan = fopro_plan({"batch_size": 32}, prompt=PROMPT | {"steps": 0, "first_steps": 0})
    assert plan.fopro is not None
    part, network = Part(12), DistilledNetwork(plan)
    assert network.prompt.theta is not None
    with torch.no_grad():
        network.prompt.theta.fill_(0.4)
    seen: dict[str, Tensor] = {}
    teacher = get_teacher(plan.fopro.teacher)

    def look(name: str) -> Any:
        def keep(_: nn.Module, args: Any) -> None:
            seen[name] = args[0].clone()

        return keep

    handles = [
        network.model.register_forward_pre_hook(look("student")),
        teacher.register_forward_pre_hook(look("teacher")),
    ]
    train(network, plan, part)
    for handle in handles:
        handle.remove()

    def sort(images: Tensor) -> Tensor:
        return images[images.flatten(1).double().mean(1).argsort()]

    expected = part.normalised(range(12))
    # By brightness, since the order of a batch is drawn.
    torch.testing.assert_close(sort(seen["student"]), sort(expected), atol=1e-5, rtol=0)
    with torch.no_grad():
        prompted = network.prompt(part.pixels.float() / 255)
    torch.testing.assert_close(sort(seen["teacher"]), sort(prompted), atol=1e-4, rtol=0)
    assert (prompted - part.pixels.float() / 255).abs().max() > 0.05


def test_prompt_is_learned_first_and_stays_in_the_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, part = fopro_plan(), Part(20)
    network = DistilledNetwork(plan)
    digests, moved = [], []
    compute = DistillationObjective.loss

    def spy(self: DistillationObjective, *args: Any) -> Tensor:
        digests.append(self.prompt.digest())
        moved.append(any(parameter.requires_grad for parameter in self.prompt.parameters()))
        return compute(self, *args)

    monkeypatch.setattr(DistillationObjective, "loss", spy)
    before = network.prompt.digest()
    student = state(network.trainee)
    result = train(network, plan, part)
    assert set(digests) == {network.prompt.digest()} != {before}
    assert not any(moved)
    assert any(not tensor.equal(student[name]) for name, tensor in state(network.trainee).items())
    bands = result.told["prompt_bands"]
    assert isinstance(bands, list)
    gains = [gain for gain in bands if gain is not None]
    assert gains
    assert all(0.5 <= gain <= 2.0 for gain in gains)


@pytest.mark.parametrize("num_images", [1, 2, 5, 9])
def test_few_images_still_train_and_tell_nothing_of_their_prompt(num_images: int) -> None:
    plan, part = fopro_plan(), Part(num_images)
    network = DistilledNetwork(plan)
    before = state(network.model)
    result = train(network, plan, part)
    assert np.isfinite(result.loss)
    assert any(not tensor.equal(before[name]) for name, tensor in state(network.model).items())
    assert "prompt_bands" not in result.told
    assert all(torch.isfinite(tensor).all() for tensor in network.whole.state_dict().values())


def check_that_it_distils() -> None:
    """With lambda 3, features come clearly nearer to the teacher's than where only the labels are learned."""
    part = Part(24)
    found = {}
    for weight in (0.0, 3.0):
        plan = fopro_plan({"epochs_per_round": 6}, weight=weight, prompt=FIXED)
        network = DistilledNetwork(plan)
        train(network, plan, part)
        found[weight] = measure_ekd(network, plan, part)
    assert found[3.0] < found[0.0] - 0.3


def test_features_come_near_to_the_teachers() -> None:
    check_that_it_distils()


def test_a_skipped_distillation_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: without the term's gradient the test above fails."""
    monkeypatch.setattr(feature_distillation, "ekd_terms", lambda projected, _: torch.zeros(len(projected)))
    with pytest.raises(AssertionError):
        check_that_it_distils()


def test_views_are_those_of_the_recipe() -> None:
    images = list(Part(9).pixels)
    for recipe in NUM_VIEWS:
        torch.manual_seed(5)
        expected, after = make_train_transform(recipe, SIZE)(images), torch.rand(1)
        torch.manual_seed(5)
        views = draw_views(recipe, len(images))
        assert torch.rand(1).equal(after)
        assert make_view_transform(recipe, SIZE)(images, views).equal(expected)
        assert set(views.tolist()) <= set(range(NUM_VIEWS[recipe]))


def test_cached_features_make_no_difference_beyond_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six epochs of four views: the teacher computes each once, and the student learns the same."""
    part = Part(20)
    images_seen = {}
    networks = {}
    for cache_mib in (0, 64):
        plan = fopro_plan({"epochs_per_round": 6}, augmentation="flips", cache_mib=cache_mib)
        assert plan.fopro is not None
        networks[cache_mib] = DistilledNetwork(plan)
        seen: list[int] = []
        with monkeypatch.context() as patch:
            teach = feature_distillation.SiteDistiller.teach
            patch.setattr(
                feature_distillation.SiteDistiller,
                "teach",
                lambda self, x, teach=teach, seen=seen: seen.append(len(x)) or teach(self, x),
            )
            train(networks[cache_mib], plan, part)
        images_seen[cache_mib] = sum(seen)
    assert images_seen == {0: 6 * 20, 64: 4 * 20}
    assert_same(state(networks[0].whole), state(networks[64].whole), atol=5e-3)


def test_weights_of_images_act_through_the_main_loss() -> None:
    plan, part = fopro_plan({"batch_size": 32}, prompt=FIXED), Part(12)
    plain, doubled = (
        train(DistilledNetwork(plan), plan, part),
        train(DistilledNetwork(plan), plan, part, image_weights=torch.full((12,), 2.0)),
    )
    network = DistilledNetwork(plan)
    with torch.no_grad():
        logits = network.model.train()(part.normalised(range(12)))
    assert doubled.loss - plain.loss == pytest.approx(float(cross_entropy(logits, part.labels)), abs=1e-4)


def test_network_without_and_with_a_teacher_begins_alike() -> None:
    plan = fopro_plan()
    network, plain = DistilledNetwork(plan), Network(plan.model_copy(update={"fopro": None}))
    assert_same(state(network.model), state(plain.model))
    assert isinstance(network.prompt, FourierPrompt)
    assert {name.split(".")[0] for name in network.shared} == {"model", "projector", "auxiliary", "fpg"}
    assert not any(name.startswith("fpg") for name in network.parameter_names)
    assert isinstance(plan.fopro and get_teacher(plan.fopro.teacher), nn.Module)
    assert TEACHER["source"] == "random"


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": PROMPT | {"mode": "conditional", "hidden": 4}},
        {"prompt": PROMPT | {"mode": "latent", "hidden": 4, "gamma": 0.1}},
        {"prompt": PROMPT | {"objective": "adversarial", "gamma": 0.1}},
        {"prompt": PROMPT | {"band": "low", "learn_dc": False, "bn": "l1std"}, "hidden": None, "auxiliary": False},
        {"class_balanced": True, "ramp_from": 2},
    ],
    ids=["conditional", "latent", "adversarial", "low band", "late rounds"],
)
def test_every_choice_trains_and_has_the_same_bits_again(changes: dict[str, Any]) -> None:
    plan, part = fopro_plan(augmentation="flips", **changes), Part(20)
    networks = [DistilledNetwork(plan), DistilledNetwork(plan)]
    before = state(networks[0].whole)
    results = [train(network, plan, part, round_number=4) for network in networks]
    assert_same(state(networks[0].whole), state(networks[1].whole))
    assert results[0].loss == results[1].loss
    moved = {name.split(".")[0] for name, tensor in state(networks[0].whole).items() if not tensor.equal(before[name])}
    assert plan.fopro is not None
    expected = {"model", "projector", "fpg"} | ({"auxiliary"} if plan.fopro.auxiliary else set())
    assert moved == (expected if "ramp_from" not in changes else expected - {"fpg"})
