import numpy as np
import pytest
import torch
from PIL import Image

from fedmed.data.sources.decoding import decode_image, find_image_fault
from fedmed.errors import DataError
from tests.data.conftest import write_image

GREY = np.arange(6, dtype=np.uint8).reshape(2, 3) * 50  # H 2, W 3
COLOUR = np.stack([GREY, 255 - GREY, GREY // 2], axis=-1)


def save(tmp_path, image, name="x.png", **options):
    path = tmp_path / name
    image.save(path, **options)
    assert find_image_fault(path) is None
    return path


def check(path, expected_hwc):
    image = decode_image(path)
    assert image.dtype == torch.uint8
    assert image.shape == (3, *expected_hwc.shape[:2])
    assert np.array_equal(image.permute(1, 2, 0).numpy(), expected_hwc)


def repeat(grey):
    return np.repeat(grey[..., None], 3, axis=-1)


def test_colour_and_grey(tmp_path):
    check(save(tmp_path, Image.fromarray(COLOUR)), COLOUR)
    check(save(tmp_path, Image.fromarray(GREY)), repeat(GREY))
    check(save(tmp_path, Image.fromarray(GREY > 100)), repeat(np.where(GREY > 100, 255, 0)))


def test_jpeg_is_what_pillow_decodes(tmp_path):
    path = tmp_path / "x.jpg"
    write_image(path, size=(40, 30))
    check(path, np.asarray(Image.open(path)))


def test_grey_jpeg(tmp_path):
    path = save(tmp_path, Image.fromarray(np.full((9, 8), 77, np.uint8)), "x.jpeg")
    check(path, np.full((9, 8, 3), 77))


def test_16_bit_grey_is_scaled_to_the_full_range(tmp_path):
    # 257 * 255 = 65,535; 128 / 257 rounds to 0 and 129 / 257 to 1.
    values = np.array([[0, 128, 129], [257 * 100, 257 * 254, 65535]], np.uint16)
    check(save(tmp_path, Image.fromarray(values)), repeat(np.array([[0, 0, 1], [100, 254, 255]])))


def test_16_bit_grey_that_holds_12_bits_is_a_fault(tmp_path):
    path = tmp_path / "x.png"
    Image.fromarray(np.array([[0, 4095]], np.uint16)).save(path)
    assert "no value above 4095" in str(find_image_fault(path))


def test_palette(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.putpixel((1, 0), 1)
    check(save(tmp_path, image), np.array([[[10, 20, 30], [200, 100, 0]]]))


def test_palette_with_transparent_entry_becomes_black(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.putpixel((1, 0), 1)
    check(save(tmp_path, image, transparency=b"\x00\xff"), np.array([[[0, 0, 0], [200, 100, 0]]]))


def test_alpha_is_put_on_black(tmp_path):
    image = Image.new("RGBA", (3, 1))
    image.putdata([(200, 100, 50, 255), (200, 100, 50, 0), (200, 100, 50, 51)])  # 51 / 255 = 0.2
    check(save(tmp_path, image), np.array([[[200, 100, 50], [0, 0, 0], [40, 20, 10]]]))


def test_grey_with_alpha(tmp_path):
    image = Image.new("LA", (2, 1))
    image.putdata([(200, 255), (200, 0)])
    check(save(tmp_path, image), repeat(np.array([[200, 0]])))


def test_cmyk(tmp_path):
    image = Image.new("CMYK", (16, 16), (255, 0, 0, 0))  # no red
    path = save(tmp_path, image, "x.jpg", quality=95)
    pixel = decode_image(path)[:, 8, 8].tolist()
    assert pixel[0] < 10
    assert min(pixel[1:]) > 245


def test_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    check(save(tmp_path, Image.fromarray(COLOUR), exif=exif), np.rot90(COLOUR, -1))


def test_broken_exif_is_ignored(tmp_path):
    path = tmp_path / "x.jpg"
    Image.fromarray(np.full((8, 8, 3), 9, np.uint8)).save(path, exif=b"Exif\x00\x00nonsense of some length")
    assert find_image_fault(path) is None
    assert decode_image(path).shape == (3, 8, 8)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_truncated_file(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    write_image(path, size=(120, 90))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    assert "cannot be decoded" in str(find_image_fault(path))
    with pytest.raises(DataError, match=rf"x\.{suffix}.*was readable when"):
        decode_image(path)


def test_other_faults(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("no picture")
    Image.fromarray(COLOUR).save(tmp_path / "x.bmp")
    assert find_image_fault(tmp_path / "missing.png") == "the file does not exist"
    assert "the file is empty" in str(find_image_fault(tmp_path / "empty.png"))
    assert "neither JPEG nor PNG" in str(find_image_fault(tmp_path / "text.jpg"))
    assert "neither JPEG nor PNG" in str(find_image_fault(tmp_path / "x.bmp"))
    assert "cannot be decoded" in str(find_image_fault(tmp_path))  # a folder
    with pytest.raises(DataError, match="the file does not exist"):
        decode_image(tmp_path / "missing.png")


def test_decompression_bomb_is_a_fault(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    write_image(path, size=(100, 100))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "exceeds limit" in str(find_image_fault(path))
