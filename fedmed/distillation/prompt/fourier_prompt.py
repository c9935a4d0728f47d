"""The Fourier prompt: a bounded, trainable gain for every frequency of the image that a frozen teacher sees.

A **reconstruction** of the Fourier Prompt Generator of Elbatel, Martí and Li, "FoPro-KD: Fourier Prompted Effective
Knowledge Distillation for Long-Tailed Medical Image Recognition", IEEE Transactions on Medical Imaging 43(3), 2024, doi
10.1109/TMI.2023.3327428. The authors have published neither code nor, where we could read them, equations of it; this
agrees with what they did publish (a module on the teacher's input alone, learned for a data set without labels, that
raises or lowers chosen frequencies). Nearest published relative: the multiplicative prompt on low frequencies of VPTTA
(Chen et al., CVPR 2024).

Letters: B batch, H W space, P side of the grid, h hidden units.
"""

import hashlib
import itertools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fft import fft2, fftfreq, fftshift, ifftshift, irfft2, rfft2
from torch.nn import functional

from fedmed.distillation.resize import resample
from fedmed.errors import ConfigError
from fedmed.models.blocks.layers import check_choice, check_number, check_switch, widen_half
from fedmed.storage.records import GainBand

MODES = ("static", "conditional", "latent", "none")
BANDS = ("all", "low", "high")
CHANNELS = 3
LATENT = 64
BAND_EDGES = (0.0, 1 / 28, 3 / 28, 1 / 4, 1 / 2, math.sqrt(2))
"""Radii between which gains are averaged for a summary, in shares of the Nyquist frequency."""


class FourierPrompt(nn.Module):
    """Multiply the spectrum of an image by a learned, real, positive gain. A reconstruction, not the authors' code.

    Parameters
    ----------
    mode : {"static", "conditional", "latent", "none"}
        One gain for all images; one for each image, from its own amplitudes; one from a random vector, drawn from
        torch's global generator in train mode and 0 in eval mode; or the identity.
    grid : int
        P, side of the grid of parameters, laid over the centred spectrum.
    g_max : float
        Above 1: gains lie in [1 / g_max, g_max].
    learn_dc : bool
        Whether the mean colour may change.
    band : {"all", "low", "high"}
        Whether the gain is 1 above (``low``) or below (``high``) the radius ``band_edge``.
    band_edge : float
        In shares of the Nyquist frequency.
    hidden : int
        h, of the modes ``conditional`` and ``latent``.

    Notes
    -----
    With X the spectrum of one channel, theta (P,P) and starting at 0,

        u = ifftshift(bicubic(theta, H x W)),  u <- (u(k,l) + u(-k,-l)) / 2,  g = exp(ln(g_max) tanh(u)),
        x' = irFFT2(g X).

    So the prompt starts as the identity, the phase stays, and |X'| = g |X|. Without the symmetry of u the inverse
    transform would drop a part of columns 0 and W/2. Fourier transforms run in float32 at least, whatever autocast
    says. The result is not clamped: see :func:`share_outside`.
    """

    theta: nn.Parameter | None

    def __init__(
        self,
        mode: str = "static",
        *,
        grid: int = 16,
        g_max: float = 2.0,
        learn_dc: bool = True,
        band: str = "all",
        band_edge: float = 0.25,
        hidden: int = 64,
    ) -> None:
        super().__init__()
        check_choice("mode", mode, MODES)
        check_choice("band", band, BANDS)
        check_switch("learn_dc", learn_dc)
        check_number("g_max", g_max)
        check_number("band_edge", band_edge)
        if g_max <= 1:
            raise ConfigError(f"'g_max' is {g_max!r}. Allowed: a number above 1.")
        for option, value in (("grid", grid), ("hidden", hidden)):
            if type(value) is not int or value < 1:
                raise ConfigError(f"'{option}' is {value!r}. Allowed: a whole number from 1.")
        self.mode, self.grid, self.g_max = mode, grid, float(g_max)
        self.learn_dc, self.band, self.band_edge = learn_dc, band, float(band_edge)
        num_values = CHANNELS * grid * grid
        has_theta = mode in ("static", "conditional")
        self.register_parameter("theta", nn.Parameter(torch.zeros(CHANNELS, grid, grid)) if has_theta else None)
        self.net: nn.Module | None = None
        if mode in ("conditional", "latent"):
            last = nn.Linear(hidden, num_values)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            first = nn.Linear(num_values if mode == "conditional" else LATENT, hidden)
            self.net = nn.Sequential(first, nn.ReLU(), last)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Return images of the same shape and type, whose values may leave [0, 1]. Part of the reconstruction.

        Parameters
        ----------
        images_B3HW : Tensor
            (B,3,H,W), values in [0, 1], before any normalisation. Any H and W.
        """
        if self.mode == "none":
            return images_B3HW
        height, width = images_B3HW.shape[-2:]
        with torch.autocast(images_B3HW.device.type, enabled=False):
            x_B3HW = widen_half(images_B3HW)
            half_spectrum = rfft2(x_B3HW)  # (B,3,H,W) -> complex (B,3,H,W//2+1)
            changed = self.gain(x_B3HW)[..., : width // 2 + 1] * half_spectrum
            prompted: Tensor = irfft2(changed, s=(height, width)).to(images_B3HW.dtype)
            return prompted

    def gain(self, images_B3HW: Tensor) -> Tensor:
        """Return the gain of every frequency: (1,3,H,W), or (B,3,H,W) unless static; DC at [0, 0]. A reconstruction."""
        return self.log_gain(images_B3HW).exp().clamp(1 / self.g_max, self.g_max)

    def log_gain(self, images_B3HW: Tensor) -> Tensor:
        """Return ln g, shaped as :meth:`gain`, of a reconstruction's gain g; in [-ln g_max, ln g_max]."""
        if images_B3HW.ndim != 4 or images_B3HW.shape[1] != CHANNELS:
            raise ValueError(f"Images of shape {tuple(images_B3HW.shape)} were found. Needed: (B, 3, H, W).")
        height, width = images_B3HW.shape[-2:]
        with torch.autocast(images_B3HW.device.type, enabled=False):
            x_B3HW = widen_half(images_B3HW)
            if self.mode == "none":
                return x_B3HW.new_zeros(1, CHANNELS, height, width)
            u = ifftshift(resample(self._theta(x_B3HW), height, width), dim=(-2, -1))  # (.,3,P,P) -> (.,3,H,W)
            mirrored = u.flip((-2, -1)).roll((1, 1), (-2, -1))  # u(-k mod H, -l mod W)
            u = (u + mirrored) / 2 * self._free_frequencies(height, width).to(u)
            log_gain: Tensor = math.log(self.g_max) * u.tanh()
            return log_gain

    def digest(self) -> str:
        """Return a hash of the parameters of this reconstruction: what depends on them is valid while it stays."""
        state = self.state_dict()
        values = b"".join(state[name].detach().cpu().contiguous().numpy().tobytes() for name in sorted(state))
        settings = (self.mode, self.grid, self.g_max, self.learn_dc, self.band, self.band_edge)
        return hashlib.sha256(repr(settings).encode() + values).hexdigest()

    def _theta(self, x_B3HW: Tensor) -> Tensor:
        """Return (1,3,P,P) or, unless static, (B,3,P,P)."""
        if self.mode == "static":
            assert self.theta is not None, "a static prompt has a grid"
            return self.theta[None].to(x_B3HW)
        assert self.net is not None, "these modes have a network"
        num_images, shape = len(x_B3HW), (-1, CHANNELS, self.grid, self.grid)
        if self.mode == "latent":
            draw = torch.randn if self.training else torch.zeros
            latent: Tensor = self.net(draw(num_images, LATENT).to(x_B3HW))
            return latent.view(shape)
        assert self.theta is not None, "a conditional prompt has a grid"
        amplitude = fftshift(fft2(x_B3HW).abs().log1p(), dim=(-2, -1))  # (B,3,H,W), DC in the middle
        pooled = functional.adaptive_avg_pool2d(amplitude, self.grid)  # (B,3,H,W) -> (B,3,P,P)
        shift: Tensor = self.net(pooled.flatten(1)).view(shape)
        return self.theta.to(x_B3HW) + shift

    def _free_frequencies(self, height: int, width: int) -> Tensor:
        """Return (H,W): 1 where the gain is learned, 0 where it is 1."""
        radius = frequency_radius(height, width)
        if self.band == "all":
            free = torch.ones_like(radius)
        else:
            free = ((radius <= self.band_edge) if self.band == "low" else (radius >= self.band_edge)).to(radius.dtype)
        if not self.learn_dc:
            free[0, 0] = 0.0
        return free


def frequency_radius(height: int, width: int) -> Tensor:
    """Return (H,W): distance of each frequency from DC, which is at [0, 0], in shares of the Nyquist frequency."""
    return 2 * torch.hypot(fftfreq(height)[:, None], fftfreq(width)[None, :])


def summarize_gain(gain_B3HW: Tensor) -> list[GainBand]:
    """Return the geometric mean of a reconstruction's gain by band of frequencies.

    Parameters
    ----------
    gain_B3HW : Tensor
        Of :meth:`FourierPrompt.gain`.

    Returns
    -------
    list of dict
        For each band between two of :data:`BAND_EDGES`: ``low``, ``high`` and ``gain``, which is None where a small
        image has no such frequency. Ready for JSON.
    """
    radius = frequency_radius(*gain_B3HW.shape[-2:])
    log_gain = gain_B3HW.detach().double().log().mean(dim=(0, 1)).cpu()  # (B,3,H,W) -> (H,W)
    bands: list[GainBand] = []
    for low, high in itertools.pairwise(BAND_EDGES):
        inside = (radius >= low) & ((radius < high) | (high == BAND_EDGES[-1]))
        value = float(log_gain[inside].mean().exp()) if inside.any() else None
        bands.append({"low": low, "high": high, "gain": value})
    return bands


def share_outside(images: Tensor) -> float:
    """Return the share of values outside [0, 1]; what this reconstruction's prompts may cause, and nothing clamps."""
    return float(((images < 0) | (images > 1)).double().mean())


def make_prompt(options: Mapping[str, Any]) -> FourierPrompt:
    """Build the prompt of a config, a reconstruction; draws from torch's global generator unless static.

    Raises
    ------
    ConfigError
        If an option is unknown or a value is not allowed.
    """
    allowed = ("mode", "grid", "g_max", "learn_dc", "band", "band_edge", "hidden")
    unknown = [name for name in options if name not in allowed]
    if unknown:
        raise ConfigError(f"The Fourier prompt has no option '{unknown[0]}'. Allowed: {', '.join(allowed)}.")
    return FourierPrompt(**options)
