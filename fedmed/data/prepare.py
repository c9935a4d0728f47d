"""From settings to a folder of splits: read, check, partition, split, write."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedmed.config import DataConfig, PhantomData
from fedmed.data.checks import SkippedRow, check_rows, choose_classes, refuse_too_many
from fedmed.data.found import count_excluded
from fedmed.data.partition import POOLED, Item, partition_items
from fedmed.data.phantom.cohort import generate_site, phantom_classes, phantom_site_names
from fedmed.data.sources.bands import are_measurements, clean_value, find_quartiles, name_band
from fedmed.data.sources.raw_table import ImageRow, RawTable
from fedmed.data.sources.tables import read_table
from fedmed.data.split_files import CommonFields, SplitIndex, SplitRow, describe_settings, read_index, write_splits
from fedmed.data.splits import PARTS, split_sites
from fedmed.data.thinning import thin_training
from fedmed.errors import ConfigError, RunFolderError
from fedmed.metrics.limits import UNKNOWN

PHANTOM_ATTRIBUTES: tuple[str, ...] = ("sex", "age_band")
_SMALLEST_PHANTOM = 16


@dataclass(frozen=True)
class Prepared:
    """Data that is checked, distributed over sites and split."""

    classes: tuple[str, ...]
    sites: tuple[str, ...]
    """Names, sorted."""
    composition: dict[str, dict[str, list[int]]]
    """Site to part (``train``, ``validation``, ``test``) to images of each class (K)."""
    num_bad_rows: int
    """Rows of the source that were left out; ``skipped_rows.csv`` names them."""
    left_out: tuple[int, ...] = ()
    """Training images of each class (K) that ``data.long_tail`` and ``data.max_train_images`` leave out."""
    quartiles: dict[str, list[float]] = field(default_factory=dict)
    """Attributes of numbers without bands, and the quartiles of all sites' training images by which they are cut."""


def prepare_data(
    config: DataConfig,
    sites: int | None,
    seed: int,
    splits_dir: Path,
    *,
    every_class: bool = True,
    cut_numbers: bool = True,
) -> Prepared:
    """Check the data and write who has which images, or take what an earlier call has written.

    Parameters
    ----------
    config : DataConfig
        Settings of the data.
    sites : int or None
        Number of sites where the partition makes them.
    seed : int
        Seed of the run; partition and split follow from it and from the set of images, not from their order.
    splits_dir : Path
        Folder for ``splits.json``, one CSV per site, and ``skipped_rows.csv`` if rows were left out.
    every_class : bool
        Whether every listed class needs an image; a single hospital may lack one.
    cut_numbers : bool
        Whether an attribute of many different numbers without bands is cut by the quartiles of all training images.
        A hospital knows its own values alone, by which it must not cut what is compared with others'.

    Returns
    -------
    Prepared
        Classes, sites and their composition.

    Raises
    ------
    DataError
        If the source is missing or damaged, too many rows cannot be used, or classes or sites are left without images.
    ConfigError
        If the partition does not suit the source.
    RunFolderError
        If the folder holds a split made with other settings or from another table.
    """
    settings = describe_settings(config, sites, seed)
    index = read_index(splits_dir, settings)
    table = None if isinstance(config, PhantomData) else read_table(config)
    fingerprint = "" if table is None else table.fingerprint
    if index is not None and index.fingerprint != fingerprint:
        assert table is not None, "the phantom has no table"
        raise RunFolderError(
            f"The split in '{splits_dir}' was made from another version of {table.where}. "
            "Put that version back, or start a new run."
        )
    if index is None:
        splits_dir.mkdir(parents=True, exist_ok=True)
        index = _make_splits(config, sites, seed, splits_dir, table, every_class=every_class, cut_numbers=cut_numbers)
    return Prepared(
        classes=tuple(index.classes),
        sites=tuple(sorted(index.composition)),
        composition=index.composition,
        num_bad_rows=index.num_bad_rows,
        left_out=tuple(index.left_out),
        quartiles=index.quartiles,
    )


def describe_left_out(prepared: Prepared, config: DataConfig) -> str:
    """Return in words how many training images of each class the settings leave out."""
    left_out = zip(prepared.classes, prepared.left_out, strict=True)
    total = sum(prepared.left_out) + sum(sum(parts["train"]) for parts in prepared.composition.values())
    names = [name for name in ("long_tail", "max_train_images") if getattr(config, name) is not None]
    return (
        f"{sum(prepared.left_out)} of {total} training images are left out "
        f"({' and '.join(f'data.{name}' for name in names)}): "
        f"{', '.join(f'{name} {number}' for name, number in left_out if number)}."
    )


def list_classes(config: DataConfig) -> tuple[str, ...]:
    """Return the names of the classes in order, from the source's table alone: no image is looked at.

    Raises
    ------
    DataError
        If the source is missing or damaged, or has fewer than two classes.
    """
    if isinstance(config, PhantomData):
        return phantom_classes(config)
    table = read_table(config)
    labelled = (row for row in table.rows if row.label and row.fault is None)
    return choose_classes(table, labelled, every_class=False)


def _make_splits(
    config: DataConfig,
    sites: int | None,
    seed: int,
    splits_dir: Path,
    table: RawTable | None,
    *,
    every_class: bool,
    cut_numbers: bool,
) -> SplitIndex:
    skipped: list[SkippedRow] = []
    names = PHANTOM_ATTRIBUTES
    if isinstance(config, PhantomData):
        classes = phantom_classes(config)
        items = _list_phantom(config, sites, seed)
    else:
        assert table is not None
        kept, skipped = check_rows(table)
        refuse_too_many(table, skipped, config.max_bad_share, splits_dir)
        classes, names = choose_classes(table, kept, every_class=every_class), table.attribute_names
        items = [_make_item(row, classes) for row in kept]
    by_site = partition_items(config.partition, items, None if table is None else sites, seed)
    parts = split_sites(by_site, len(classes), config.split, seed)
    rows = _order_rows(by_site, parts, pooled=config.partition.kind == "pooled")
    full = {site: len(of_site) for site, of_site in rows.items()}
    rows, left_out = thin_training(rows, classes, config, seed)
    thinned = {site: number - len(rows[site]) for site, number in full.items()}
    rows, quartiles = _cut_numbers(rows, names) if cut_numbers else (rows, {})
    common: CommonFields = {
        "settings": describe_settings(config, sites, seed),
        "fingerprint": "" if table is None else table.fingerprint,
        "classes": list(classes),
        "attribute_names": list(names),
        "num_bad_rows": len(skipped),
        "left_out": left_out,
        "quartiles": quartiles,
        "excluded": count_excluded(skipped, thinned, config.partition.kind),
    }
    return write_splits(splits_dir, common, rows)


def _make_item(row: ImageRow, classes: Sequence[str]) -> Item:
    return Item(
        key=row.item,
        label=classes.index(row.label),
        group=row.group or row.item,  # an image without an id is its own group
        site=row.site,
        attributes=tuple(map(clean_value, row.attributes)),
    )


def _cut_numbers(
    rows: Mapping[str, Sequence[SplitRow]], names: Sequence[str]
) -> tuple[dict[str, list[SplitRow]], dict[str, list[float]]]:
    """Return the rows with attributes of many different numbers as bands, and the edges of these."""
    everyone = [row for of_site in rows.values() for row in of_site]
    edges: dict[str, list[float]] = {}
    for place, name in enumerate(names):
        if are_measurements(row.item.attributes[place] for row in everyone):
            trained = [row.item.attributes[place] for row in everyone if row.part == PARTS[0]]
            edges[name] = find_quartiles(trained)
    if not edges:
        return {site: list(of_site) for site, of_site in rows.items()}, {}

    def cut(row: SplitRow) -> SplitRow:
        values = zip(names, row.item.attributes, strict=True)
        banded = (_name_quarter(value, edges[name]) if name in edges else value for name, value in values)
        return replace(row, item=replace(row.item, attributes=tuple(banded)))

    return {site: list(map(cut, of_site)) for site, of_site in rows.items()}, edges


def _name_quarter(value: str, edges: Sequence[float]) -> str:
    return name_band(value, edges) if edges else UNKNOWN


def _order_rows(
    by_site: Mapping[str, Sequence[Item]], parts: Mapping[str, Sequence[int]], pooled: bool
) -> dict[str, list[SplitRow]]:
    """Return rows of each site, train first, then in the order of the items."""
    rows: dict[str, list[SplitRow]] = {}
    for site, items in by_site.items():
        found = [SplitRow(PARTS[part], item) for part, item in zip(parts[site], items, strict=True)]
        rows.setdefault(POOLED if pooled else site, []).extend(found)
    for site_rows in rows.values():
        site_rows.sort(key=lambda row: (PARTS.index(row.part), row.item.key))
    return rows


def _list_phantom(config: PhantomData, sites: int | None, seed: int) -> list[Item]:
    if sites is None:
        raise ConfigError("data.source is 'phantom', which needs the number of sites: set the key 'sites'.")
    if config.partition.kind == "dirichlet":
        raise ConfigError(
            "data.partition.kind is 'dirichlet', which redistributes one collection of images, but each phantom site "
            "has images of its own device. Allowed: 'column' (one site per device) or 'pooled'. Label skew comes from "
            "data.imbalance and data.attribute_strength."
        )
    # Labels, patients and attributes do not depend on the size of the pictures, so the smallest ones do here.
    small = config.model_copy(update={"image_size": _SMALLEST_PHANTOM})
    items: list[Item] = []
    for index, site in enumerate(phantom_site_names(sites)):
        drawn = generate_site(small, index, seed)
        attributes = zip(*(drawn.attributes[name] for name in PHANTOM_ATTRIBUTES), strict=True)
        people = zip(drawn.labels.tolist(), drawn.patient, attributes, strict=True)
        items += [
            Item(f"{site}/{number:05d}", label, patient, site, values)
            for number, (label, patient, values) in enumerate(people)
        ]
    return items
