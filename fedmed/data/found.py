"""How many images were found, and how many of them were left out and why, before any was trained on."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from typing_extensions import TypedDict

from fedmed.data.checks import SkippedRow
from fedmed.data.partition import POOLED, clean_site_names
from fedmed.data.split_files import INDEX_FILE
from fedmed.data.splits import PARTS
from fedmed.errors import DataError

SETTINGS = "settings"
"""Training images that ``data.long_tail`` and ``data.max_train_images`` leave out."""
WITHDRAWN = "withdrawn"
"""Images of patients who withdrew, and of further ones who are left out beside them."""
NO_SITE = ""


class FoundImages(TypedDict):
    """Images of one site, or of which nobody knows the site."""

    kept: dict[str, int]
    """In ``train``, ``validation`` and ``test``."""
    excluded: dict[str, int]
    """By reason."""


def count_excluded(
    skipped: Iterable[SkippedRow], thinned: Mapping[str, int], partition: str
) -> dict[str, dict[str, int]]:
    """Return how many images are left out, by site and reason.

    Parameters
    ----------
    skipped : iterable of SkippedRow
        Rows of the source that cannot be used.
    thinned : mapping of str to int
        By site, training images that the settings leave out.
    partition : str
        ``data.partition.kind``: only ``column`` and ``pooled`` say whose an unusable row is.
    """
    counts = {site: Counter({SETTINGS: number}) for site, number in thinned.items() if number}
    for row in skipped:
        site = POOLED if partition == "pooled" else _clean(row.site) if partition == "column" else NO_SITE
        counts.setdefault(site, Counter())[row.kind] += 1
    return {site: dict(sorted(counts[site].items())) for site in sorted(counts)}


def _clean(site: str) -> str:
    """Return a site's name as its images have it; of one that no site can have, nobody's."""
    try:
        return clean_site_names([site])[site]
    except DataError:
        return NO_SITE


def read_found(splits: Path) -> dict[str, FoundImages] | None:
    """Return what a folder of splits knows, by site; what is nobody's has the name :data:`NO_SITE`.

    Returns
    -------
    dict or None
        None where there is no split, or an earlier version of fedmed has made it.
    """
    try:
        index = json.loads((splits / INDEX_FILE).read_text(encoding="utf-8"))
        excluded, composition = index["excluded"], index["composition"]
        if excluded is None:
            return None
        return {
            site: {
                "kept": {part: sum(composition[site][part]) if site in composition else 0 for part in PARTS},
                "excluded": {str(reason): int(number) for reason, number in excluded.get(site, {}).items()},
            }
            for site in sorted({*composition, *excluded})
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
