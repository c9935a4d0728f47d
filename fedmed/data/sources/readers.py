"""Items to images: the three ways in which a site's pixels are kept."""

from pathlib import Path
from typing import Protocol

import torch

from fedmed.config import PhantomData
from fedmed.data.phantom.cohort import generate_site, phantom_site_names
from fedmed.data.sources.decoding import decode_image

MIB = 2**20


class ImageReader(Protocol):
    """Gives the image of an item."""

    def read(self, item: str) -> torch.Tensor:
        """Return uint8 (3, H, W), RGB."""


class FileReader:
    """Images in files. What was decoded stays in memory until the budget is spent: first come stays.

    Keeping the first is right here, since an epoch visits every image once: with a cache that drops the oldest, an
    image would be dropped before it is visited again.

    Parameters
    ----------
    root : Path
        Folder of the images.
    cache_mib : float
        Budget in MiB for decoded images, 0 for none.
    """

    def __init__(self, root: Path, cache_mib: float) -> None:
        self.root = root
        self.free_bytes = int(cache_mib * MIB)
        self._cache: dict[str, torch.Tensor] = {}

    def read(self, item: str) -> torch.Tensor:
        """Return uint8 (3, H, W), RGB.

        Raises
        ------
        DataError
            If the file is missing or damaged.
        """
        image = self._cache.get(item)
        if image is None:
            image = decode_image(self.root / item)
            if image.nbytes <= self.free_bytes:
                self.free_bytes -= image.nbytes
                self._cache[item] = image
        return image


class ArrayReader:
    """Images of an array that is in memory anyway; ``item`` is an index.

    Parameters
    ----------
    images : Tensor
        uint8 (N, 3, H, W).
    """

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def read(self, item: str) -> torch.Tensor:
        """Return uint8 (3, H, W), RGB."""
        return self.images[int(item)]


class PhantomReader:
    """Generated images; ``item`` is ``site/index``. They stay in memory, since drawing a site anew takes too long.

    Parameters
    ----------
    config : PhantomData
        The phantom.
    sites : int
        Number of sites of the run.
    wanted : set of str
        Names of the sites to generate: one, or all of them when they are pooled.
    seed : int
        Seed of the run.
    """

    def __init__(self, config: PhantomData, sites: int, wanted: set[str], seed: int) -> None:
        self._images = {
            name: generate_site(config, index, seed).images
            for index, name in enumerate(phantom_site_names(sites))
            if name in wanted
        }

    def read(self, item: str) -> torch.Tensor:
        """Return uint8 (3, S, S), RGB."""
        site, _, index = item.partition("/")
        return self._images[site][int(index)]
