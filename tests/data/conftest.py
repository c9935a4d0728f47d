import csv
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedmed.config import ImageTableData

MakeTable = Callable[..., ImageTableData]


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (24, 20), mode: str = "RGB") -> None:
    """Write a random picture of the given width and height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(path)


def write_csv(path: Path, rows: Sequence[dict[str, object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def edit_table(config: ImageTableData, change: Callable[[bytes], bytes]) -> None:
    path = Path(config.root) / config.table
    path.write_bytes(change(path.read_bytes()))


@pytest.fixture
def make_table(tmp_path) -> MakeTable:
    """Write a table with a picture for every row, and return its settings."""

    def make(rows: Sequence[dict[str, object]], **settings) -> ImageTableData:
        root = tmp_path / "images"
        root.mkdir(exist_ok=True)
        for number, row in enumerate(rows):
            if row["file"] and not (root / str(row["file"])).exists():
                write_image(root / str(row["file"]), number)
        write_csv(root / "labels.csv", rows)
        return ImageTableData(source="image_table", root=str(root), **settings)

    return make


@pytest.fixture(scope="session")
def real_data() -> Path:
    folder = Path(os.environ.get("FEDMED_DATA", Path(__file__).parents[2] / ".." / "shared" / "data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no folder of real images at '{folder}' (FEDMED_DATA)")
    return folder


def simple_rows(num: int = 40, sites: int = 2, per_group: int = 2) -> list[dict[str, object]]:
    """Rows of two classes, alternating by group, and sites, alternating by pair of groups."""
    return [
        {
            "file": f"{number:03d}.png",
            "label": ("a", "b")[number // per_group % 2],
            "site": f"hospital{number // (2 * per_group) % sites}",
            "patient": f"p{number // per_group}",
            "sex": ("f", "m", "")[number % 3],
        }
        for number in range(num)
    ]
