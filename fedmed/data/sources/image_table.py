"""Images that a CSV table names."""

import csv
import hashlib
import io
import os
from collections.abc import Mapping, Sequence

from fedmed.config import ImageTableData
from fedmed.data.sources.bands import check_bands, check_decimals, clean_value, name_band
from fedmed.data.sources.raw_table import ImageRow, RawTable, check_class_list, find_root
from fedmed.errors import ConfigError, DataError, suggest_nearest


def read_csv(config: ImageTableData) -> RawTable:
    """Return the images that a CSV table names, with labels and attributes."""
    root = find_root(config.root)
    path = root / config.table
    if not path.is_file():
        tables = [found.name for found in root.glob("*.csv")]
        raise DataError(
            f"The table '{path}' (data.table in data.root) does not exist.{suggest_nearest(config.table, tables)} "
            f"CSV files in that folder: {', '.join(sorted(tables)) or 'none'}."
        )
    content = path.read_bytes()
    where = f"the table '{path}'"
    header, lines = _parse_csv(content, where)
    columns = _find_columns(config, header, where)
    check_bands(config.bands, config.attribute_columns)
    for name in config.attribute_columns:
        check_decimals(name, (cells[columns[name]] for _, cells in lines if len(cells) == len(header)), where)
    rows = tuple(_make_row(place, cells, len(header), columns, config) for place, cells in lines)
    if not rows:
        raise DataError(f"{where[0].upper()}{where[1:]} holds a header and no row. Add one row per image.")
    return RawTable(
        where=where,
        rows=rows,
        classes=check_class_list(config.classes),
        attribute_names=tuple(config.attribute_columns),
        has_sites=config.site_column is not None,
        root=root,
        fingerprint=hashlib.sha256(content).hexdigest(),
    )


def _parse_csv(content: bytes, where: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    try:
        # utf-8-sig: spreadsheets put a byte order mark before the first column's name.
        reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        header = [name.strip() for name in next(reader, [])]
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if cells]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"Cannot read {where}: {error}. Save it as a CSV with commas, in UTF-8.") from None
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise DataError(f"In {where} the column '{repeated[0]}' occurs more than once. Rename or delete one of them.")
    return header, lines


def _find_columns(config: ImageTableData, header: list[str], where: str) -> dict[str, int]:
    wanted = {"file_column": config.file_column, "label_column": config.label_column}
    optional = {"site_column": config.site_column, "group_column": config.group_column}
    wanted |= {setting: name for setting, name in optional.items() if name is not None}
    if len(set(config.attribute_columns)) != len(config.attribute_columns):
        raise ConfigError(f"data.attribute_columns names a column twice: {', '.join(config.attribute_columns)}.")
    pairs = [*wanted.items(), *(("attribute_columns", name) for name in config.attribute_columns)]
    for setting, name in pairs:
        if name not in header:
            separator = next((mark for mark in (";", "\t") if len(header) == 1 and mark in header[0]), None)
            advice = f" The cells seem to be separated by {separator!r}: save it with commas." if separator else ""
            raise DataError(
                f"In {where} there is no column '{name}' (data.{setting}).{suggest_nearest(name, header)}{advice} "
                f"Columns found: {', '.join(header) or 'none'}."
            )
    return {name: header.index(name) for _, name in pairs}


def _make_row(place: int, cells: list[str], width: int, columns: Mapping[str, int], config: ImageTableData) -> ImageRow:
    if len(cells) != width:
        return ImageRow(
            place, ",".join(cells)[:80], "", fault=f"the row has {len(cells)} cells, the header has {width}"
        )
    cell = {name: cells[index] for name, index in columns.items()}
    return ImageRow(
        place=place,
        item=os.path.normpath(cell[config.file_column]) if cell[config.file_column] else "",
        label=cell[config.label_column],
        site=cell[config.site_column] if config.site_column else "",
        group=cell[config.group_column] if config.group_column else "",
        attributes=tuple(_read_attribute(cell[name], config.bands.get(name)) for name in config.attribute_columns),
    )


def _read_attribute(text: str, edges: Sequence[float] | None) -> str:
    return name_band(text, edges) if edges else clean_value(text)
