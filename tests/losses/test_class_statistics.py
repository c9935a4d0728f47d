import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from fedmed.losses import CWSLoss, class_statistics, cws_loss

GOLDEN_P = torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.5, 0.1], [0.1, 0.8, 0.1]], dtype=torch.float64)
GOLDEN_Y = torch.tensor([0, 0, 1])


def draw(batch, num_classes=7, seed=0, scale=2.0, dtype=torch.float64):
    rng = np.random.default_rng(seed)
    logits = torch.tensor(rng.normal(scale=scale, size=(batch, num_classes)), dtype=dtype)
    return logits, torch.tensor(rng.integers(0, num_classes, batch))


def looped(logits, target, absent="all"):
    """The definition, class by class."""
    p, num_classes = torch.softmax(logits, dim=1), logits.shape[1]
    terms = [-torch.log(p[target == k, k].mean() + 1e-7) for k in range(num_classes) if (target == k).any()]
    return sum(terms) / (num_classes if absent == "all" else len(terms))


@pytest.mark.parametrize(
    ("form", "absent", "expected"), [("official", "all", 0.2736601), ("official", "present", 0.4104901)]
)
def test_golden_values(form, absent, expected):
    """m = (0.55, 0.8): -(log 0.55 + log 0.8) / 3 = 0.27366, or / 2; CE = -(log .7 + log .4 + log .8) / 3."""
    assert cws_loss(GOLDEN_P.log(), GOLDEN_Y, absent, form).item() == pytest.approx(expected, abs=1e-7)
    assert cross_entropy(GOLDEN_P.log(), GOLDEN_Y).item() == pytest.approx(0.4987030, abs=1e-7)


def test_golden_value_of_the_form_without_a_floor():
    expected = -(math.log(0.55) + math.log(0.8)) / 3
    assert cws_loss(GOLDEN_P.log(), GOLDEN_Y, form="lse").item() == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("batch", [1, 4, 32, 256])
@pytest.mark.parametrize("absent", ["all", "present"])
@pytest.mark.parametrize(("form", "tolerance"), [("official", 1e-12), ("lse", 1e-5)])
def test_equals_the_looped_definition(batch, absent, form, tolerance):
    logits, target = draw(batch, seed=batch)
    expected = looped(logits, target, absent).item()
    assert cws_loss(logits, target, absent, form).item() == pytest.approx(expected, abs=tolerance)
    single = cws_loss(logits.float(), target, absent, form).item()
    assert single == pytest.approx(expected, abs=max(tolerance, 1e-6))


@pytest.mark.parametrize("form", ["official", "lse"])
@pytest.mark.parametrize("absent", ["all", "present"])
def test_gradients_equal_finite_differences(form, absent):
    logits, target = draw(9, num_classes=5, seed=1)  # 9 images of 5 classes, not all present
    assert len(target.unique()) < 5
    weight = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0], dtype=torch.float64)
    logits.requires_grad_()
    options = {"absent": absent, "form": form}
    assert torch.autograd.gradcheck(lambda z: cws_loss(z, target, **options), logits)
    assert torch.autograd.gradcheck(lambda z: cws_loss(z, target, weight=weight, **options), logits)
    assert torch.autograd.gradgradcheck(lambda z: cws_loss(z, target, **options), logits)


@pytest.mark.parametrize("form", ["official", "lse"])
def test_gradient_is_that_of_weighted_cross_entropy(form):
    """dL/dz_i = -(w_i / K) (e_y - p_i) with w_i = p_i / sum of p_j of the same class, held fixed."""
    logits, target = draw(40, seed=2)
    logits.requires_grad_()
    options = {"eps": 1e-300} if form == "official" else {}
    (found,) = torch.autograd.grad(cws_loss(logits, target, form=form, **options), logits)
    own = torch.softmax(logits, dim=1).gather(1, target[:, None])[:, 0].detach()
    weight = own / torch.zeros(7, dtype=torch.float64).index_add(0, target, own)[target]
    (expected,) = torch.autograd.grad((weight / 7 * cross_entropy(logits, target, reduction="none")).sum(), logits)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)
    by_hand = -(weight / 7)[:, None] * (torch.eye(7, dtype=torch.float64)[target] - torch.softmax(logits, 1)).detach()
    torch.testing.assert_close(found, by_hand, rtol=0, atol=1e-15)


def test_never_above_class_balanced_cross_entropy():
    """Jensen: (K / r) L <= mean over the classes present of the mean cross-entropy of the class."""
    for seed in range(50):
        logits, target = draw(12, seed=seed)
        present = target.unique()
        losses = cross_entropy(logits, target, reduction="none")
        balanced = torch.stack([losses[target == k].mean() for k in present]).mean()
        assert cws_loss(logits, target).item() * 7 / len(present) <= balanced.item() + 1e-9


@pytest.mark.parametrize("form", ["official", "lse"])
def test_the_order_of_the_images_does_not_matter(form):
    logits, target = draw(64, seed=3)
    order = torch.tensor(np.random.default_rng(0).permutation(64))
    a, b = cws_loss(logits, target, form=form), cws_loss(logits[order], target[order], form=form)
    assert a.item() == pytest.approx(b.item(), abs=1e-14)


@pytest.mark.parametrize("num_present", [1, 3, 7])
def test_uniform_answers_give_the_share_of_classes_present_times_log_k(num_present):
    logits, target = torch.zeros(num_present, 7, dtype=torch.float64), torch.arange(num_present)
    expected = num_present / 7 * math.log(7)
    assert cws_loss(logits, target).item() == pytest.approx(expected, abs=1e-5)
    assert cws_loss(logits, target, form="lse").item() == pytest.approx(expected, abs=1e-14)
    assert cws_loss(logits, target, "present", "lse").item() == pytest.approx(math.log(7), abs=1e-14)


def test_one_image_gives_its_cross_entropy_divided_by_k():
    logits, target = draw(1, seed=4)
    expected = cross_entropy(logits, target).item() / 7
    assert cws_loss(logits, target, form="lse").item() == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("form", ["official", "lse"])
def test_a_batch_of_one_class_has_finite_gradients_everywhere(form):
    logits, _ = draw(8, seed=5)
    target = torch.full((8,), 3)
    logits.requires_grad_()
    for absent, ratio in (("all", 1), ("present", 7)):
        loss = cws_loss(logits, target, absent, form)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(gradient).all()
        assert loss.item() == pytest.approx(ratio * cws_loss(logits, target, form=form).item(), rel=1e-12)


def test_extreme_logits_stay_finite_and_only_the_official_form_loses_its_gradient():
    """One image with logits 200 for a wrong class and -200 for its own: -log(1e-7) / 3 = 5.37 and 400 / 3 = 133.3."""
    logits = torch.tensor([[-200.0, 200.0, -200.0]], requires_grad=True)
    target = torch.tensor([0])
    official, lse = cws_loss(logits, target), cws_loss(logits, target, form="lse")
    assert official.item() == pytest.approx(-math.log(1e-7) / 3, rel=1e-6)
    assert lse.item() == pytest.approx(400 / 3, rel=1e-6)
    assert torch.autograd.grad(official, logits)[0].abs().max() == 0
    assert torch.autograd.grad(lse, logits)[0].abs().max().item() == pytest.approx(1 / 3, rel=1e-6)


def test_two_classes_wrong_by_two_hundred_give_the_known_value():
    """Two of three classes present, both far below the floor: 2/3 * 16.118 = 10.75."""
    logits = torch.tensor([[-200.0, 200.0, 0.0], [200.0, -200.0, 0.0]])
    assert cws_loss(logits, torch.tensor([0, 1])).item() == pytest.approx(10.745, abs=1e-3)


@pytest.mark.parametrize("form", ["official", "lse"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_with_in_float32(form, dtype):
    logits, target = draw(32, seed=6, dtype=torch.float32)
    half = logits.to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = cws_loss(half, target, form=form)
    assert loss.dtype == torch.float32
    assert loss.item() == cws_loss(half.float(), target, form=form).item()
    loss.backward()
    assert torch.isfinite(half.grad).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("form", ["official", "lse"])
def test_processor_and_gpu_agree(form):
    logits, target = draw(64, seed=7, dtype=torch.float32)
    results = []
    for device in ("cpu", "cuda", "cuda"):
        z = logits.to(device).requires_grad_()
        loss = cws_loss(z, target.to(device), form=form)
        loss.backward()
        results.append((loss.detach().cpu(), z.grad.cpu()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(results[1], results[2], rtol=0, atol=0)


@pytest.mark.parametrize("form", ["official", "lse"])
@pytest.mark.parametrize("absent", ["all", "present"])
def test_an_empty_batch_gives_zero_with_its_graph(form, absent):
    logits = torch.zeros(0, 4, requires_grad=True)
    loss = cws_loss(logits, torch.zeros(0, dtype=torch.int64), absent, form)
    assert loss.item() == 0
    loss.backward()
    assert logits.grad.shape == (0, 4)


@pytest.mark.parametrize("form", ["official", "lse"])
@pytest.mark.parametrize("absent", ["all", "present"])
def test_ignored_images_are_as_if_not_there(form, absent):
    logits, target = draw(20, seed=8)
    kept = torch.arange(20) % 3 > 0
    marked = torch.where(kept, target, -1)
    found = cws_loss(logits, marked, absent, form, ignore_index=-1)
    assert found.item() == pytest.approx(cws_loss(logits[kept], target[kept], absent, form).item(), abs=1e-15)
    logits.requires_grad_()
    nothing = cws_loss(logits, torch.full((20,), -1), absent, form, ignore_index=-1)
    nothing.backward()
    assert nothing.item() == 0
    assert logits.grad.abs().max() == 0


def test_masked_classes_neither_add_nor_count():
    """Of the golden batch only class 1 counts: -log 0.8, divided by the 1 or 2 classes that the mask allows."""
    only_second, last_two = torch.tensor([False, True, False]), torch.tensor([False, True, True])
    for form in ("official", "lse"):
        one = cws_loss(GOLDEN_P.log(), GOLDEN_Y, form=form, class_mask=only_second).item()
        two = cws_loss(GOLDEN_P.log(), GOLDEN_Y, form=form, class_mask=last_two).item()
        assert one == pytest.approx(-math.log(0.8), abs=1e-6)
        assert two == pytest.approx(-math.log(0.8) / 2, abs=1e-6)
    none = cws_loss(GOLDEN_P.log(), GOLDEN_Y, class_mask=torch.tensor([False, False, True]), absent="present")
    assert none.item() == 0


def test_class_weights_by_hand():
    """Weights 3, 1, 4: (3 * -log .55 + 1 * -log .8) / 8 over all classes, / 4 over those present."""
    weight = torch.tensor([3.0, 1.0, 4.0])
    expected = -(3 * math.log(0.55) + math.log(0.8))
    for absent, divisor in (("all", 8), ("present", 4)):
        found = cws_loss(GOLDEN_P.log(), GOLDEN_Y, absent, "lse", weight=weight).item()
        assert found == pytest.approx(expected / divisor, abs=1e-12)
    equal = cws_loss(GOLDEN_P.log(), GOLDEN_Y, weight=torch.full((3,), 5.0))
    assert equal.item() == pytest.approx(cws_loss(GOLDEN_P.log(), GOLDEN_Y).item(), abs=1e-12)


def test_reductions_by_hand():
    terms = cws_loss(GOLDEN_P.log(), GOLDEN_Y, form="lse", reduction="none")
    expected = torch.tensor([-math.log(0.55), -math.log(0.8), 0.0], dtype=torch.float64)
    torch.testing.assert_close(terms, expected)
    assert cws_loss(GOLDEN_P.log(), GOLDEN_Y, form="lse", reduction="sum").item() == pytest.approx(
        expected.sum().item()
    )


def test_sites_with_classes_of_their_own_sum_to_the_pooled_loss():
    logits, target = draw(60, seed=9)
    pooled = cws_loss(logits, target).item()
    site = target % 3  # every class lies at one site only
    parts = [cws_loss(logits[site == s], target[site == s]).item() for s in range(3)]
    assert sum(parts) == pytest.approx(pooled, abs=1e-14)


def test_the_loss_of_two_halves_is_not_the_loss_of_the_batch():
    logits, target = draw(64, seed=10)
    halves = [cws_loss(logits[h], target[h]).item() for h in (slice(0, 32), slice(32, 64))]
    assert abs(np.mean(halves) - cws_loss(logits, target).item()) > 1e-3


def test_monitoring_by_hand():
    assert class_statistics(GOLDEN_P.log(), GOLDEN_Y) == (2, pytest.approx(0.55))
    assert class_statistics(GOLDEN_P.log(), GOLDEN_Y, ignore_index=0) == (1, pytest.approx(0.8))
    assert class_statistics(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)) == (0, None)


def test_the_module_equals_the_function_and_has_no_state():
    loss = CWSLoss(absent="present", form="lse")
    expected = cws_loss(GOLDEN_P.log(), GOLDEN_Y, "present", "lse")
    assert loss(GOLDEN_P.log(), GOLDEN_Y).item() == expected.item()
    assert list(loss.state_dict()) == []


@pytest.mark.parametrize("target", [torch.tensor([0, 3]), torch.tensor([-1, 0])])
def test_targets_outside_the_classes_are_refused(target):
    with pytest.raises(ValueError, match="Allowed: 0 to 2"):
        cws_loss(torch.zeros(2, 3), target)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"absent": "none"}, "'absent' of the CWS loss is 'none'. Allowed: all, present"),
        ({"form": "fast"}, "Allowed: official, lse"),
        ({"reduction": "max"}, "Allowed: mean, sum, none"),
        ({"eps": 0.0}, "'eps'"),
        ({"eps": "small"}, "'eps'"),
        ({"class_mask": torch.ones(2)}, r"shape \(2,\)"),
        ({"weight": torch.ones(2)}, r"Needed: \(3,\)"),
    ],
)
def test_options_that_are_not_allowed_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        cws_loss(torch.zeros(2, 3), torch.tensor([0, 1]), **options)


@pytest.mark.parametrize(
    ("logits", "target"), [(torch.zeros(3), torch.tensor(0)), (torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64))]
)
def test_shapes_that_do_not_fit_are_refused(logits, target):
    with pytest.raises(ValueError, match="Needed"):
        cws_loss(logits, target)
