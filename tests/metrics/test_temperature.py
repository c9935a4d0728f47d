"""The temperature of all sites together, against an optimiser that sees all logits."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from fedmed.metrics.rounding import round_digits
from fedmed.metrics.temperature import (
    FEWEST_IMAGES,
    GRID,
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    STEP,
    solve_temperature,
    temperature_sums,
)
from fedmed.seeding import make_rng


def draw(n: int, scale: float, temperature: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and labels for which this temperature is right, but for chance."""
    rng = make_rng(seed, "tests", "temperature", n)
    z_NK = rng.normal(0, scale, (n, 5))
    p_NK = torch.from_numpy(z_NK / temperature).softmax(dim=1).numpy()
    labels = [int(rng.choice(5, p=p)) for p in p_NK]
    return torch.from_numpy(z_NK).float(), torch.tensor(labels)


def find_by_optimiser(logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_t], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(logits.double() / log_t.exp(), labels)
        value.backward()
        return value

    optimizer.step(loss)
    return float(log_t.detach().exp()), float(loss().detach())


def test_grid() -> None:
    assert GRID[0] == pytest.approx(1 / MAX_TEMPERATURE)
    assert GRID[-1] == pytest.approx(1 / MIN_TEMPERATURE)
    assert GRID[len(GRID) // 2] == 1.0


def test_sums_are_likelihood_and_slope() -> None:
    """Against torch's cross-entropy and its own derivative."""
    logits, labels = draw(30, 3.0, 1.0)
    sums = temperature_sums(logits, labels)
    assert sums.dtype == torch.float64
    for place in (0, 17, 60, 120):
        inverse = torch.tensor(GRID[place], requires_grad=True)
        nll = functional.cross_entropy(logits.double() * inverse, labels, reduction="sum")
        (slope,) = torch.autograd.grad(nll, inverse)
        torch.testing.assert_close(sums[place], torch.stack([nll.detach(), slope]), rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("temperature", [0.08, 0.3, 1.0, 1.37, 2.0, 6.0, 15.0])
@pytest.mark.parametrize("n", [40, 2000])
def test_temperature_is_the_one_of_an_optimiser(temperature: float, n: int) -> None:
    """Logits so large that the true probabilities are far from sure and far from equal."""
    logits, labels = draw(n, 1.5 * temperature, temperature)
    found = solve_temperature(temperature_sums(logits, labels).numpy(), n)
    expected, nll = find_by_optimiser(logits, labels)
    assert found.fitted
    assert abs(found.temperature - expected) <= STEP / 2 + 0.002 * expected
    assert found.temperature / STEP == pytest.approx(round(found.temperature / STEP))
    assert found.nll_after is not None
    assert found.nll_after >= nll - 1e-4
    there = float(functional.cross_entropy(logits.double() / found.temperature, labels))
    assert found.nll_after == pytest.approx(there, rel=1e-4)
    assert found.nll_before == pytest.approx(float(functional.cross_entropy(logits.double(), labels)), rel=1e-12)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.37, 2.0, 6.0])
def test_sums_of_three_digits_give_nearly_the_same_temperature(temperature: float) -> None:
    """Four sites of which each rounds its sums by itself."""
    logits, labels = draw(2000, 1.5 * temperature, temperature)
    parts = zip(logits.split(500), labels.split(500), strict=True)
    sums = sum(round_digits(temperature_sums(z, y).numpy()) for z, y in parts)
    found = solve_temperature(sums, 2000)
    exact = solve_temperature(temperature_sums(logits, labels).numpy(), 2000)
    assert abs(found.temperature - exact.temperature) <= STEP + 0.01 * exact.temperature
    assert found.nll_after == pytest.approx(exact.nll_after, rel=0.01)


def test_sums_of_sites_are_those_of_all_images() -> None:
    logits, labels = draw(300, 4.0, 2.0)
    parts = [
        temperature_sums(z, y) for z, y in zip(logits.split([7, 93, 200]), labels.split([7, 93, 200]), strict=True)
    ]
    whole = temperature_sums(logits, labels)
    torch.testing.assert_close(parts[0] + parts[1] + parts[2], whole, rtol=1e-12, atol=1e-9)
    assert temperature_sums(logits[:0], labels[:0]).abs().sum() == 0


def test_too_few_images_have_none() -> None:
    logits, labels = draw(FEWEST_IMAGES, 2.0, 1.0)
    sums = temperature_sums(logits, labels).numpy()
    assert solve_temperature(sums, FEWEST_IMAGES).fitted
    found = solve_temperature(sums, FEWEST_IMAGES - 1)
    assert (found.temperature, found.fitted, found.nll_after) == (1.0, False, None)
    assert found.note == "19 validation images are told; from 20 on one is fitted"


def test_all_right_is_no_reason_to_be_sure() -> None:
    """Every image is right by 5: the likelihood grows for ever, so that nothing is learnt about the confidence."""
    logits = torch.eye(4).repeat(10, 1) * 5
    found = solve_temperature(temperature_sums(logits, torch.arange(4).repeat(10)).numpy(), 40)
    assert (found.temperature, found.fitted) == (1.0, False)
    assert found.note is not None
    assert "all are right" in found.note
    assert found.nll_before == pytest.approx(math.log(1 + 3 * math.exp(-5)))


def test_always_wrong_ends_at_the_highest() -> None:
    logits = torch.eye(4).repeat(10, 1) * 5
    found = solve_temperature(temperature_sums(logits, torch.arange(1, 5).repeat(10) % 4).numpy(), 40)
    assert (found.temperature, found.fitted) == (MAX_TEMPERATURE, True)
    assert found.note is not None
    assert "at least 20" in found.note
    assert found.nll_after is not None
    assert found.nll_before is not None
    assert found.nll_after < found.nll_before


def test_equal_logits_have_no_slope() -> None:
    """All temperatures are equally good; nothing may divide by zero."""
    found = solve_temperature(temperature_sums(torch.zeros(30, 3), torch.zeros(30, dtype=torch.int64)).numpy(), 30)
    assert found.nll_after == pytest.approx(math.log(3))
    assert np.isfinite(found.temperature)


def test_large_logits_do_not_overflow() -> None:
    logits, labels = torch.tensor([[1e4, -1e4], [-1e4, 1e4]]).repeat(10, 1), torch.tensor([0, 0] * 10)
    assert torch.isfinite(temperature_sums(logits, labels)).all()
