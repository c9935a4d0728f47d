"""JPEG and PNG files to uint8 RGB tensors, whatever their colour mode."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from fedmed.errors import DataError

FORMATS = ("JPEG", "PNG")
_ORIENTATION_TAG = 0x0112
_DARK_16_BIT = 4096


def decode_image(path: Path) -> torch.Tensor:
    """Read one image.

    Grey images are repeated over the channels, palettes and CMYK are converted, transparent pixels become black, the
    EXIF orientation is applied, and grey of 16 bits is scaled so that 65,535 becomes 255. Colour profiles are ignored.

    Parameters
    ----------
    path : Path
        A JPEG or PNG file.

    Returns
    -------
    Tensor
        uint8 (3, H, W), RGB. The memory is laid out pixel by pixel, which torch resizes faster.

    Raises
    ------
    DataError
        If the file is missing or cannot be decoded.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            pixels = np.array(_convert_to_rgb(_apply_orientation(image)))
    except Exception as error:  # a broken file may raise anything
        raise DataError(
            f"The image '{path}' cannot be read: {_describe(path, error)}. It was readable when the data was split; "
            "put the file back, or start a new run without it."
        ) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def find_image_fault(path: Path) -> str | None:
    """Decode one image as cheaply as possible and return what is wrong with it, or None.

    A JPEG is decoded at an eighth of its size: that reads every byte of it, which finds a truncated file, and skips
    most of the arithmetic.

    Parameters
    ----------
    path : Path
        The file.
    """
    if not path.exists():
        return "the file does not exist"
    try:
        with Image.open(path, formats=FORMATS) as image:
            image.draft("L", (1, 1))
            image.load()
            if image.mode.startswith("I"):
                _, brightest = image.getextrema()
                if isinstance(brightest, int | float) and brightest < _DARK_16_BIT:
                    return (
                        f"16-bit grey with no value above {brightest:.0f}, nearly black on the scale 0 to 65,535: "
                        "scale the values to the full range or store 8 bits"
                    )
    except Exception as error:  # a broken file may raise anything
        return f"the file cannot be decoded ({_describe(path, error)})"
    return None


def _describe(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "the file does not exist"
    if isinstance(error, UnidentifiedImageError):
        empty = path.is_file() and path.stat().st_size == 0
        return "the file is empty" if empty else "neither JPEG nor PNG"
    return str(error) or type(error).__name__


def _apply_orientation(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # broken EXIF data says nothing about the pixels, so the image is taken as it lies
        return image
    return image if orientation == 1 else ImageOps.exif_transpose(image)


def _convert_to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit values at 255.
        grey = np.asarray(image).astype(np.float64) / 257.0
        return Image.fromarray(np.rint(np.clip(grey, 0, 255)).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(opaque, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")
