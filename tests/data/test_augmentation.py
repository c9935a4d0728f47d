"""Oracle: torchvision's functions for single images, with the same amounts."""

import math

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from fedmed.data import augmentation
from fedmed.seeding import seeded_torch

B = 6


@pytest.fixture
def images():
    """Random pictures, and one that is grey, where the hue is not defined."""
    pictures = torch.rand(B, 3, 17, 17, generator=torch.Generator().manual_seed(0))
    pictures[0] = pictures[0, :1]
    pictures[1, :, :4] = torch.eye(3).repeat(2, 3)[
        :3, :4, None
    ]  # pure colours, where channels are equal to one another
    return pictures


def per_image(function, images, amounts):
    return torch.stack([function(image, float(amount)) for image, amount in zip(images, amounts, strict=True)])


@pytest.mark.parametrize(
    ("ours", "theirs", "amounts"),
    [
        (augmentation.change_brightness, tv.adjust_brightness, [0.6, 0.9, 1.0, 1.1, 1.4, 1.3]),
        (augmentation.change_contrast, tv.adjust_contrast, [0.6, 0.9, 1.0, 1.1, 1.4, 1.3]),
        (augmentation.change_saturation, tv.adjust_saturation, [0.6, 0.9, 1.0, 1.1, 1.4, 1.3]),
        (augmentation.shift_hue, tv.adjust_hue, [-0.4, -0.2, 0.0, 0.1, 0.33, 0.4]),
    ],
)
def test_colours(images, ours, theirs, amounts):
    result = ours(images, torch.tensor(amounts).view(B, 1, 1, 1))
    torch.testing.assert_close(result, per_image(theirs, images, amounts), atol=2e-6, rtol=0)


def test_blur(images):
    sigmas = torch.tensor([0.05, 0.2, 0.5, 0.8, 1.2, 1.9])[:, None]
    expected = per_image(lambda image, sigma: tv.gaussian_blur(image, [13, 13], [sigma, sigma]), images, sigmas[:, 0])
    torch.testing.assert_close(augmentation.blur(images, sigmas, radius=6), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("size", [17, 13])
def test_warp(images, size):
    angles = torch.tensor([0.0, 30.0, -45.0, 120.0, 180.0, 10.0])
    scales = torch.tensor([1.0, 1.0, 0.9, 0.95, 0.89, 1.0])
    shears = torch.tensor([0.0, 0.0, 0.0, 20.0, -36.0, 36.0])
    expected = torch.stack(
        [
            tv.affine(
                image, float(angle), [0, 0], float(scale), [float(shear), 0.0], interpolation=InterpolationMode.BILINEAR
            )
            for image, angle, scale, shear in zip(images, angles, scales, shears, strict=True)
        ]
    )
    result = augmentation.warp(images, torch.deg2rad(angles), scales, torch.deg2rad(shears), size)
    torch.testing.assert_close(result, tv.center_crop(expected, [size, size]), atol=1e-5, rtol=0)


def test_warp_by_nothing_is_the_image(images):
    nothing = torch.zeros(B)
    torch.testing.assert_close(augmentation.warp(images, nothing, nothing + 1, nothing, 17), images)


@pytest.mark.parametrize("dim", [-1, -2])
def test_flips_are_drawn_for_each_image(dim):
    images = torch.rand(400, 3, 4, 5)
    with seeded_torch(0, "flip"):
        result = augmentation.flip_randomly(images, dim)
    flipped = (result == images.flip(dim)).flatten(1).all(1)
    kept = (result == images).flatten(1).all(1)
    assert torch.equal(flipped, ~kept)
    assert 160 < int(flipped.sum()) < 240  # 200 expected, standard deviation 10


def test_share_of_changed_images():
    images = torch.rand(500, 3, 6, 6)
    with seeded_torch(0, "share"):
        jittered = augmentation.jitter_colours(images, strength=0.4, probability=0.8)
        blurred = augmentation.blur_randomly(images, (0.5, 2.0), probability=0.5)
    for result, expected in ((jittered, 400), (blurred, 250)):
        changed = (result != images).flatten(1).any(1)
        assert abs(int(changed.sum()) - expected) < 4 * math.sqrt(125)
        assert result.min() >= 0
        assert result.max() <= 1


def test_nothing_chosen(images):
    assert torch.equal(augmentation.jitter_colours(images, 0.4, probability=0.0), images)
    assert torch.equal(augmentation.blur_randomly(images, (0.1, 2.0), probability=0.0), images)


def test_inputs_are_left_as_they_are(images):
    before = images.clone()
    augmentation.jitter_colours(images, 0.4, 1.0)
    augmentation.blur_randomly(images, (0.1, 2.0), 1.0)
    augmentation.flip_randomly(images, -1)
    assert torch.equal(images, before)
