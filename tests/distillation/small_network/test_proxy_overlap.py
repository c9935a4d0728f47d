"""Proxy images on which a model is judged are found by their bytes, or by their pixels."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedmed.data.sources.decoding import decode_image
from fedmed.distillation.small_network import proxy_overlap
from fedmed.distillation.small_network.proxy_overlap import JudgedImage, check_disjoint
from fedmed.errors import DataError


def draw(path: Path, seed: int, side: int = 6) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, compress_level=0)  # all files of one size
    return path


@pytest.fixture
def proxy(tmp_path: Path) -> list[Path]:
    return [draw(tmp_path / "proxy" / f"{seed}.png", seed) for seed in range(4)]


def test_files_are_told_with_their_number_and_the_first(tmp_path: Path, proxy: list[Path]) -> None:
    judged = [
        JudgedImage(f"'{seed}.png' of the test", draw(tmp_path / "site" / f"{seed}.png", seed)) for seed in (9, 3, 1)
    ]
    with pytest.raises(
        DataError, match=r"2 of the 4 proxy images in .*/proxy/1\.png', is '1\.png' of the test.*Remove"
    ):
        check_disjoint(tmp_path / "proxy", proxy, judged)
    check_disjoint(tmp_path / "proxy", proxy, judged[:1])


def test_arrays_are_compared_by_pixels(tmp_path: Path, proxy: list[Path]) -> None:
    """The same bytes in another shape are another image."""
    same = decode_image(proxy[2])
    flat = same.contiguous().reshape(3, 4, 9)
    assert hashlib.sha256(flat.numpy().tobytes()).digest() == hashlib.sha256(same.numpy().tobytes()).digest()
    check_disjoint(tmp_path, proxy, [JudgedImage("flat", lambda: flat), JudgedImage("other", lambda: same.flip(0))])
    with pytest.raises(DataError, match=r"1 of the 4 .*2\.png', is 'seven' of the validation"):
        check_disjoint(tmp_path, proxy, [JudgedImage("'seven' of the validation", same.clone)])


def test_only_files_of_the_same_size_are_read(
    tmp_path: Path, proxy: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy_overlap, "hash_file", lambda path: pytest.fail(f"{path} was read"))
    check_disjoint(tmp_path, proxy, [JudgedImage("larger", draw(tmp_path / "larger.png", 0, side=7))])


def test_a_missing_image_is_said(tmp_path: Path, proxy: list[Path]) -> None:
    with pytest.raises(DataError, match=r"gone\.png"):
        check_disjoint(tmp_path, proxy, [JudgedImage("gone", tmp_path / "gone.png")])


def test_an_image_that_is_there_twice_counts_twice(tmp_path: Path, proxy: list[Path]) -> None:
    twins = [*proxy, draw(tmp_path / "proxy" / "twin.png", 0)]
    image = torch.clone(decode_image(proxy[0]))
    with pytest.raises(DataError, match="2 of the 5"):
        check_disjoint(tmp_path, twins, [JudgedImage("a", lambda: image), JudgedImage("b", lambda: image)])
