"""Why a model must not be released by itself: it is blind, or no better than a guess.

Such a model passes every other check: its forms agree, and its figures are figures. So it waits for a person, as with
``release: manual``, and says why in the console, the status, the report and the model card. ::

    release_doubts.json    of the run's folder; an empty list where there is no doubt
"""

import json
import math
from collections.abc import Mapping

from fedmed.config import SITE_ATTRIBUTE
from fedmed.storage.atomic_files import write_atomically
from fedmed.storage.history import Validation
from fedmed.storage.run_folder import RunFolder

DOUBTS_FILE = "release_doubts.json"
_Z = 1.645
"""Of a normal distribution: a guess is above it in one of 20 cases."""
_UNKNOWN_MARGIN = 0.02
"""In place of a standard error, where the number of images is not known."""


def read_doubts(run: RunFolder) -> list[str]:
    """Return why the run's model must not be released by itself, as sentences; empty where there is no doubt."""
    try:
        found = json.loads((run.path / DOUBTS_FILE).read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        return [f"{DOUBTS_FILE} of the run's folder cannot be read ({type(error).__name__})."]
    return [str(text) for text in found] if isinstance(found, list) else ["What is wrong with the model is not known."]


def write_doubts(run: RunFolder, doubts: list[str]) -> None:
    """Keep why the run's model must not be released by itself."""
    write_atomically(run.path / DOUBTS_FILE, json.dumps(doubts, ensure_ascii=False).encode())


def find_chance(validation: Validation, num_classes: int, site_classes: Mapping[str, int]) -> str | None:
    """Return a sentence if a model is no better on validation images than a guess that looks at no image, or None.

    Parameters
    ----------
    validation : Validation
        Of the chosen round.
    num_classes : int
        K.
    site_classes : mapping of str to int
        By site, how many classes its images are told of; looked at where the validation figures are not by class.

    Returns
    -------
    str or None
        None also where nothing is known.

    Notes
    -----
    A guess that does not look at the image has the balanced accuracy ``q = 1 / K'`` over the K' classes that have
    images, whichever classes it prefers. The model has to be above ``q + 1.645 sqrt(sum_k q (1 - q) / n_k) / K'``, with
    n_k images of class k: a guess gets there in one of 20 cases. Where only figures are known, q is the mean of 1 / K'
    over the sites that have told one and the root is that of ``q (1 - q) / n``. Without a balanced accuracy the
    accuracy takes its place, against the share of the most frequent class, or q.
    """
    images, right = _count_classes(validation, num_classes)
    told = [k for k in range(num_classes) if images[k]]
    if len(told) == 1:
        return None
    if told:
        level = 1 / len(told)
        value = sum(right[k] / images[k] for k in told) / len(told)
        margin = _Z * math.sqrt(sum(level * (1 - level) / images[k] for k in told)) / len(told)
        return _describe("balanced accuracy", value, level, margin)
    found = [
        1 / number
        for site, number in site_classes.items()
        if number > 0 and (not validation.sites or site in validation.sites)
    ]
    level = sum(found) / len(found) if found else 1 / num_classes
    number = validation.pooled.get("n") or 0
    margin = _Z * math.sqrt(level * (1 - level) / number) if number else _UNKNOWN_MARGIN
    for key in ("balanced_accuracy", "accuracy"):
        value_or_none = validation.pooled.get(key)
        if value_or_none is not None:
            return _describe(key.replace("_", " "), float(value_or_none), level, margin)
    return None


def _count_classes(validation: Validation, num_classes: int) -> tuple[list[int], list[int]]:
    """Return the numbers of images and of right answers by class, zeros where they are not known."""
    groups = validation.counts.get(SITE_ATTRIBUTE, {}).values()

    def total(key: str, k: int) -> int:
        return sum(counts[key][k] for counts in groups if len(counts.get(key, ())) == num_classes)

    return [total("n", k) for k in range(num_classes)], [total("right", k) for k in range(num_classes)]


def _describe(figure: str, value: float, level: float, margin: float) -> str | None:
    if value > level + margin:
        return None
    return (
        f"The model is not better than chance: its {figure} on validation images is {value:.3f}, and a guess that "
        f"looks at no image has {level:.3f} (up to {level + margin:.3f} by chance)."
    )
