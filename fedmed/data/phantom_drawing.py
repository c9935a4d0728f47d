"""Draws the images of the synthetic phantom: what :mod:`fedmed.data.phantom` samples becomes pixels here.

Synthetic, not medical. Light passes through pigment by Beer and Lambert's law, ``colour = skin * exp(-density *
absorption)``; a class is a pattern in the density of one lesion. Everything is computed for a batch of images at once.
Shape letters: B images, P patterns, S side in pixels, M dots, H hairs. Lengths in the image plane are in units of half the
image's side; ``u``, ``v`` and ``rho`` are in units of the lesion's radius.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

PIXELS_PER_CHUNK = 2**18  # bounds the memory, and keeps a chunk's arrays near the processor's cache
REFERENCE_SIDE = 64  # blur is stated in pixels of images of this side, so that it looks the same at any size


@dataclass(frozen=True)
class Scanner:
    """What one site's device does to every image."""

    gain: tuple[float, float, float]
    """Factor of red, green and blue."""
    contrast: float
    """Slope around mid grey."""
    blur: float
    """Standard deviation in pixels of a 64-pixel image."""
    noise: float
    """Standard deviation, of a range of 0 to 1."""
    vignette: float
    """Share of the light that is lost in the corners."""


class Rows:
    """A dataclass of arrays with one row per image."""

    def take(self, index: Array | slice) -> Self:
        """Return the rows at ``index``."""
        return type(self)(**{field.name: getattr(self, field.name)[index] for field in fields(self)})  # type: ignore[arg-type]


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
    """(B, 4) in [0, 1): scale, direction and two phases of a pattern's texture."""
    dots: Array
    """(B, M, 3) position and radius of globules."""
    light: Array
    """(B, 3) brightness, and gradient of the illumination along x and y."""


@dataclass(frozen=True)
class _Frame(Rows):
    """Coordinates of every pixel relative to the lesion, each (B, S, S)."""

    x: Array
    y: Array
    u: Array
    v: Array
    rho: Array
    theta: Array
    mask: Array


def draw_images(scenes: Scenes, scanner: Scanner, size: int, rng: np.random.Generator) -> Array:
    """Draw images.

    Parameters
    ----------
    scenes : Scenes
        What to draw, B rows.
    scanner : Scanner
        The device that takes the images.
    size : int
        Side S in pixels.
    rng : numpy.random.Generator
        Source of the device's noise.

    Returns
    -------
    numpy.ndarray
        (B, 3, S, S) uint8.
    """
    count = len(scenes.angle)
    images = np.empty((count, 3, size, size), np.uint8)
    step = max(1, PIXELS_PER_CHUNK // size**2)
    for start in range(0, count, step):
        chunk = slice(start, start + step)
        part = scenes.take(chunk)
        images[chunk] = _scan(_draw_scene(part, _make_frame(part, size)), part, scanner, rng)
    return images


def _grid(size: int) -> Array:
    """Return the positions of pixel centres in [-1, 1], (S,)."""
    return ((np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1).astype(np.float32)


def _column(values: Array) -> Array:
    """Return (B,) as (B, 1, 1), to go with images."""
    return values[:, None, None]


def _make_frame(scenes: Scenes, size: int) -> _Frame:
    grid = _grid(size)
    x = grid[None, None, :] - _column(scenes.centre[:, 0])
    y = grid[None, :, None] - _column(scenes.centre[:, 1])
    cos, sin = _column(np.cos(scenes.angle)), _column(np.sin(scenes.angle))
    u = (cos * x + sin * y) / _column(scenes.radius)
    v = (cos * y - sin * x) / _column(scenes.radius * scenes.aspect)
    theta = np.arctan2(v, u)
    border = np.ones_like(theta)
    for wave in range(scenes.border.shape[1]):
        border += _column(scenes.border[:, wave, 0]) * np.cos((wave + 2) * theta + _column(scenes.border[:, wave, 1]))
    rho = np.sqrt(u * u + v * v) / border
    mask = 0.5 - 0.5 * np.tanh((rho - 1) / _column(scenes.softness))
    return _Frame(np.broadcast_to(x, u.shape), np.broadcast_to(y, u.shape), u, v, rho, theta, mask)


def _draw_scene(scenes: Scenes, frame: _Frame) -> Array:
    """Return the scene as it would look through a perfect device, (B, 3, S, S) in [0, 1]."""
    size = frame.u.shape[-1]
    slow = np.zeros_like(frame.u)
    for wave in range(scenes.waves.shape[1]):
        kx, ky, phase = (_column(scenes.waves[:, wave, i]) for i in range(3))
        slow += np.cos(kx * frame.u + ky * frame.v + phase)
    body = frame.mask * (0.9 - 0.2 * frame.rho * frame.rho + 0.12 * slow)
    second = np.zeros_like(body)
    for index, pattern in enumerate(PATTERNS):
        rows = np.flatnonzero(scenes.patterns[:, index] > 0)
        if len(rows):
            strength = _column(scenes.patterns[rows, index])
            first_part, second_part = PATTERNS[pattern](scenes.take(rows), frame.take(rows), slow[rows])
            body[rows] += strength * first_part
            second[rows] += strength * second_part
    depth = _column(scenes.density)
    body = np.maximum(body, 0) * depth
    second *= depth
    upsample = _interpolation(scenes.mottle.shape[-1], size)
    skin = upsample @ scenes.mottle @ upsample.T + _draw_hairs(scenes, size)
    rgb = np.empty((len(body), 3, size, size), np.float32)
    for channel in range(3):
        absorbed = _column(scenes.pigment[:, channel]) * body + _column(scenes.pigment_2[:, channel]) * second + skin
        rgb[:, channel] = _column(scenes.skin[:, channel]) * np.exp(-absorbed)
    return rgb


def _draw_hairs(scenes: Scenes, size: int) -> Array:
    """Return the density of thin, slightly bent hairs, (B, S, S)."""
    grid = _grid(size)
    density = np.zeros((len(scenes.hairs), size, size), np.float32)
    for hair in range(scenes.hairs.shape[1]):
        rows = np.flatnonzero(scenes.hairs[:, hair, 3] > 0)
        offset, direction, bend, dark = (_column(scenes.hairs[rows, hair, i]) for i in range(4))
        along = np.cos(direction) * grid[None, None, :] + np.sin(direction) * grid[None, :, None]
        across = np.cos(direction) * grid[None, :, None] - np.sin(direction) * grid[None, None, :]
        distance = (across - offset - bend * along * along) / 0.022
        density[rows] += dark * np.exp(-distance * distance)
    return density


def _interpolation(cells: int, size: int) -> Array:
    """Return the matrix (S, G) that draws a smooth curve through G values: Gaussian weights that sum to one."""
    distance = (_grid(size)[:, None] - np.linspace(-1, 1, cells, dtype=np.float32)[None, :]) * (cells / 2)
    weights = np.exp(-0.5 * (distance / 0.6) ** 2)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def _blur_matrix(size: int, sigma: float) -> Array:
    """Return the matrix (S, S) of a Gaussian blur along one axis; rows sum to one."""
    pixels = np.arange(size, dtype=np.float32)
    weights = np.exp(-0.5 * ((pixels[:, None] - pixels[None, :]) / sigma) ** 2)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def _scan(rgb: Array, scenes: Scenes, scanner: Scanner, rng: np.random.Generator) -> Array:
    """Return what the device records of a scene, uint8."""
    size = rgb.shape[-1]
    grid = _grid(size)
    x, y = grid[None, None, :], grid[None, :, None]
    light = _column(scenes.light[:, 0]) + _column(scenes.light[:, 1]) * x + _column(scenes.light[:, 2]) * y
    light = light * (1 - np.float32(scanner.vignette / 2) * (x * x + y * y))
    blur = _blur_matrix(size, scanner.blur * size / REFERENCE_SIDE)
    gain = np.asarray(scanner.gain, np.float32)[:, None, None]
    recorded = (blur @ rgb @ blur.T) * light[:, None] * gain
    recorded = (recorded - np.float32(0.5)) * np.float32(scanner.contrast) + np.float32(0.5)
    recorded += rng.standard_normal(recorded.shape, dtype=np.float32) * np.float32(scanner.noise)
    return np.asarray(np.clip(recorded * 255 + 0.5, 0, 255), np.uint8)


def _bump(x: Array, middle: float, width: float) -> Array:
    """Return a Gaussian bump of height one."""
    scaled = (x - np.float32(middle)) * np.float32(1 / width)
    return np.exp(-scaled * scaled)


def _rotated(scenes: Scenes, frame: _Frame) -> tuple[Array, Array]:
    """Return lesion coordinates along and across the texture's direction."""
    angle = _column(scenes.texture[:, 1]) * np.float32(np.pi)
    return np.cos(angle) * frame.u + np.sin(angle) * frame.v, np.cos(angle) * frame.v - np.sin(angle) * frame.u


Parts = tuple[Array, Array | float]


def _plain(scenes: Scenes, frame: _Frame, slow: Array) -> Parts:
    """Nothing but the body."""
    return np.zeros_like(frame.u), 0.0


def _mesh(scenes: Scenes, frame: _Frame, slow: Array) -> Parts:
    """Thin dark lines that cross."""
    frequency = 7 + 2.5 * _column(scenes.texture[:, 0])
    p, q = _rotated(scenes, frame)
    phase = _column(scenes.texture[:, 2]) * np.float32(2 * np.pi)
    p, q = p + 0.08 * np.sin(3 * q + phase), q + 0.08 * np.sin(3 * p - phase)
    lines = np.maximum(np.abs(np.cos(frequency * p + phase)), np.abs(np.cos(frequency * q))) ** 5
    return frame.mask * (lines - 0.5) * 1.1, 0.0


def _globules(scenes: Scenes, frame: _Frame, slow: Array) -> Parts:
    """Dark round dots."""
    size = frame.u.shape[-1]
    grid = _grid(size)
    cos, sin = np.cos(scenes.angle)[:, None], np.sin(scenes.angle)[:, None]
    u, v = scenes.dots[..., 0], scenes.dots[..., 1] * scenes.aspect[:, None]
    width = (scenes.dots[..., 2] * scenes.radius[:, None])[..., None]
    x = scenes.centre[:, :1] + scenes.radius[:, None] * (cos * u - sin * v)
    y = scenes.centre[:, 1:] + scenes.radius[:, None] * (sin * u + cos * v)
    along_x = np.exp(-(((grid - x[..., None]) / width) ** 2))
    along_y = np.exp(-(((grid - y[..., None]) / width) ** 2))
    dots = np.minimum(np.swapaxes(along_y, 1, 2) @ along_x, 1)
    return frame.mask * (dots - 0.28) * 1.4, 0.0


def _streaks(scenes: Scenes, frame: _Frame, slow: Array) -> Parts:
    """Dark spokes at the rim, which reach beyond it."""
    count = 9 + np.floor(5 * _column(scenes.texture[:, 0]))
    spokes = np.cos(count * frame.theta + _column(scenes.texture[:, 2]) * np.float32(2 * np.pi))
    return _bump(frame.rho, 0.9, 0.35) * spokes * 0.6, 0.0


def _ring(scenes: Scenes, frame: _Frame, slow: Array) -> Parts:
    """A dark rim around a paler middle."""
    return (_bump(frame.rho, 0.8, 0.16) - 0.45 * _bump(frame.rho, 0.0, 0.5)) * 0.6, 0.0


def _patches(scenes: Scenes, frame: _Frame, slow: Array) -> Parts:
    """Sharp patches of a second pigment."""
    patch = frame.mask * (0.5 + 0.5 * np.tanh(4 * (slow - 0.6)))
    return -0.5 * patch, 0.9 * patch


def _stripes(scenes: Scenes, frame: _Frame, slow: Array) -> Parts:
    """Parallel bands."""
    frequency = 11 + 5 * _column(scenes.texture[:, 0])
    p, q = _rotated(scenes, frame)
    phase = _column(scenes.texture[:, 2]) * np.float32(2 * np.pi)
    return frame.mask * np.cos(frequency * (p + 0.1 * np.sin(2 * q + phase))) * 0.5, 0.0


def _halo(scenes: Scenes, frame: _Frame, slow: Array) -> Parts:
    """A faint second border around the lesion."""
    return _bump(frame.rho, 1.4, 0.14) * 0.4, 0.0


PATTERNS: dict[str, Callable[[Scenes, _Frame, Array], Parts]] = {
    "pattern_plain": _plain,
    "pattern_mesh": _mesh,
    "pattern_globules": _globules,
    "pattern_streaks": _streaks,
    "pattern_ring": _ring,
    "pattern_patches": _patches,
    "pattern_stripes": _stripes,
    "pattern_halo": _halo,
}
"""Pattern of each class, the most frequent first."""
