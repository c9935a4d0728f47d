"""Unlabelled images at the server: what a compact student is distilled on.

Letters: B batch, S side.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from torch import Tensor

from fedmed.config import PhantomData
from fedmed.data import ImagePart, make_eval_transform, normalisation
from fedmed.data.phantom.cohort import generate_proxy
from fedmed.data.sources.decoding import decode_image
from fedmed.distillation.pixels import restore_pixels
from fedmed.errors import ProxyDataUnavailableError

SUFFIXES = (".jpg", ".jpeg", ".png")
REMEDY = (
    "Give a folder of images whose licence allows it as fopro.proxy, or let the hospitals distil the compact student "
    "themselves (fopro.compression: co_distillation), or deploy the multi-branch network (fopro.compression: skip)"
)


FAR_RATIO = 3.0
"""Mismatch of the prompted proxy images over that of the hospitals' own, above which the set is too far away."""


class ProxyImages:
    """A set of images without labels, from which batches are read.

    Parameters
    ----------
    read : callable
        From the index of an image to uint8 (3,H,W).
    num_images : int
        At least 2.
    recipe, image_size : str, int
        Evaluation recipe and side S of the network's images.

    Raises
    ------
    ProxyDataUnavailableError
        If there are fewer than two images.
    """

    def __init__(self, read: Callable[[int], Tensor], num_images: int, *, recipe: str, image_size: int) -> None:
        if num_images < 2:
            raise ProxyDataUnavailableError(f"The proxy set has {num_images} images. Needed: at least 2. {REMEDY}.")
        self._read, self.num_images = read, num_images
        self.statistics = normalisation(recipe)
        self._transform = make_eval_transform(recipe, image_size)

    def __len__(self) -> int:
        return self.num_images

    def pixels(self, indices: Sequence[int]) -> Tensor:
        """Return images (B,3,S,S) in [0, 1]."""
        return restore_pixels(self._transform([self._read(index) for index in indices]), self.statistics)

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """Yield all images in their order, as :meth:`pixels`."""
        for first in range(0, self.num_images, batch_size):
            yield self.pixels(range(first, min(first + batch_size, self.num_images)))


def list_proxy_files(folder: Path) -> list[Path]:
    """Return the JPEG and PNG files under a folder, in the order of their paths."""
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())


def open_proxy_folder(folder: Path, *, recipe: str, image_size: int) -> ProxyImages:
    """Return the JPEG and PNG files under a folder, in the order of their paths.

    Raises
    ------
    ProxyDataUnavailableError
        If the folder is missing or holds fewer than two images.
    """
    if not folder.is_dir():
        raise ProxyDataUnavailableError(f"There is no folder '{folder}' of proxy images. {REMEDY}.")
    files = list_proxy_files(folder)
    return ProxyImages(lambda index: decode_image(files[index]), len(files), recipe=recipe, image_size=image_size)


def open_proxy_part(part: ImagePart, *, recipe: str, image_size: int) -> ProxyImages:
    """Return the images of a prepared set, without its labels."""
    return ProxyImages(lambda index: part.images([index])[0], len(part), recipe=recipe, image_size=image_size)


def open_proxy_phantom(config: PhantomData, num_images: int, *, seed: int, recipe: str) -> ProxyImages:
    """Return synthetic images of a device that no site of the phantom has.

    Parameters
    ----------
    config : PhantomData
        The phantom of the run.
    num_images : int
        How many.
    seed : int
        Seed of the run.
    recipe : str
        Evaluation recipe.
    """
    images = generate_proxy(config, num_images, seed)
    return ProxyImages(images.__getitem__, len(images), recipe=recipe, image_size=config.image_size)


def describe_distance(proxy_mismatch: float, site_mismatches: Sequence[float]) -> str | None:
    """Return a warning if the proxy set, even prompted, is far from the hospitals' images; else None.

    Parameters
    ----------
    proxy_mismatch : float
        Of :func:`fedmed.distillation.measure_mismatch` with the aggregated network, on the prompted proxy images.
    site_mismatches : sequence of float
        The same of each site's own images: one number from each, at least one.
    """
    own = sum(site_mismatches) / len(site_mismatches)
    if proxy_mismatch <= FAR_RATIO * own:
        return None
    return (
        f"The proxy images are far from the hospitals' own (distance {proxy_mismatch:.3g}, theirs {own:.3g}). Better "
        "let the hospitals distil the compact student themselves (fopro.compression: co_distillation)."
    )
