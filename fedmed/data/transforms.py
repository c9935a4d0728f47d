"""Training recipes: from decoded images of any size to a normalised batch.

======== ========================================================================================= ===================
recipe   training                                                                                  evaluation
======== ========================================================================================= ===================
adsr     random crop of 0.2 to 1 of the area; brightness, contrast, saturation, hue 0.4 in 80 % of resize
         the images; rotation up to 45°; Gaussian blur in 50 %; left-right flip
aptos    resize to 9/8 of the size; any rotation, scale 8/9 to 1, shear up to 36°; centre crop;    resize
         both flips; contrast 0.9 to 1.1
hifuse   random crop of 0.08 to 1 of the area; left-right flip                                     resize to 8/7 and
                                                                                                   crop the centre
flips    resize; both flips                                                                        resize
none     resize                                                                                    resize
======== ========================================================================================= ===================

``adsr`` is the recipe of ADSR and ERoHPRF for skin lesions, ``aptos`` that of ERoHPRF for the fundus, ``hifuse`` that
of HiFuse and HEMF. Their lengths in pixels were given for 224 (``aptos``: 256) and are scaled in proportion for other
sizes: the blur's standard deviation is uniform in 0.1 to 2 pixels at 224. "Resize" does not keep the aspect ratio,
except in ``hifuse``, where it is the shorter side that is resized. Rotation is bilinear and fills with black.
``hifuse`` normalises with 0.5 and 0.5, the others with ImageNet's statistics.

A training recipe draws from torch's global generator. An evaluation recipe is deterministic, and an image's result does
not depend on the batch that it is in.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812  (the usual name)

from fedmed.data.augmentation import (
    blur_randomly,
    change_contrast,
    draw_flips,
    draw_uniform,
    flip_images,
    flip_randomly,
    jitter_colours,
    warp,
)
from fedmed.errors import ConfigError, suggest_nearest

Transform = Callable[[Sequence[torch.Tensor]], torch.Tensor]
"""From B images, each uint8 (3, H, W), to float32 (B, 3, S, S), normalised."""

Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]

IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF: Statistics = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

BLUR_SIGMA_224 = (0.1, 2.0)  # pixels at 224
NUM_VIEWS = {"none": 1, "flips": 4}
"""Recipes whose views of an image repeat, and how many there are."""
ASPECT_RATIOS = (3 / 4, 4 / 3)
CROP_TRIES = 10


def make_train_transform(recipe: str, image_size: int) -> Transform:
    """Return the training form of a recipe.

    Parameters
    ----------
    recipe : str
        ``adsr``, ``aptos``, ``hifuse``, ``flips`` or ``none``.
    image_size : int
        S, side of the result in pixels.

    Returns
    -------
    Transform
        From B images, each uint8 (3, H, W), to float32 (B, 3, S, S).

    Raises
    ------
    ConfigError
        If there is no such recipe.
    """
    augment = _find_recipe(recipe)
    statistics = normalisation(recipe)
    return lambda images: _normalise(augment(images, image_size), statistics)


def make_eval_transform(recipe: str, image_size: int) -> Transform:
    """Return the evaluation form of a recipe; parameters, result and errors as for :func:`make_train_transform`."""
    _find_recipe(recipe)
    statistics = normalisation(recipe)
    shape = _resize_and_crop if recipe == "hifuse" else _resize_all
    return lambda images: _normalise(shape(images, image_size), statistics)


def make_view_transform(recipe: str, image_size: int) -> Callable[[Sequence[torch.Tensor], torch.Tensor], torch.Tensor]:
    """Return a recipe of :data:`NUM_VIEWS` with given views instead of random ones.

    Parameters
    ----------
    recipe, image_size
        As for :func:`make_train_transform`.

    Returns
    -------
    callable
        From B images and int64 (B,) views, as :func:`draw_views` gives them, to what the training recipe makes of them.
    """
    assert recipe in NUM_VIEWS, "the recipe's views repeat"
    statistics = normalisation(recipe)

    def make(images: Sequence[torch.Tensor], views: torch.Tensor) -> torch.Tensor:
        batch = flip_images(flip_images(_resize_all(images, image_size), views % 2 == 1, -1), views >= 2, -2)
        return _normalise(batch, statistics)

    return make


def draw_views(recipe: str, num_images: int) -> torch.Tensor:
    """Draw views, int64 (B,), from torch's global generator as a training recipe of :data:`NUM_VIEWS` does."""
    if NUM_VIEWS[recipe] == 1:
        return torch.zeros(num_images, dtype=torch.int64)
    flipped, upside_down = draw_flips(num_images), draw_flips(num_images)
    return flipped.long() + 2 * upside_down.long()


def normalisation(recipe: str) -> Statistics:
    """Return mean and standard deviation of the channels, for values in [0, 1].

    Raises
    ------
    ConfigError
        If there is no such recipe.
    """
    _find_recipe(recipe)
    return HALF if recipe == "hifuse" else IMAGENET


def draw_crops(sizes: torch.Tensor, area: tuple[float, float]) -> torch.Tensor:
    """Draw one crop for each image.

    Parameters
    ----------
    sizes : Tensor
        int64 (B, 2): height and width of each image.
    area : (float, float)
        Range of the crop's share of the image's area, uniform; its aspect ratio is log-uniform in 3/4 to 4/3.

    Returns
    -------
    Tensor
        int64 (B, 4): top, left, height, width. Of ten draws the first that fits into the image counts; if none does, it
        is the largest centred crop with an allowed aspect ratio.
    """
    num = len(sizes)
    height, width = sizes[:, :1].double(), sizes[:, 1:].double()  # (B, 1)
    target = height * width * torch.empty(num, CROP_TRIES, dtype=torch.float64).uniform_(*area)
    log_low, log_high = (math.log(ratio) for ratio in ASPECT_RATIOS)
    ratio = torch.empty(num, CROP_TRIES, dtype=torch.float64).uniform_(log_low, log_high).exp()
    place = torch.rand(num, 2, dtype=torch.float64)
    crop_width, crop_height = (target * ratio).sqrt().round(), (target / ratio).sqrt().round()  # (B, tries)
    fits = (crop_width >= 1) & (crop_height >= 1) & (crop_width <= width) & (crop_height <= height)
    first = fits.int().argmax(dim=1, keepdim=True)
    found = fits.any(dim=1, keepdim=True)
    widest, highest = (height * ASPECT_RATIOS[1]).round(), (width / ASPECT_RATIOS[0]).round()
    crop_height = torch.where(found, crop_height.gather(1, first), torch.minimum(height, highest))
    crop_width = torch.where(found, crop_width.gather(1, first), torch.minimum(width, widest))
    place = torch.where(found, place, 0.5)
    top = (place[:, :1] * (height - crop_height + 1)).floor()
    left = (place[:, 1:] * (width - crop_width + 1)).floor()
    return torch.cat([top, left, crop_height, crop_width], dim=1).long()


def _augment_adsr(images: Sequence[torch.Tensor], size: int) -> torch.Tensor:
    batch = jitter_colours(_crop_randomly(images, size, (0.2, 1.0)), strength=0.4, probability=0.8)
    num, quarter = len(batch), math.pi / 4
    batch = warp(batch, torch.empty(num).uniform_(-quarter, quarter), torch.ones(num), torch.zeros(num), size)
    low, high = (sigma * size / 224 for sigma in BLUR_SIGMA_224)
    return flip_randomly(blur_randomly(batch, (low, high), probability=0.5), -1)


def _augment_aptos(images: Sequence[torch.Tensor], size: int) -> torch.Tensor:
    batch = _resize_all(images, round(size * 288 / 256))
    num, shear = len(batch), math.radians(36)
    angles = torch.empty(num).uniform_(-math.pi, math.pi)
    scales, shears = torch.empty(num).uniform_(8 / 9, 1), torch.empty(num).uniform_(-shear, shear)
    batch = warp(batch, angles, scales, shears, size)
    return change_contrast(flip_randomly(flip_randomly(batch, -1), -2), draw_uniform(num, 0.9, 1.1))


def _augment_hifuse(images: Sequence[torch.Tensor], size: int) -> torch.Tensor:
    return flip_randomly(_crop_randomly(images, size, (0.08, 1.0)), -1)


def _augment_flips(images: Sequence[torch.Tensor], size: int) -> torch.Tensor:
    return flip_randomly(flip_randomly(_resize_all(images, size), -1), -2)


def _resize_all(images: Sequence[torch.Tensor], size: int) -> torch.Tensor:
    return _stack([_resize(image, size, size) for image in images])


_RECIPES: dict[str, Callable[[Sequence[torch.Tensor], int], torch.Tensor]] = {
    "adsr": _augment_adsr,
    "aptos": _augment_aptos,
    "hifuse": _augment_hifuse,
    "flips": _augment_flips,
    "none": _resize_all,
}


def _find_recipe(recipe: str) -> Callable[[Sequence[torch.Tensor], int], torch.Tensor]:
    if recipe not in _RECIPES:
        raise ConfigError(
            f"There is no augmentation '{recipe}'.{suggest_nearest(recipe, _RECIPES)} Allowed: {', '.join(_RECIPES)}."
        )
    return _RECIPES[recipe]


def _resize_and_crop(images: Sequence[torch.Tensor], size: int) -> torch.Tensor:
    return _stack([_crop_middle(_resize_shorter(image, round(size * 256 / 224)), size) for image in images])


def _resize_shorter(image: torch.Tensor, target: int) -> torch.Tensor:
    height, width = image.shape[-2:]
    longer = target * max(height, width) // min(height, width)
    return _resize(image, target, longer) if height <= width else _resize(image, longer, target)


def _crop_middle(image: torch.Tensor, size: int) -> torch.Tensor:
    top, left = (round((side - size) / 2) for side in image.shape[-2:])
    return image[:, top : top + size, left : left + size]


def _crop_randomly(images: Sequence[torch.Tensor], size: int, area: tuple[float, float]) -> torch.Tensor:
    crops = draw_crops(torch.tensor([image.shape[-2:] for image in images]), area).tolist()
    return _stack(
        [
            _resize(image[:, top : top + height, left : left + width], size, size)
            for image, (top, left, height, width) in zip(images, crops, strict=True)
        ]
    )


def _resize(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize uint8 (3, H, W), bilinear and without aliasing.

    One by one is faster than stacked (torch's kernel for uint8 is fast for one image whose pixels lie together), and a
    quarter of the work of doing it in float32.
    """
    if image.shape[-2:] == (height, width):
        return image
    return F.interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0]


def _stack(images: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return float32 (B, 3, S, S) in [0, 1]."""
    return torch.stack([image.contiguous() for image in images]).float().div_(255)


def _normalise(batch: torch.Tensor, statistics: Statistics) -> torch.Tensor:
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in statistics)
    return batch.sub(mean).div_(deviation)
