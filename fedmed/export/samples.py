"""Some images of those at hand: for the proof of an artefact, and for the ranges that new images are compared with."""

import math
from collections.abc import Sequence

import torch

from fedmed.config import Plan
from fedmed.data import ImagePart, make_eval_transform
from fedmed.export.artefact import ProofImages
from fedmed.export.ranges import Expected, describe_range


def take_proof_images(parts: Sequence[ImagePart], plan: Plan, most: int, source: str) -> ProofImages | None:
    """Return evenly chosen images of several parts as the network sees them; None where there are none.

    Parameters
    ----------
    parts : sequence of ImagePart
        Each gives as many as every other, as far as it has them; empty ones give none.
    plan : Plan
        How images become the network's input.
    most : int
        Images of all parts together, up to rounding.
    source : str
        What they are, without their number: ``test images of 4 sites``.
    """
    chosen = _choose(parts, most)
    if not chosen:
        return None
    transform = make_eval_transform(plan.augmentation, plan.image_size)
    # One by one: photographs are much larger before they are cut to size than after.
    x_NCHW = torch.cat([transform(part.images([index])) for part, index in chosen])
    labels_N = torch.stack([part.labels[index] for part, index in chosen])
    return ProofImages(x_NCHW, labels_N, f"{len(chosen)} {source}")


def describe_parts(parts: Sequence[ImagePart], most: int, source: str) -> Expected:
    """Return in which ranges new images are like evenly chosen ones of these; see :func:`describe_range`.

    Parameters
    ----------
    parts, most, source
        As for :func:`take_proof_images`.
    """
    chosen = _choose(parts, most)
    return describe_range((part.images([index])[0] for part, index in chosen), f"from {len(chosen)} {source}")


def _choose(parts: Sequence[ImagePart], most: int) -> list[tuple[ImagePart, int]]:
    """Return parts and indices, each part's spread evenly over it."""
    filled = [part for part in parts if len(part)]
    chosen = []
    for part in filled:
        number = min(math.ceil(most / len(filled)), len(part))
        chosen += [(part, index * len(part) // number) for index in range(number)]
    return chosen
