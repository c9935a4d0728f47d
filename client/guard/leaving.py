"""What of its prompt a hospital may tell; the lists of all that leaves are in :mod:`fedmed.protocol.kinds`."""

from collections.abc import Mapping
from typing import Any

from fedmed.distillation import MIN_IMAGES_TO_SHARE_PROMPT

MOST_BANDS = 8


def find_bands_breach(told: Mapping[str, Any]) -> str | None:
    """Return why a report about a training must not leave, or None: of the prompt, it tells a few numbers only.

    A site with few images tells none at all, since they summarise the spectra of its images.
    """
    bands = told.get("prompt_bands")
    if bands is None:
        return None
    if int(told.get("num_images", 0)) < MIN_IMAGES_TO_SHARE_PROMPT:
        return f"its prompt is of fewer than {MIN_IMAGES_TO_SHARE_PROMPT} images"
    is_short = isinstance(bands, list) and len(bands) <= MOST_BANDS
    if not is_short or not all(gain is None or isinstance(gain, float) for gain in bands):
        return f"it tells more of its prompt than {MOST_BANDS} gains"
    return None
