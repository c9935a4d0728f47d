"""Draws the images of the synthetic phantom: what :mod:`fedmed.data.phantom.cohort` samples becomes pixels here.

Synthetic, not medical. Light passes through pigment by the law of Beer and Lambert, ``colour = skin * exp(-density *
absorption)``; a class is a pattern in the density of one lesion. Everything is computed for a batch of images at once.
Shape letters and units are those of :mod:`fedmed.data.phantom.patterns`.
"""

from dataclasses import dataclass

import numpy as np

from fedmed.data.phantom.patterns import PATTERNS, Array, Frame, Scenes, column, pixel_centres

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


def _make_frame(scenes: Scenes, size: int) -> Frame:
    """Return the lesion's coordinates; its border is a circle with waves, stretched and turned."""
    grid = pixel_centres(size)
    x = grid[None, None, :] - column(scenes.centre[:, 0])
    y = grid[None, :, None] - column(scenes.centre[:, 1])
    cos, sin = column(np.cos(scenes.angle)), column(np.sin(scenes.angle))
    u = (cos * x + sin * y) / column(scenes.radius)
    v = (cos * y - sin * x) / column(scenes.radius * scenes.aspect)
    theta = np.arctan2(v, u)
    border = np.ones_like(theta)
    for wave in range(scenes.border.shape[1]):
        border += column(scenes.border[:, wave, 0]) * np.cos((wave + 2) * theta + column(scenes.border[:, wave, 1]))
    rho = np.sqrt(u * u + v * v) / border
    mask = 0.5 - 0.5 * np.tanh((rho - 1) / column(scenes.softness))
    return Frame(u=u, v=v, rho=rho, theta=theta, mask=mask)


def _draw_scene(scenes: Scenes, frame: Frame) -> Array:
    """Return the scene as it would look through a perfect device, (B, 3, S, S) in [0, 1]."""
    size = frame.u.shape[-1]
    slow = np.zeros_like(frame.u)
    for wave in range(scenes.waves.shape[1]):
        kx, ky, phase = (column(scenes.waves[:, wave, i]) for i in range(3))
        slow += np.cos(kx * frame.u + ky * frame.v + phase)
    body = frame.mask * (0.9 - 0.2 * frame.rho * frame.rho + 0.12 * slow)
    second = np.zeros_like(body)
    for index, pattern in enumerate(PATTERNS.values()):
        rows = np.flatnonzero(scenes.patterns[:, index] > 0)
        if len(rows):
            strength = column(scenes.patterns[rows, index])
            first_part, second_part = pattern(scenes.take(rows), frame.take(rows), slow[rows])
            body[rows] += strength * first_part
            second[rows] += strength * second_part
    depth = column(scenes.density)
    body = np.maximum(body, 0) * depth
    second *= depth
    upsample = _interpolation(scenes.mottle.shape[-1], size)
    skin = upsample @ scenes.mottle @ upsample.T + _draw_hairs(scenes, size)
    rgb = np.empty((len(body), 3, size, size), np.float32)
    for channel in range(3):
        absorbed = column(scenes.pigment[:, channel]) * body + column(scenes.pigment_2[:, channel]) * second + skin
        rgb[:, channel] = column(scenes.skin[:, channel]) * np.exp(-absorbed)
    return rgb


def _draw_hairs(scenes: Scenes, size: int) -> Array:
    """Return the density of thin, slightly bent hairs, (B, S, S)."""
    grid = pixel_centres(size)
    density = np.zeros((len(scenes.hairs), size, size), np.float32)
    for hair in range(scenes.hairs.shape[1]):
        rows = np.flatnonzero(scenes.hairs[:, hair, 3] > 0)
        offset, direction, bend, dark = (column(scenes.hairs[rows, hair, i]) for i in range(4))
        along = np.cos(direction) * grid[None, None, :] + np.sin(direction) * grid[None, :, None]
        across = np.cos(direction) * grid[None, :, None] - np.sin(direction) * grid[None, None, :]
        distance = (across - offset - bend * along * along) / 0.022
        density[rows] += dark * np.exp(-distance * distance)
    return density


def _interpolation(cells: int, size: int) -> Array:
    """Return the matrix (S, G) that draws a smooth curve through G values: Gaussian weights that sum to one."""
    distance = (pixel_centres(size)[:, None] - np.linspace(-1, 1, cells, dtype=np.float32)[None, :]) * (cells / 2)
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
    grid = pixel_centres(size)
    x, y = grid[None, None, :], grid[None, :, None]
    light = column(scenes.light[:, 0]) + column(scenes.light[:, 1]) * x + column(scenes.light[:, 2]) * y
    light = light * (1 - np.float32(scanner.vignette / 2) * (x * x + y * y))
    blur = _blur_matrix(size, scanner.blur * size / REFERENCE_SIDE)
    gain = np.asarray(scanner.gain, np.float32)[:, None, None]
    recorded = (blur @ rgb @ blur.T) * light[:, None] * gain
    recorded = (recorded - np.float32(0.5)) * np.float32(scanner.contrast) + np.float32(0.5)
    recorded += rng.standard_normal(recorded.shape, dtype=np.float32) * np.float32(scanner.noise)
    return np.asarray(np.clip(recorded * 255 + 0.5, 0, 255), np.uint8)
