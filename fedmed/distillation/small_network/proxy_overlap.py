"""Proxy images that are also images on which a model is judged: those would make it look better than it is.

Found by SHA-256, of files where the judged images are files, and of pixels where they are arrays. Only where one person
holds all images: in a real federation no hash of a patient's image leaves a hospital.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from fedmed.data.sources.decoding import decode_image
from fedmed.errors import DataError
from fedmed.storage.atomic_files import hash_file


class JudgedImage(NamedTuple):
    """A validation or test image.

    Attributes
    ----------
    name : str
        For a person: site, part and image.
    content : Path or callable
        Its file; or what gives its pixels, uint8 (3,H,W).
    """

    name: str
    content: Path | Callable[[], Tensor]


def check_disjoint(folder: Path, files: Sequence[Path], judged: Iterable[JudgedImage]) -> None:
    """Refuse proxy images that are also validation or test images.

    Parameters
    ----------
    folder : Path
        Of the proxy images, for the text.
    files : sequence of Path
        The proxy images.
    judged : iterable of JudgedImage
        Of all sites.

    Raises
    ------
    DataError
        With their number and the first.
    """
    proxy = _Known(files)
    found: dict[Path, str] = {}
    for image in judged:
        for file in proxy.find(image.content):
            found.setdefault(file, image.name)
    if not found:
        return
    first = min(found)
    raise DataError(
        f"{len(found)} of the {len(files)} proxy images in '{folder}' are also validation or test images of the sites; "
        f"the first, '{first}', is {found[first]}. A small network that was distilled on images on which it is judged "
        "looks better than it is. Remove them from that folder, or name other images as fopro.proxy."
    )


class _Known:
    """The proxy images by their hash, which is computed where a judged image is as large."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files
        self._by_size: dict[int, list[Path]] = {}
        for file in files:
            self._by_size.setdefault(file.stat().st_size, []).append(file)
        self._by_hash: dict[int, dict[str, list[Path]]] = {}
        self._by_pixels: dict[str, list[Path]] | None = None

    def find(self, content: Path | Callable[[], Tensor]) -> Sequence[Path]:
        """Return the proxy images that are the same."""
        return self._find_file(content) if isinstance(content, Path) else self._find_pixels(content())

    def _find_file(self, file: Path) -> Sequence[Path]:
        try:
            size = file.stat().st_size
            if size not in self._by_size:
                return ()
            if size not in self._by_hash:
                self._by_hash[size] = _group(self._by_size[size], hash_file)
            return self._by_hash[size].get(hash_file(file), ())
        except OSError as error:
            raise DataError(f"The image '{file}' cannot be read: {error}. Put the file back.") from None

    def _find_pixels(self, pixels: Tensor) -> Sequence[Path]:
        if self._by_pixels is None:
            self._by_pixels = _group(self._files, lambda file: _hash_pixels(decode_image(file)))
        return self._by_pixels.get(_hash_pixels(pixels), ())


def _group(files: Iterable[Path], make_hash: Callable[[Path], str]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(make_hash(file), []).append(file)
    return found


def _hash_pixels(pixels_3HW: Tensor) -> str:
    shape = "x".join(map(str, pixels_3HW.shape))
    return hashlib.sha256(shape.encode() + pixels_3HW.contiguous().numpy().tobytes()).hexdigest()
