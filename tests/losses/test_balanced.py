import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from fedmed.losses.balanced import ClassBalancedCrossEntropy, CrossEntropy, FocalLoss, LogitAdjustment

COUNTS = (90, 9, 1)


def draw(batch=30, num_classes=3, seed=0):
    rng = np.random.default_rng(seed)
    return torch.tensor(rng.normal(size=(batch, num_classes))), torch.tensor(rng.integers(0, num_classes, batch))


def test_class_balanced_weights_by_hand():
    """beta = 0.5 and n = (1, 2, 3): effective numbers 1, 1.5, 1.75; weights 1, 2/3, 4/7, scaled to the sum 3."""
    raw = np.array([1, 2 / 3, 4 / 7])
    loss = ClassBalancedCrossEntropy((1, 2, 3), beta=0.5)
    np.testing.assert_allclose(loss.weight.numpy(), raw / raw.sum() * 3, rtol=1e-6)
    logits, target = draw()
    expected = (loss.weight[target] * cross_entropy(logits, target, reduction="none")).sum() / 30
    assert loss(logits, target).item() == pytest.approx(expected.item(), rel=1e-12)


def test_class_balanced_weights_tend_to_inverse_counts():
    weight = ClassBalancedCrossEntropy(COUNTS, beta=1 - 1e-9).weight.double()
    np.testing.assert_allclose(weight * torch.tensor(COUNTS), [weight[2].item()] * 3, rtol=1e-5)


def test_a_class_without_images_has_no_weight_and_does_not_change_the_others():
    with_gap = ClassBalancedCrossEntropy((90, 0, 9), beta=0.99).weight
    without = ClassBalancedCrossEntropy((90, 9), beta=0.99).weight
    assert with_gap[1] == 0
    np.testing.assert_array_equal(with_gap[[0, 2]], without)
    assert ClassBalancedCrossEntropy((0, 0), beta=0.99).weight.tolist() == [1, 1]


def test_focal_loss_by_hand():
    """p_y = 0.8 and 0.5 with gamma 2: (0.2^2 * -log 0.8 + 0.5^2 * -log 0.5) / 2."""
    logits = torch.tensor([[0.8, 0.2], [0.5, 0.5]], dtype=torch.float64).log()
    expected = (0.04 * -math.log(0.8) + 0.25 * -math.log(0.5)) / 2
    assert FocalLoss(2.0)(logits, torch.tensor([0, 1])).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1, 2.0])
def test_focal_loss_of_certain_answers_is_finite(gamma):
    logits = torch.tensor([[1000.0, 0.0], [-1000.0, 0.0]], requires_grad=True)
    loss = FocalLoss(gamma)(logits, torch.tensor([0, 0]))
    assert loss.item() == pytest.approx(500)
    loss.backward()
    assert torch.isfinite(logits.grad).all()


def test_balanced_softmax_by_hand():
    """p_k is proportional to n_k exp z_k."""
    logits, target = draw()
    weighted = torch.tensor(COUNTS) * logits.exp()
    expected = -(weighted / weighted.sum(dim=1, keepdim=True)).log().gather(1, target[:, None]).mean()
    assert LogitAdjustment(COUNTS, tau=1.0)(logits, target).item() == pytest.approx(expected.item(), rel=1e-6)


def test_logit_adjustment_by_hand():
    logits, target = draw()
    shifted = logits + 0.5 * torch.tensor([0.9, 0.09, 0.01], dtype=torch.float64).log()
    expected = cross_entropy(shifted, target).item()
    assert LogitAdjustment(COUNTS, tau=0.5)(logits, target).item() == pytest.approx(expected, rel=1e-6)


def test_an_unseen_class_is_taken_as_rarer_than_any_seen():
    shift = LogitAdjustment((90, 0, 1), tau=1.0).shift
    assert torch.isfinite(shift).all()
    assert shift[1] < shift[2] < shift[0]
    uniform = LogitAdjustment((0, 0, 0), tau=1.0).shift
    np.testing.assert_allclose(uniform, [-math.log(3)] * 3, rtol=1e-6)


@pytest.mark.parametrize(
    "loss",
    [FocalLoss(0.0), LogitAdjustment(COUNTS, tau=0.0), ClassBalancedCrossEntropy(COUNTS, beta=0.0), CrossEntropy()],
    ids=lambda loss: type(loss).__name__,
)
def test_without_its_option_each_loss_is_cross_entropy(loss):
    logits, target = draw()
    assert loss(logits, target).item() == pytest.approx(cross_entropy(logits, target).item(), rel=1e-7)


@pytest.mark.parametrize(
    "loss",
    [
        CrossEntropy(),
        FocalLoss(),
        LogitAdjustment((5, 0, 2)),
        ClassBalancedCrossEntropy((5, 0, 2)),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_every_loss_is_finite_in_half_precision_and_keeps_counts_to_itself(loss):
    logits, target = draw()
    half = (logits * 20).half().requires_grad_()
    result = loss(half, target)
    assert result.dtype == torch.float32
    assert result.item() == pytest.approx(loss(half.float(), target).item(), rel=1e-6)
    result.backward()
    assert torch.isfinite(half.grad).all()
    assert list(loss.state_dict()) == []


def test_gradients_equal_finite_differences():
    logits, target = draw(6)
    logits.requires_grad_()
    for loss in (FocalLoss(1.5), LogitAdjustment(COUNTS).double(), ClassBalancedCrossEntropy(COUNTS).double()):
        assert torch.autograd.gradcheck(lambda z, loss=loss: loss(z, target), logits)


def test_focal_loss_equals_its_definition_on_one_hot_targets():
    logits, target = draw()
    p = torch.softmax(logits, dim=1)
    expected = -(one_hot(target, 3) * (1 - p) ** 2 * p.log()).sum(dim=1).mean()
    assert FocalLoss(2)(logits, target).item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: ClassBalancedCrossEntropy(COUNTS, beta=1.0),
            "'beta' is 1.0. Allowed: a finite number from 0 to below 1",
        ),
        (lambda: ClassBalancedCrossEntropy((1, -1)), "class counts"),
        (lambda: ClassBalancedCrossEntropy(()), "class counts"),
        (lambda: FocalLoss(-1.0), "'gamma' is -1.0"),
        (lambda: FocalLoss(math.inf), "'gamma'"),
        (lambda: FocalLoss(math.nan), "'gamma'"),
        (lambda: LogitAdjustment(COUNTS, tau=True), "'tau'"),
        (lambda: LogitAdjustment(COUNTS, tau="1"), "'tau'"),
    ],
)
def test_values_that_are_not_allowed_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
