"""Tests of faithfulness 1 to 3, 5 and 9, and the prompt's other modes; the prompt is a reconstruction."""

import math

import pytest
import torch
from torch.fft import fft2

from fedmed.distillation import FourierPrompt, make_prompt, summarize_gain
from fedmed.distillation.prompt.fourier_prompt import frequency_radius, share_outside
from fedmed.distillation.resize import resample
from fedmed.errors import ConfigError
from tests.distillation.support.helpers import randomize_prompt

SIZES = [(224, 224), (97, 64), (33, 35)]


def random_prompt(seed: int = 0, **options: object) -> FourierPrompt:
    prompt = FourierPrompt(**options)  # type: ignore[arg-type]
    randomize_prompt(prompt, seed)
    return prompt


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("mode", ["static", "conditional", "latent", "none"])
def test_a_new_prompt_is_the_identity(mode: str, height: int, width: int) -> None:
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        prompted = FourierPrompt(mode)(images)
    assert prompted.shape == images.shape
    assert (prompted - images).abs().max() < 1e-5


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_amplitudes_change_by_the_gain_and_phases_stay(height: int, width: int) -> None:
    prompt = random_prompt()
    images = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        before, after, gain = fft2(images), fft2(prompt(images)), prompt.gain(images)
    large = before.abs() > 1e-2
    torch.testing.assert_close(after.abs()[large], (gain * before.abs())[large], rtol=1e-3, atol=0)
    turned = torch.angle(after / before)[large]
    assert turned.abs().max() < 1e-3


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_gain_is_symmetric_and_bounded(height: int, width: int) -> None:
    prompt = random_prompt()
    assert prompt.theta is not None
    prompt.theta.data.mul_(30)  # tanh at its ends
    gain = prompt.gain(torch.zeros(1, 3, height, width)).detach()
    k, rows = torch.arange(height), (-torch.arange(height)) % height
    columns = (-torch.arange(width)) % width
    assert torch.equal(gain[:, :, k][..., columns], gain[:, :, rows])
    assert gain.min() >= 0.5
    assert gain.max() <= 2.0


def test_the_first_step_moves_theta() -> None:
    # d/dtheta at 0 of x' = irfft(exp(ln 2 tanh u) X): tanh'(0) = 1, so nothing is stuck.
    prompt = FourierPrompt(grid=4)
    prompt(torch.rand(1, 3, 16, 16)).square().sum().backward()
    assert prompt.theta is not None
    assert prompt.theta.grad is not None
    assert prompt.theta.grad.isfinite().all()
    assert (prompt.theta.grad != 0).all()


def test_a_constant_theta_scales_the_image() -> None:
    # u is the same everywhere, so g = exp(ln 2 tanh 1) for every frequency, and x' = g x.
    prompt = FourierPrompt(grid=4)
    assert prompt.theta is not None
    torch.nn.init.ones_(prompt.theta)
    images = torch.rand(1, 3, 20, 13)
    torch.testing.assert_close(prompt(images), 2 ** math.tanh(1) * images, rtol=1e-5, atol=1e-5)


def test_without_dc_the_mean_colour_stays() -> None:
    images = torch.rand(2, 3, 32, 32)
    mean = images.mean(dim=(2, 3))
    kept = random_prompt(learn_dc=False)(images).mean(dim=(2, 3))
    torch.testing.assert_close(kept, mean, rtol=0, atol=1e-5)
    assert (random_prompt()(images).mean(dim=(2, 3)) - mean).abs().max() > 1e-3


@pytest.mark.parametrize("band", ["low", "high"])
def test_outside_its_band_the_gain_is_one(band: str) -> None:
    gain = random_prompt(band=band, band_edge=0.5).gain(torch.zeros(1, 3, 32, 32)).detach()
    radius = frequency_radius(32, 32)
    outside = radius > 0.5 if band == "low" else radius < 0.5
    assert (gain[..., outside] == 1).all()
    assert (gain[..., ~outside] != 1).any()


def test_half_precision_is_transformed_in_float32() -> None:
    prompt = random_prompt()
    images = torch.rand(1, 3, 33, 35)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(prompt(images), prompt.float()(images))
        prompted = prompt(images.bfloat16())
    assert prompted.dtype == torch.bfloat16
    with torch.no_grad():
        torch.testing.assert_close(prompted, prompt(images.bfloat16().float()).bfloat16(), rtol=0, atol=0)
    assert torch.equal(prompt(images), prompt(images))


def test_a_conditional_prompt_depends_on_each_image_alone() -> None:
    torch.manual_seed(0)
    prompt = FourierPrompt("conditional", grid=4, hidden=8)
    assert prompt.net is not None
    torch.nn.init.normal_(prompt.net[2].weight, std=0.3)  # type: ignore[index]
    images = torch.rand(3, 3, 24, 24)
    with torch.no_grad():
        gain = prompt.gain(images)
        assert gain.shape == (3, 3, 24, 24)
        assert (gain[0] - gain[1]).abs().max() > 1e-4
        torch.testing.assert_close(prompt.gain(images[1:2])[0], gain[1], rtol=1e-5, atol=1e-6)


def test_a_latent_prompt_draws_in_train_mode_alone() -> None:
    torch.manual_seed(0)
    prompt = FourierPrompt("latent", grid=4, hidden=8)
    assert prompt.net is not None
    torch.nn.init.normal_(prompt.net[2].weight)  # type: ignore[index]
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert not torch.equal(prompt(images), prompt(images))
        prompt.eval()
        assert torch.equal(prompt(images), prompt(images))
        assert torch.equal(prompt.gain(images)[0], prompt.gain(images)[1])


def test_no_prompt_has_no_parameters() -> None:
    prompt = FourierPrompt("none")
    images = torch.rand(1, 3, 8, 8)
    assert prompt(images) is images
    assert list(prompt.parameters()) == []
    assert (prompt.gain(images) == 1).all()


def test_the_summary_averages_the_gain_by_radius() -> None:
    # Gain 2 below half of the Nyquist frequency, 1/2 from there on.
    radius = frequency_radius(64, 64)
    gain = torch.where(radius < 0.5, 2.0, 0.5).expand(1, 3, 64, 64)
    assert [band["gain"] for band in summarize_gain(gain)] == pytest.approx([2, 2, 2, 2, 0.5])
    # Of 8 x 8 pixels the radii are 0, 0.25, 0.35, ...: none between 1/28 and 1/4.
    assert [band["gain"] is None for band in summarize_gain(torch.ones(1, 3, 8, 8))] == [
        False,
        True,
        True,
        False,
        False,
    ]


def test_the_share_outside_counts_values() -> None:
    assert share_outside(torch.tensor([-0.1, 0.0, 1.0, 1.2])) == 0.5


def test_the_digest_follows_values_and_settings() -> None:
    assert FourierPrompt().digest() == FourierPrompt().digest()
    assert FourierPrompt().digest() != FourierPrompt(learn_dc=False).digest()
    assert random_prompt(0).digest() != random_prompt(1).digest()


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("shape", [(40, 9), (7, 30)])
def test_resampling_is_torchs_bicubic_interpolation(shape: tuple[int, int], antialias: bool) -> None:
    images = torch.rand(2, 3, 16, 18)
    expected = torch.nn.functional.interpolate(images, shape, mode="bicubic", antialias=antialias)
    torch.testing.assert_close(resample(images, *shape, antialias=antialias), expected, rtol=0, atol=1e-5)
    assert resample(images, 16, 18) is images


@pytest.mark.parametrize(
    "options",
    [{"mode": "magic"}, {"g_max": 1.0}, {"grid": 0}, {"band": "middle"}, {"learn_dc": 1}, {"depth": 2}],
)
def test_wrong_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        make_prompt(options)


def test_a_reconstruction_is_called_so() -> None:
    for thing in (FourierPrompt, FourierPrompt.forward, FourierPrompt.gain, summarize_gain):
        assert "econstruction" in (thing.__doc__ or "")
