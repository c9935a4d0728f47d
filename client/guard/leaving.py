"""What of its prompt a hospital may tell; the lists of all that leaves are in :mod:`fedmed.protocol.kinds`."""

from fedmed.distillation import MIN_IMAGES_TO_SHARE_PROMPT
from fedmed.protocol.reports import TrainReport


def find_bands_breach(told: TrainReport) -> str | None:
    """Return why a report about a training must not leave, or None.

    A site with few images tells nothing of its prompt, not even the few gains of a report, since they summarise the
    spectra of its images.
    """
    if told.prompt_bands is None or told.num_images >= MIN_IMAGES_TO_SHARE_PROMPT:
        return None
    return f"its prompt is of fewer than {MIN_IMAGES_TO_SHARE_PROMPT} images"
