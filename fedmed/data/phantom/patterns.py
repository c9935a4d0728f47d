"""Patterns of the synthetic phantom: what tells its classes apart.

Each pattern is a function of a lesion's own coordinates and returns what it adds to the density of the lesion's pigment
and of a second pigment. Shape letters: B images, P patterns, S side in pixels, M dots, H hairs, G cells of a coarse
grid. Lengths in the image plane are in units of half the image's side; ``u``, ``v`` and ``rho`` are in units of the
lesion's radius.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Rows:
    """A dataclass of arrays with one row per image."""

    def take(self, index: Array | slice) -> Self:
        """Return the rows at ``index``."""
        return type(self)(**{field.name: getattr(self, field.name)[index] for field in fields(self)})


@dataclass(frozen=True)
class Scenes(Rows):
    """What is to be drawn, one row per image, float32."""

    patterns: Array
    """(B, P) strength of each pattern, 0 where it is absent."""
    skin: Array
    """(B, 3) colour of the skin."""
    mottle: Array
    """(B, G, G) coarse variation of the skin's density."""
    hairs: Array
    """(B, H, 4) offset, direction, curvature and darkness (0: no hair)."""
    centre: Array
    """(B, 2) middle of the lesion."""
    angle: Array
    """(B,) rotation of the lesion in radians."""
    radius: Array
    """(B,) mean radius of the lesion."""
    aspect: Array
    """(B,) short axis over long axis."""
    border: Array
    """(B, 4, 2) amplitude and phase of the border's waves 2 to 5 around the lesion."""
    softness: Array
    """(B,) width of the border."""
    density: Array
    """(B,) mean density of pigment."""
    pigment: Array
    """(B, 3) absorption of the pigment."""
    pigment_2: Array
    """(B, 3) absorption of the second pigment, in patches."""
    waves: Array
    """(B, 4, 3) wave vector and phase of slow variations of density inside the lesion."""
    texture: Array
    """(B, 3) in [0, 1): scale, direction and phase of a pattern's texture."""
    dots: Array
    """(B, M, 3) position and radius of globules."""
    light: Array
    """(B, 3) brightness, and gradient of the illumination along x and y."""


@dataclass(frozen=True)
class Frame(Rows):
    """Coordinates of every pixel relative to the lesion, each (B, S, S)."""

    u: Array
    v: Array
    rho: Array
    theta: Array
    mask: Array


def pixel_centres(size: int) -> Array:
    """Return the positions of pixel centres in [-1, 1], (S,)."""
    return ((np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1).astype(np.float32)


def column(values: Array) -> Array:
    """Return (B,) as (B, 1, 1), to go with images."""
    return values[:, None, None]


def _bump(x: Array, middle: float, width: float) -> Array:
    """Return a Gaussian bump of height one."""
    scaled = (x - np.float32(middle)) * np.float32(1 / width)
    return np.exp(-scaled * scaled)


def _rotated(scenes: Scenes, frame: Frame) -> tuple[Array, Array]:
    """Return lesion coordinates along and across the texture's direction."""
    angle = column(scenes.texture[:, 1]) * np.float32(np.pi)
    return np.cos(angle) * frame.u + np.sin(angle) * frame.v, np.cos(angle) * frame.v - np.sin(angle) * frame.u


Parts = tuple[Array, Array | float]


def _plain(scenes: Scenes, frame: Frame, slow: Array) -> Parts:
    """Add nothing to the body."""
    return np.zeros_like(frame.u), 0.0


def _mesh(scenes: Scenes, frame: Frame, slow: Array) -> Parts:
    """Add thin dark lines that cross."""
    frequency = 7 + 2.5 * column(scenes.texture[:, 0])
    p, q = _rotated(scenes, frame)
    phase = column(scenes.texture[:, 2]) * np.float32(2 * np.pi)
    p, q = p + 0.08 * np.sin(3 * q + phase), q + 0.08 * np.sin(3 * p - phase)
    lines = np.maximum(np.abs(np.cos(frequency * p + phase)), np.abs(np.cos(frequency * q))) ** 5
    return frame.mask * (lines - 0.5) * 1.1, 0.0


def _globules(scenes: Scenes, frame: Frame, slow: Array) -> Parts:
    """Add dark round dots."""
    size = frame.u.shape[-1]
    grid = pixel_centres(size)
    cos, sin = np.cos(scenes.angle)[:, None], np.sin(scenes.angle)[:, None]
    u, v = scenes.dots[..., 0], scenes.dots[..., 1] * scenes.aspect[:, None]
    width = (scenes.dots[..., 2] * scenes.radius[:, None])[..., None]
    x = scenes.centre[:, :1] + scenes.radius[:, None] * (cos * u - sin * v)
    y = scenes.centre[:, 1:] + scenes.radius[:, None] * (sin * u + cos * v)
    along_x = np.exp(-(((grid - x[..., None]) / width) ** 2))
    along_y = np.exp(-(((grid - y[..., None]) / width) ** 2))
    dots = np.minimum(np.swapaxes(along_y, 1, 2) @ along_x, 1)
    return frame.mask * (dots - 0.28) * 1.4, 0.0


def _streaks(scenes: Scenes, frame: Frame, slow: Array) -> Parts:
    """Add dark spokes at the rim, which reach beyond it."""
    count = 9 + np.floor(5 * column(scenes.texture[:, 0]))
    spokes = np.cos(count * frame.theta + column(scenes.texture[:, 2]) * np.float32(2 * np.pi))
    return _bump(frame.rho, 0.9, 0.35) * spokes * 0.6, 0.0


def _ring(scenes: Scenes, frame: Frame, slow: Array) -> Parts:
    """Darken the rim and lighten the middle."""
    return (_bump(frame.rho, 0.8, 0.16) - 0.45 * _bump(frame.rho, 0.0, 0.5)) * 0.6, 0.0


def _patches(scenes: Scenes, frame: Frame, slow: Array) -> Parts:
    """Replace pigment by a second one in patches."""
    patch = frame.mask * (0.5 + 0.5 * np.tanh(4 * (slow - 0.6)))
    return -0.5 * patch, 0.9 * patch


def _stripes(scenes: Scenes, frame: Frame, slow: Array) -> Parts:
    """Add parallel bands."""
    frequency = 11 + 5 * column(scenes.texture[:, 0])
    p, q = _rotated(scenes, frame)
    phase = column(scenes.texture[:, 2]) * np.float32(2 * np.pi)
    return frame.mask * np.cos(frequency * (p + 0.1 * np.sin(2 * q + phase))) * 0.5, 0.0


def _halo(scenes: Scenes, frame: Frame, slow: Array) -> Parts:
    """Add a faint second border around the lesion."""
    return _bump(frame.rho, 1.4, 0.14) * 0.4, 0.0


PATTERNS: dict[str, Callable[[Scenes, Frame, Array], Parts]] = {
    "pattern_plain": _plain,
    "pattern_mesh": _mesh,
    "pattern_globules": _globules,
    "pattern_streaks": _streaks,
    "pattern_ring": _ring,
    "pattern_patches": _patches,
    "pattern_stripes": _stripes,
    "pattern_halo": _halo,
}
"""Class name -> pattern, the most frequent first."""
