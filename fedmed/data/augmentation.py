"""Random changes of a batch of images, each image with its own draw.

All functions take and return float32 (B, 3, H, W) with values in [0, 1] and draw from torch's global
generator. They do what torchvision's transforms of the same names do to single images, for the whole batch at once: at
64 x 64 pixels that takes a third of the time.
"""

import math

import torch
import torch.nn.functional as F  # noqa: N812  (the usual name)

GREY_WEIGHTS = (0.2989, 0.587, 0.114)


def draw_uniform(num: int, low: float, high: float) -> torch.Tensor:
    """Return uniform numbers, shaped (num, 1, 1, 1) to scale images."""
    return torch.empty(num, 1, 1, 1).uniform_(low, high)


def flip_randomly(images: torch.Tensor, dim: int) -> torch.Tensor:
    """Flip each image with probability 0.5 along ``dim`` (-1: left and right, -2: up and down)."""
    return flip_images(images, draw_flips(len(images)), dim)


def draw_flips(num_images: int) -> torch.Tensor:
    """Return bool (B,), each true with probability 0.5."""
    return torch.rand(num_images) < 0.5


def flip_images(images: torch.Tensor, which_B: torch.Tensor, dim: int) -> torch.Tensor:
    """Flip some images, bool (B,), along ``dim`` (-1: left and right, -2: up and down)."""
    chosen = torch.nonzero(which_B)[:, 0]
    return images.index_copy(0, chosen, images[chosen].flip(dim))


def change_brightness(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Multiply by ``factors`` (B, 1, 1, 1)."""
    return (images * factors).clamp_(0, 1)


def change_contrast(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Stretch the distance from the image's mean grey by ``factors`` (B, 1, 1, 1)."""
    mean = _to_grey(images).mean(dim=(-2, -1), keepdim=True)
    return torch.lerp(mean, images, factors).clamp_(0, 1)


def change_saturation(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Stretch the distance from the pixel's grey by ``factors`` (B, 1, 1, 1)."""
    return torch.lerp(_to_grey(images), images, factors).clamp_(0, 1)


def shift_hue(images: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
    """Turn the hue by ``shifts`` (B, 1, 1, 1), in turns of the colour circle.

    Notes
    -----
    In HSV with hue ``h`` in sixths of the circle, value ``v`` and chroma ``c``, a channel is
    ``v - c * clamp(min(k, 4 - k), 0, 1)`` with ``k = (n + h) mod 6`` and n = 5, 3, 1 for red, green and blue.
    """
    red, green, blue = images.unbind(1)
    value, chroma = images.amax(1), images.amax(1) - images.amin(1)
    divisor = chroma.clamp(min=1e-12)
    hue = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    hue += 6 * shifts[:, :, 0]  # (B, H, W) + (B, 1, 1)
    offsets = torch.tensor([5.0, 3.0, 1.0]).view(1, 3, 1, 1)
    k = torch.remainder(hue[:, None] + offsets, 6)  # (B, 3, H, W)
    weight = torch.minimum(k, 4 - k).clamp_(0, 1)
    return value[:, None] - chroma[:, None] * weight


def jitter_colours(images: torch.Tensor, strength: float, probability: float) -> torch.Tensor:
    """Change brightness, contrast, saturation and hue of some images.

    Parameters
    ----------
    images : Tensor
        (B, 3, H, W).
    strength : float
        Factors are uniform in ``1 ± strength``, hue shifts in ``± strength`` turns.
    probability : float
        Share of images that are changed.

    Notes
    -----
    The order of the four changes is random; it is drawn once for a batch, the amounts for each image.
    """
    chosen = torch.nonzero(torch.rand(len(images)) < probability)[:, 0]
    part, num = images[chosen], len(chosen)
    for step in torch.randperm(4).tolist():
        if step == 3:
            part = shift_hue(part, draw_uniform(num, -strength, strength))
        else:
            change = (change_brightness, change_contrast, change_saturation)[step]
            part = change(part, draw_uniform(num, max(0.0, 1 - strength), 1 + strength))
    return images.index_copy(0, chosen, part)


def blur_randomly(images: torch.Tensor, sigma: tuple[float, float], probability: float) -> torch.Tensor:
    """Blur some images with a Gaussian.

    Parameters
    ----------
    images : Tensor
        (B, 3, H, W).
    sigma : (float, float)
        Range of the standard deviation in pixels, uniform.
    probability : float
        Share of images that are blurred.
    """
    chosen = torch.nonzero(torch.rand(len(images)) < probability)[:, 0]
    sigmas = torch.empty(len(chosen), 1).uniform_(*sigma)
    radius = min(math.ceil(3 * sigma[1]), min(images.shape[-2:]) - 1)
    return images.index_copy(0, chosen, blur(images[chosen], sigmas, radius))


def blur(images: torch.Tensor, sigmas: torch.Tensor, radius: int) -> torch.Tensor:
    """Blur each image with its own Gaussian, mirrored at the borders.

    Parameters
    ----------
    images : Tensor
        (B, 3, H, W).
    sigmas : Tensor
        (B, 1), pixels.
    radius : int
        The kernel has ``2 * radius + 1`` taps a side; below H and W.
    """
    taps = torch.arange(-radius, radius + 1)
    kernels = torch.softmax(-(taps**2) / (2 * sigmas**2), dim=1)  # (B, 2 radius + 1), sums of 1
    height, width = images.shape[-2:]
    padded = F.pad(images, [radius] * 4, mode="reflect")
    weights = kernels[:, :, None, None, None].unbind(1)
    rows = images.new_zeros(*images.shape[:3], width + 2 * radius)
    for i, weight in enumerate(weights):
        rows.addcmul_(padded[:, :, i : i + height], weight)
    result = torch.zeros_like(images)
    for i, weight in enumerate(weights):
        result.addcmul_(rows[..., i : i + width], weight)
    return result


def warp(
    images: torch.Tensor, angles: torch.Tensor, scales: torch.Tensor, shears: torch.Tensor, size: int
) -> torch.Tensor:
    """Rotate, scale and shear square images about their centre and cut out the middle.

    Parameters
    ----------
    images : Tensor
        (B, 3, R, R).
    angles, scales, shears : Tensor
        (B,): radians, factors, and radians of shear along x.
    size : int
        S, side of the result.

    Returns
    -------
    Tensor
        (B, 3, S, S), bilinear, 0 outside the image.

    Notes
    -----
    A result's pixel at x is taken from ``M x`` with ``M = (s R(a) [[1, -tan h], [0, 1]])^-1``, coordinates from the
    centre, as in torchvision's ``affine``.
    """
    cos, sin, tan = torch.cos(angles), torch.sin(angles), torch.tan(shears)
    inverse = torch.stack(
        [torch.stack([cos - sin * tan, sin + cos * tan], dim=1), torch.stack([-sin, cos], dim=1)], dim=1
    )  # (B, 2, 2)
    x = torch.arange(size) - (size - 1) / 2  # pixel centres from the middle
    # grid_sample counts in halves of the image's side; broadcasting is far faster than affine_grid's small products.
    per_x, per_y = (inverse * (2 / images.shape[-1] / scales)[:, None, None])[:, None, None].unbind(-1)  # (B, 1, 1, 2)
    grid = per_x * x[:, None] + per_y * x[:, None, None]  # (B, S, S, 2)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _to_grey(images: torch.Tensor) -> torch.Tensor:
    """Return (B, 1, H, W)."""
    weights = torch.tensor(GREY_WEIGHTS).view(1, 3, 1, 1)
    return (images * weights).sum(dim=1, keepdim=True)
