"""A site's images for training and evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fedmed.config import DataConfig, ExtensionData, NpzData, PhantomData
from fedmed.data.sources.extension import open_extension
from fedmed.data.sources.npz import open_npz_images
from fedmed.data.sources.readers import ArrayReader, FileReader, ImageReader, PhantomReader
from fedmed.data.split_files import SplitRow, describe_settings, read_index, read_site
from fedmed.data.splits import PARTS
from fedmed.errors import RunFolderError


class ImagePart:
    """One part of one site: train, validation or test.

    Parameters
    ----------
    items : sequence of str
        Names of N images, known to ``reader``.
    labels : sequence of int
        Class indices, N.
    attributes : mapping of str to sequence of str
        Attribute name to N values.
    reader : ImageReader
        Gives the pixels.
    patients : sequence of str, optional
        Id of each image's patient or lesion. Without, each image is one by itself.
    """

    def __init__(
        self,
        items: Sequence[str],
        labels: Sequence[int],
        attributes: Mapping[str, Sequence[str]],
        reader: ImageReader,
        patients: Sequence[str] | None = None,
    ) -> None:
        assert len(items) == len(labels)
        assert patients is None or len(patients) == len(items)
        assert all(len(values) == len(items) for values in attributes.values())
        self.items = tuple(items)
        self.labels = torch.tensor(labels, dtype=torch.int64)
        """int64 (N,)."""
        self.attributes: Mapping[str, tuple[str, ...]] = {name: tuple(values) for name, values in attributes.items()}
        """Attribute name to N values, ``"unknown"`` where the table has none."""
        self.patients = self.items if patients is None else tuple(patients)
        """Id of each image's patient, N; where the data has none, of the lesion, or the image's own name."""
        self._reader = reader

    def __len__(self) -> int:
        return len(self.items)

    def images(self, indices: Sequence[int]) -> list[torch.Tensor]:
        """Return images, each uint8 (3, H, W) in RGB; sizes may differ. They are shared with the cache: do not write.

        Raises
        ------
        DataError
            If a file has become unreadable since the data was split.
        """
        return [self._reader.read(self.items[index]) for index in indices]


@dataclass(frozen=True)
class SiteData:
    """All that a site has."""

    name: str
    classes: tuple[str, ...]
    train: ImagePart
    validation: ImagePart
    test: ImagePart


def load_site(  # noqa: PLR0917  (what identifies a site)
    config: DataConfig, sites: int | None, seed: int, splits_dir: Path, site: str, cache_mib: float
) -> SiteData:
    """Load one site of prepared data; image files are decoded when they are first asked for.

    Parameters
    ----------
    config : DataConfig
        Settings of the data, as they were given to :func:`fedmed.data.prepare_data`.
    sites : int or None
        Number of sites where the partition makes them.
    seed : int
        Seed of the run.
    splits_dir : Path
        Folder that ``prepare_data`` has written.
    site : str
        Name of the site.
    cache_mib : float
        Memory in MiB for decoded image files of this site. Images that no longer fit are decoded every time they are
        asked for. Arrays and the phantom are in memory as a whole, whatever this says.

    Returns
    -------
    SiteData
        Train, validation and test.

    Raises
    ------
    RunFolderError
        If the folder holds no split, one made with other settings, or no such site.
    DataError
        If the source is missing.
    """
    index = read_index(splits_dir, describe_settings(config, sites, seed))
    if index is None:
        raise RunFolderError(f"There is no split in '{splits_dir}'. Prepare the data first.")
    rows = read_site(splits_dir, index, site)
    reader = _make_reader(config, sites, seed, rows, cache_mib)
    train, validation, test = (
        _make_part([row for row in rows if row.part == part], index.attribute_names, reader) for part in PARTS
    )
    return SiteData(site, tuple(index.classes), train, validation, test)


def count_classes(part: ImagePart, num_classes: int) -> list[int]:
    """Return how many images of each class a part has, K values."""
    counts: list[int] = torch.bincount(part.labels, minlength=num_classes).tolist()
    return counts


def _make_reader(
    config: DataConfig, sites: int | None, seed: int, rows: Sequence[SplitRow], cache_mib: float
) -> ImageReader:
    if isinstance(config, PhantomData):
        assert sites is not None, "the split was made with a number of sites"
        return PhantomReader(config, sites, {row.item.key.partition("/")[0] for row in rows}, seed)
    if isinstance(config, NpzData):
        return ArrayReader(open_npz_images(config))
    if isinstance(config, ExtensionData):
        return open_extension(config, cache_mib)
    return FileReader(Path(config.root), cache_mib)


def _make_part(rows: Sequence[SplitRow], attribute_names: Sequence[str], reader: ImageReader) -> ImagePart:
    return ImagePart(
        items=[row.item.key for row in rows],
        labels=[row.item.label for row in rows],
        attributes={name: [row.item.attributes[i] for row in rows] for i, name in enumerate(attribute_names)},
        reader=reader,
        patients=[row.item.group for row in rows],
    )
