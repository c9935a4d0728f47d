"""From one collection of images to sites."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedmed.config import PartitionConfig
from fedmed.data.checks import SKIPPED_FILE
from fedmed.data.phantom.cohort import phantom_site_names
from fedmed.errors import ConfigError, DataError
from fedmed.seeding import make_rng

POOLED = "pooled"
MAX_DRAWS = 1000
_MAX_NAME_LENGTH = 60


@dataclass(frozen=True, slots=True)
class Item:
    """One usable image."""

    key: str
    """Path relative to the root, index of an array, or ``site/index`` of the phantom."""
    label: int
    """Index of the class."""
    group: str
    """Id of the patient or lesion, or the item's own key; images of one group stay together."""
    site: str = ""
    """Site that the source names; empty where it names none."""
    attributes: tuple[str, ...] = ()


def partition_items(
    partition: PartitionConfig, items: Sequence[Item], sites: int | None, seed: int
) -> dict[str, list[Item]]:
    """Distribute images over sites.

    Parameters
    ----------
    partition : PartitionConfig
        How.
    items : sequence of Item
        All images, in an order that does not depend on the source's.
    sites : int or None
        Number of sites, for ``dirichlet``.
    seed : int
        Seed of the run.

    Returns
    -------
    dict of str to list of Item
        Site names, sorted, to images. Under ``pooled`` the keys are the sites that the source names, if it does: the
        split into parts is drawn in each, so that a pooled run tests on the same images as a federated one.

    Raises
    ------
    ConfigError
        If the kind does not suit the source, or the number of sites is missing or wrong.
    DataError
        If names of sites cannot be told apart, or no draw gives every site ``min_images``.
    """
    if partition.kind == "dirichlet":
        return _draw_sites(partition, items, sites, seed)
    if not items[0].site:
        if partition.kind == "pooled":
            return {POOLED: list(items)}
        raise ConfigError(
            "data.partition.kind is 'column', but the data names no sites. Set data.site_column (possible for "
            "data.source image_table only), or data.partition.kind: 'dirichlet' draws as many sites as the key "
            "'sites' says, 'pooled' puts all images at one site."
        )
    names = clean_site_names({item.site for item in items})
    if partition.kind == "column" and sites is not None and sites != len(names):
        raise ConfigError(
            f"'sites' is {sites}, but the data names {len(names)}: {', '.join(sorted(names)[:10])}. "
            "Set sites: null, since the data names them."
        )
    by_site: dict[str, list[Item]] = {name: [] for name in sorted(names.values())}
    for item in items:
        by_site[names[item.site]].append(item)
    return by_site


def clean_site_names(names: Iterable[str]) -> dict[str, str]:
    """Return for every name of a site one that is safe as a file name.

    Accents are dropped, and characters other than ``A-Z a-z 0-9 . _ -`` become ``_``.

    Raises
    ------
    DataError
        If nothing is left of a name, it is too long or reserved, or two names become the same (upper and lower case
        count as the same, as on some file systems).
    """
    cleaned: dict[str, str] = {}
    taken = {SKIPPED_FILE.removesuffix(".csv"): f"the file {SKIPPED_FILE} of a run"}
    for name in sorted(names):
        plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
        safe = re.sub(r"[^A-Za-z0-9._-]+", "_", plain).strip("._-")
        if not safe or len(safe) > _MAX_NAME_LENGTH:
            raise DataError(
                f"The site name '{name}' cannot be a file name. Allowed: letters A-Z, digits, '.', '_' and '-', with "
                f"at least one letter or digit and at most {_MAX_NAME_LENGTH} characters. Rename the site in the table."
            )
        if safe.casefold() in taken:
            raise DataError(
                f"The site name '{name}' becomes the file name '{safe}', which is the same as that of "
                f"'{taken[safe.casefold()]}'. Rename one of them in the table."
            )
        taken[safe.casefold()] = name
        cleaned[name] = safe
    return cleaned


def _draw_sites(
    partition: PartitionConfig, items: Sequence[Item], sites: int | None, seed: int
) -> dict[str, list[Item]]:
    """Draw for every class the sites' shares from a Dirichlet distribution and deal out its groups accordingly.

    Source: Hsu, Qi, Brown, "Measuring the effects of non-identical data distribution for federated visual
    classification", 2019, with whole groups instead of images.
    """
    if sites is None:
        raise ConfigError("data.partition.kind is 'dirichlet', which needs the number of sites: set the key 'sites'.")
    if sites * partition.min_images > len(items):
        raise ConfigError(
            f"{sites} sites with at least {partition.min_images} images each (data.partition.min_images) need "
            f"{sites * partition.min_images} images; there are {len(items)}. Take fewer sites or a smaller min_images."
        )
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        groups[item.group].append(item)
    ids = sorted(groups)
    sizes = np.array([len(groups[name]) for name in ids])
    labels = np.array([_main_class(groups[name]) for name in ids])
    site_of_group = _deal_groups(partition, sizes, labels, sites, make_rng(seed, "partition"))
    names = phantom_site_names(sites)
    by_site: dict[str, list[Item]] = {name: [] for name in names}
    for index, group in zip(site_of_group.tolist(), ids, strict=True):
        by_site[names[index]].extend(groups[group])
    return by_site


def _main_class(items: Sequence[Item]) -> int:
    counts = Counter(item.label for item in items)
    return min(counts, key=lambda label: (-counts[label], label))


def _deal_groups(
    partition: PartitionConfig,
    sizes: np.ndarray[Any, np.dtype[np.int64]],
    labels: np.ndarray[Any, np.dtype[np.int64]],
    sites: int,
    rng: np.random.Generator,
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the site index of every group."""
    best = 0
    for _ in range(MAX_DRAWS):
        site_of_group = np.zeros(len(sizes), dtype=np.int64)
        for label in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == label))
            ends = np.cumsum(rng.dirichlet(np.full(sites, partition.alpha)))
            middle = (np.cumsum(sizes[members]) - sizes[members] / 2) / sizes[members].sum()
            site_of_group[members] = np.minimum(np.searchsorted(ends, middle), sites - 1)
        smallest = int(np.bincount(site_of_group, weights=sizes, minlength=sites).min())
        if smallest >= partition.min_images:
            return site_of_group
        best = max(best, smallest)
    raise DataError(
        f"In {MAX_DRAWS} draws with data.partition.alpha {partition.alpha:g}, none of which gave each of {sites} sites "
        f"{partition.min_images} images (data.partition.min_images), the best had {best} at its smallest site. Take a "
        "larger alpha, fewer sites or a smaller min_images."
    )
