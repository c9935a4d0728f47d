"""Images that a function from outside fedmed reads, named by its import path as ``data.source``.

The function is called as ``read(root, **options)`` and returns a :class:`~fedmed.data.sources.raw_table.RawTable`. If
the images are files in ``table.root``, that is all. If they are not, it returns the table and an
:class:`~fedmed.data.sources.readers.ImageReader`, whose items are those of the table's rows::

    def read(root: Path | None, *, stain: str = "he") -> tuple[RawTable, ImageReader]: ...

It is called once when the images are split and again in each process that uses them, and must then name the same
images. It runs where the images are and is no part of the plan: a hospital's ``client.yaml`` names its own.
"""

import functools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch

from fedmed.config import ExtensionData
from fedmed.data.sources.raw_table import RawTable, find_root
from fedmed.data.sources.readers import FileReader, ImageReader
from fedmed.errors import DataError, ExtensionError
from fedmed.extensions import build_extension


class CheckedReader:
    """Gives the images of a reader from outside fedmed, once they are what they should be.

    Parameters
    ----------
    reader : ImageReader
        Gives the images.
    source : str
        Import path of what has made it, for messages.
    """

    def __init__(self, reader: ImageReader, source: str) -> None:
        self._reader, self._source = reader, source

    def read(self, item: str) -> torch.Tensor:
        """Return uint8 (3, H, W), RGB.

        Raises
        ------
        DataError
            If there is no such image, or it is of another type or shape.
        """
        try:
            image: object = self._reader.read(item)
        except Exception as error:
            raise DataError(
                f"The source '{self._source}' cannot read its image '{item}': {type(error).__name__}: {error}"
            ) from error
        if not isinstance(image, torch.Tensor):
            raise DataError(f"The source '{self._source}' gives a {type(image).__name__} for '{item}'. {_NEEDED}")
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or not image.numel():
            found = f"{image.dtype} of shape {tuple(image.shape)}"
            raise DataError(f"The source '{self._source}' gives {found} for '{item}'. {_NEEDED}")
        return image


_NEEDED = "Needed: a torch tensor, uint8 (3, H, W), red, green and blue."


def read_extension(config: ExtensionData) -> RawTable:
    """Return the rows of the images.

    Raises
    ------
    DataError
        If the function is not installed here or gives something else, or the folder of the image files is missing.
    ConfigError
        If the function ends with an error or does not know an option.
    """
    table, reader = _call(config)
    if reader is not None:
        repeated = [item for item, number in Counter(row.item for row in table.rows).items() if number > 1]
        if repeated:  # of files, a later check sees it: one image must not be in two parts
            raise DataError(f"The source '{config.source}' names '{repeated[0]}' more than once. Give each image once.")
        return replace(table, root=None)
    if table.root is None:
        raise DataError(
            f"The source '{config.source}' has neither a reader nor a root. Let it return the table and an image "
            "reader, or set the table's root to the folder of the image files."
        )
    return replace(table, root=find_root(str(table.root)))


def open_extension(config: ExtensionData, cache_mib: float) -> ImageReader:
    """Return what gives the images.

    Parameters
    ----------
    config : ExtensionData
        The source.
    cache_mib : float
        Budget in MiB for decoded image files, 0 for none; a reader of the source's own decides itself what it keeps.

    Raises
    ------
    DataError, ConfigError
        See :func:`read_extension`.
    """
    table, reader = _call_once(config.model_dump_json())
    if reader is not None:
        return CheckedReader(reader, config.source)
    return FileReader(find_root(str(table.root)), cache_mib)


@functools.lru_cache(maxsize=1)
def _call_once(config_json: str) -> tuple[RawTable, ImageReader | None]:
    """Many sites of a process share one source."""
    return _call(ExtensionData.model_validate_json(config_json))


def _call(config: ExtensionData) -> tuple[RawTable, ImageReader | None]:
    root = None if config.root is None else Path(config.root)
    try:
        made = build_extension("source", config.source, object, root, **config.options)
    except ExtensionError as error:  # which sources a site has, need not be told to others
        raise DataError(f"data.source: {error}") from error
    table, reader = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(table, RawTable) or not (reader is None or callable(getattr(reader, "read", None))):
        raise DataError(
            f"The source '{config.source}' has returned a {type(made).__name__}. Needed: a RawTable of "
            "fedmed.data.sources.raw_table, or one and an object that has read(item)."
        )
    return table, reader
