"""Distillation at a site: tests of faithfulness 4, 10 to 16, with numbers derived by hand."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedmed.distillation import (
    DistillationSettings,
    DistillationStudent,
    FeatureCache,
    FourierPrompt,
    FrozenTeacherClassifier,
    PromptSettings,
    SiteDistiller,
    ekd_loss,
)
from fedmed.distillation.at_sites.losses import (
    MaskedBalancedSoftmax,
    choose_beta,
    class_weights,
    ekd_terms,
    ramp_weight,
)
from fedmed.distillation.pixels import normalize, restore_pixels
from fedmed.distillation.teachers.classifier import find_classifier, run_with_features
from fedmed.errors import ConfigError
from fedmed.losses import build_loss
from fedmed.models import create_model, list_models
from tests.distillation.support.helpers import STATISTICS, SmallNet, hash_state, make_teacher, randomize_prompt

CLASSES = 3
COUNTS = [10, 5, 1]


def make_student(**options: object) -> DistillationStudent:
    torch.manual_seed(1)
    return DistillationStudent(SmallNet(6, CLASSES), 8, **options).train()  # type: ignore[arg-type]


def make_distiller(student: DistillationStudent | None = None, **options: object) -> SiteDistiller:
    arguments: dict[str, object] = {
        "class_counts": COUNTS,
        "statistics": STATISTICS,
        "settings": DistillationSettings(),
        **options,
    }
    prompt = arguments.pop("prompt", FourierPrompt(grid=4))
    teacher = arguments.pop("teacher", None) or make_teacher()
    loss = build_loss({"ce": 1.0}, COUNTS)
    return SiteDistiller(student or make_student(), teacher, prompt, loss, **arguments)  # type: ignore[arg-type]


def draw_batch(num: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.rand(num, 3, 16, 16, generator=generator), STATISTICS), torch.arange(num) % CLASSES


def test_the_loss_of_an_image_is_between_0_and_4() -> None:
    # Same direction: 2 - 2 = 0; opposite: 2 + 2 = 4; at a right angle: 2; at 60 degrees: 2 - 2 * 0.5 = 1.
    projected = torch.tensor([[3.0, 0.0], [3.0, 0.0], [3.0, 0.0], [3.0, 0.0]])
    teacher = torch.tensor([[0.5, 0.0], [-9.0, 0.0], [0.0, 2.0], [1.0, math.sqrt(3)]])
    torch.testing.assert_close(ekd_terms(projected, teacher), torch.tensor([0.0, 4.0, 2.0, 1.0]))
    torch.testing.assert_close(ekd_terms(7 * projected, 0.01 * teacher), ekd_terms(projected, teacher))
    assert float(ekd_loss(projected, teacher)) == pytest.approx(7 / 4)
    weights = torch.tensor([1.0, 0.5, 2.0, 1.0])
    assert float(ekd_loss(projected, teacher, weights)) == pytest.approx((0 + 2 + 4 + 1) / 4)


def test_class_weights_have_mean_one_over_classes_present() -> None:
    # beta = 0.5: 0.5 / (1 - 0.5^1) = 1 and 0.5 / (1 - 0.5^2) = 2/3; mean 5/6, so 1.2 and 0.8; the absent class 0.
    torch.testing.assert_close(class_weights([1, 2, 0], 0.5), torch.tensor([1.2, 0.8, 0.0]))
    torch.testing.assert_close(class_weights([100, 3, 0], 0.0), torch.tensor([1.0, 1.0, 0.0]))
    assert [choose_beta(number, 10) for number in (1, 8, 9, 10)] == [0.0, 0.0, 0.9999, 0.9999]


def test_lambda_is_constant_or_falls_to_nothing() -> None:
    assert [ramp_weight(3.0, number, 40, None) for number in (1, 40)] == [3.0, 3.0]
    assert [ramp_weight(3.0, number, 40, 30) for number in (30, 35, 40)] == pytest.approx([3.0, 1.5, 0.0])


def test_the_auxiliary_loss_counts_the_sites_own_classes() -> None:
    logits = torch.tensor([[1.0, 2.0, 5.0], [0.0, 1.0, 9.0]], requires_grad=True)
    target = torch.tensor([0, 1])
    even = MaskedBalancedSoftmax([7, 7, 0])(logits, target)
    torch.testing.assert_close(even, cross_entropy(logits[:, :2], target))
    even.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad[:, 2] == 0).all()
    # Counts 3 and 1: p_0 = 3 e^1 / (3 e^1 + e^2).
    skewed = MaskedBalancedSoftmax([3, 1, 0])(logits.detach()[:1], target[:1])
    assert float(skewed) == pytest.approx(-math.log(3 * math.e / (3 * math.e + math.e**2)))
    torch.testing.assert_close(
        MaskedBalancedSoftmax([4, 4, 4])(logits.detach(), target), cross_entropy(logits.detach(), target)
    )


def test_the_balanced_softmax_has_no_prior_at_inference() -> None:
    student = make_student().eval()
    x, _ = draw_batch()
    with torch.no_grad():
        assert torch.equal(student(x), student.model(x))


def test_the_total_is_the_sum_of_its_parts() -> None:
    distiller = make_distiller()
    x, target = draw_batch()
    student = copy.deepcopy(distiller.student)
    parts = distiller(x, target)
    features = student.model.bn1(student.model.conv1(x)).relu()
    features = student.model.bn2(student.model.conv2(features)).relu().mean(dim=(2, 3))
    projected = student.projector(features)
    main = cross_entropy(student.model.fc(features), target)
    prior = torch.tensor([10, 5, 1]).float().div(16).log()
    auxiliary = cross_entropy(student.auxiliary(projected) + prior, target)
    taught = distiller.teacher(restore_pixels(x, STATISTICS))
    ekd = (2 - 2 * torch.cosine_similarity(projected, taught)).mean()
    assert float(parts.total.detach()) == pytest.approx(float((main + auxiliary + 3 * ekd).detach()), abs=1e-6)
    for part, expected in ((parts.main, main), (parts.auxiliary, auxiliary), (parts.ekd, ekd)):
        assert part is not None
        torch.testing.assert_close(part, expected)


def test_without_its_terms_it_is_plain_training_bit_for_bit() -> None:
    torch.manual_seed(5)
    plain = create_model("mobilenet_v2", CLASSES).train()  # has dropout: the random stream must be the same too
    student = DistillationStudent(copy.deepcopy(plain), 8).train()
    distiller = make_distiller(student, settings=DistillationSettings(weight=0.0, auxiliary=0.0))
    x, target = draw_batch(4)
    x = torch.nn.functional.interpolate(x, 32)
    losses = []
    for network, loss_of in (
        (plain, lambda: cross_entropy(plain(x), target)),
        (student.model, lambda: distiller(x, target).total),
    ):
        torch.manual_seed(9)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
        for _ in range(2):
            optimizer.zero_grad()
            loss = loss_of()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert losses[:2] == losses[2:]
    assert hash_state(plain) == hash_state(student.strip())
    assert all(parameter.grad is None for parameter in student.projector.parameters())


def test_the_student_sees_the_image_and_the_teacher_the_prompted_one() -> None:
    prompt = FourierPrompt(grid=4)
    randomize_prompt(prompt)
    distiller = make_distiller(prompt=prompt)
    seen: dict[str, Tensor] = {}
    distiller.student.model.register_forward_pre_hook(lambda _, args: seen.update(student=args[0]))
    distiller.teacher.network.register_forward_pre_hook(lambda _, args: seen.update(teacher=args[0]))
    x, target = draw_batch()
    distiller(x, target)
    assert seen["student"] is x
    prompted = prompt(restore_pixels(x, STATISTICS))
    torch.testing.assert_close(seen["teacher"], (prompted - 0.5) / 0.5)
    assert (seen["teacher"] - (restore_pixels(x, STATISTICS) - 0.5) / 0.5).abs().max() > 0.05


def test_a_round_moves_prompt_and_student_in_turn_and_never_the_teacher() -> None:
    distiller = make_distiller()
    student, prompt, teacher = distiller.student, distiller.prompt, distiller.teacher
    before, taught = hash_state(student), hash_state(teacher)
    x, target = draw_batch()
    result = distiller.explore([x] * 3, PromptSettings())
    assert len(result.losses) == 3
    assert hash_state(student) == before
    assert student.training
    assert all(parameter.grad is None for parameter in student.parameters())
    assert prompt.theta is not None
    assert (prompt.theta != 0).any()
    explored = hash_state(prompt)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    distiller(x, target).total.backward()
    optimizer.step()
    assert hash_state(prompt) == explored
    assert prompt.theta.grad is None
    assert hash_state(student) != before
    assert hash_state(teacher) == taught
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_adversarial_term_raises_disagreement() -> None:
    x, _ = draw_batch(16)
    found = {}
    for gamma in (0.0, 50.0):
        distiller = make_distiller()
        distiller.explore([x] * 15, PromptSettings(rho=0.0, gamma=gamma))
        with torch.no_grad():
            projected = distiller.student.eval().run(x).projected
            assert projected is not None
            found[gamma] = float(ekd_loss(projected, distiller.teach(x)))
    assert found[50.0] > found[0.0]


def test_a_batch_of_one_has_the_main_loss_alone() -> None:
    # The network itself must not need two images either: its maps are 4 x 4.
    distiller = make_distiller()
    x, target = draw_batch(1)
    before = hash_state(distiller.student.projector)
    parts = distiller(x, target)
    assert parts.auxiliary is None
    assert parts.ekd is None
    parts.total.backward()
    assert hash_state(distiller.student.projector) == before
    outputs = distiller.student.run(x)
    assert outputs.projected is None
    assert distiller.student.eval().run(x).projected is not None


@pytest.mark.parametrize("counts", [[1, 0, 0], [9, 0, 0]])
def test_a_site_with_one_image_or_class_trains_plainly(counts: list[int]) -> None:
    distiller = make_distiller(class_counts=counts)
    x, _ = draw_batch(2)
    parts = distiller(x, torch.zeros(2, dtype=torch.int64))
    assert parts.total is parts.main
    assert distiller.explore([x], PromptSettings()).losses == ()


def test_a_site_smaller_than_the_batch_still_trains() -> None:
    distiller = make_distiller(class_counts=[1, 1, 0])
    parts = distiller(*draw_batch(2))
    assert parts.ekd is not None
    parts.total.backward()
    assert all(parameter.grad is not None for parameter in distiller.student.parameters())


def test_late_rounds_weigh_rare_classes() -> None:
    settings = DistillationSettings(class_balanced=True)
    x, target = draw_batch()
    early = make_distiller(settings=settings, round_number=8, rounds=10)(x, target).ekd
    plain = make_distiller()(x, target).ekd
    late = make_distiller(settings=settings, round_number=9, rounds=10)
    outputs = copy.deepcopy(late.student).run(x)
    weights = class_weights(COUNTS, 0.9999)[target]
    assert outputs.projected is not None
    torch.testing.assert_close(early, plain)
    torch.testing.assert_close(late(x, target).ekd, ekd_loss(outputs.projected, late.teach(x), weights))


def test_stripping_leaves_the_plain_network() -> None:
    student = make_student()
    names = set(student.state_dict())
    assert {name.partition(".")[0] for name in names} == {"model", "projector", "auxiliary"}
    x, _ = draw_batch()
    student.eval()
    plain = student.strip()
    assert torch.equal(plain(x), student.run(x).logits)
    assert set(plain.state_dict()) == set(SmallNet(6, CLASSES).state_dict())
    words = ("projector", "aux", "teacher", "fpg", "prompt")
    assert not any(word in name for name in plain.state_dict() for word in words)


def test_the_exported_network_has_no_trace_of_distillation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = DistillationStudent(create_model("resnet18", CLASSES), 8).eval()
    x = torch.rand(2, 3, 32, 32)
    torch.save(student.strip().state_dict(), tmp_path / "model.pt")
    fresh = create_model("resnet18", CLASSES).eval()
    fresh.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert torch.equal(fresh(x), student(x))


FAMILIES = (
    "adsr_resnet18",
    "came",
    "hemf",
    "hifuse_tiny",
    "mobilenet_v2",
    "mobilenet_v2_erohprf",
    "resnet18",
    "shufflenet_v2_x0_5_erohprf",
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAMILIES else pytest.mark.slow) for name in list_models()]
)
def test_every_model_shows_the_features_of_its_classifier(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, CLASSES).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        features, logits = run_with_features(model, x)
        _, classifier = find_classifier(model)
        assert features.shape == (1, classifier.in_features)
        assert torch.equal(classifier(features), logits)
        assert torch.equal(logits, model(x))


def test_features_are_taken_before_dropout() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 2)).train()
    x = torch.rand(3, 4)
    features, _ = run_with_features(model, x)
    torch.testing.assert_close(features, model[0](x))


def test_a_network_that_does_not_end_in_a_linear_layer_is_refused() -> None:
    with pytest.raises(ConfigError, match="no linear layer"):
        DistillationStudent(nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten()), 8)
    with pytest.raises(ConfigError, match="not the output of its last linear layer"):
        run_with_features(nn.Sequential(nn.Linear(3, 2), nn.Softmax(1)), torch.rand(2, 3))
    with pytest.raises(ConfigError, match="images, features"):
        run_with_features(nn.Linear(3, 2), torch.rand(2, 5, 3))


def test_a_bottleneck_makes_the_projector_small() -> None:
    # 6 -> 4 -> 8: (6 4 + 4) + 2 4 for BatchNorm + (4 8 + 8).
    student = make_student(hidden=4, auxiliary=False)
    assert sum(parameter.numel() for parameter in student.projector.parameters()) == 28 + 8 + 40
    assert student.auxiliary is None
    assert make_distiller(student)(*draw_batch()).auxiliary is None


def test_cached_features_replace_the_teachers_forward() -> None:
    cache = FeatureCache(dtype=torch.float32)
    distiller = make_distiller(cache=cache)
    images, target = draw_batch(8)
    calls = []
    distiller.teacher.register_forward_hook(lambda *_: calls.append(1))
    distiller.fill_cache(range(8), lambda keys: images[list(keys)])
    assert len(cache) == 8
    filled = len(calls)
    cached = copy.deepcopy(distiller.student)
    first = distiller(images[[5, 2]], target[[5, 2]], keys=[5, 2])
    assert len(calls) == filled
    other = make_distiller(cached)
    torch.testing.assert_close(first.ekd, other(images[[5, 2]], target[[5, 2]]).ekd)
    distiller.explore([images], PromptSettings())  # another prompt: nothing that is stored is valid any more
    calls.clear()
    distiller(images[[5, 2]], target[[5, 2]], keys=[5, 2])
    assert len(calls) == 1
    assert len(cache) == 2


def test_a_cache_keeps_to_its_memory() -> None:
    # 100 features of 2 bytes: 200 bytes an image, so a thousandth of a MiB (1048.576 bytes) holds 5.
    cache = FeatureCache(max_mib=0.001)
    cache.fill(range(9), "a", lambda keys: torch.rand(len(keys), 100))
    assert len(cache) == 5
    features = torch.rand(2, 100)
    taken = cache.fetch([1, 8], "a", lambda: features)
    assert torch.equal(taken, features.half().float())
    assert (cache.num_hits, cache.num_misses) == (0, 2)
    cache.fetch([1, 2], "a", lambda: features)
    assert (cache.num_hits, cache.num_misses) == (2, 2)


def test_the_frozen_teacher_with_a_linear_head_trains_its_head_alone() -> None:
    torch.manual_seed(0)
    teacher = make_teacher()
    model = FrozenTeacherClassifier(teacher, CLASSES, STATISTICS).train()
    x, target = draw_batch()
    before = hash_state(teacher)
    cross_entropy(model(x), target).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is not None] == [
        "head.weight",
        "head.bias",
    ]
    assert hash_state(teacher) == before
    torch.testing.assert_close(model(x), model.head(teacher(restore_pixels(x, STATISTICS))))
