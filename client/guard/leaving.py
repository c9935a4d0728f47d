"""What may come to a hospital and what may leave it: the lists that :mod:`client.guard.guard` makes binding."""

from collections.abc import Mapping
from typing import Any

from fedmed.aggregation.divergence_rule import MAS_WEIGHT
from fedmed.distillation import MIN_IMAGES_TO_SHARE_PROMPT
from fedmed.fairness.figures.group_losses import GROUP_LOSSES, START_LOSS
from fedmed.protocol.messages import ARTEFACT, MISMATCH, MODEL, OTHER_MODEL, REPORT, REQUEST, SUMS, TABLES

MOST_BANDS = 8
LEAVING: Mapping[str, Mapping[str, frozenset[str]]] = {
    "query": {
        REPORT: frozenset(
            {
                "site",
                "num_images",
                "model_digest",
                "teacher",
                "versions",
                "class_counts",
                "synthetic",
                "thresholds",
                "attributes",
                "validation_scores",
                "show_alone",
            }
        ),
    },
    "train": {
        REPORT: frozenset(
            {
                "num_images",
                "loss",
                "learning_rate",
                "train_s",
                "missing_model",
                "ekd",
                "prompt_bands",
                MAS_WEIGHT,
                START_LOSS,
                GROUP_LOSSES,
            }
        ),
        MODEL: frozenset(),
    },
    "local": {
        REPORT: frozenset({"rounds_done", "train_s", "loss", "missing_model", "declined"}),
    },
    "distil": {
        REPORT: frozenset({"num_images", "loss", "learning_rate", "train_s", "missing_model"}),
        MODEL: frozenset(),
    },
    "evaluate": {
        REPORT: frozenset({"model_sha256", "missing_model", MISMATCH}),
        TABLES: frozenset(),
    },
    "recalibrate": {
        REPORT: frozenset({"model_sha256", "missing_model"}),
        SUMS: frozenset(),
    },
    "calibrate": {
        REPORT: frozenset({"model_sha256", "missing_model", "n"}),
        SUMS: frozenset(),
    },
    "release": {
        REPORT: frozenset({"model_sha256", "missing_model", "artefact_sha256", "comparison"}),
    },
}
"""All that leaves a site: kind of message -> part -> keys of the report."""

ARRIVING = (REQUEST, MODEL)
"""Parts of any request."""
ARRIVING_TOO: Mapping[str, tuple[str, ...]] = {
    "release": (ARTEFACT,),
    "evaluate": (OTHER_MODEL,),
    "distil": (OTHER_MODEL,),
}
"""Further parts by kind of message."""


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
