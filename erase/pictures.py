"""Pictures as models take them, from a file or a request: upright, in RGB, transparency on white."""

from __future__ import annotations

import warnings
from contextlib import suppress
from pathlib import Path

from PIL import Image, ImageOps

from erase.errors import InputError


def open_picture(path: Path) -> Image.Image:
    """The picture in a file.

    Raises:
        InputError: the file cannot be read or is no picture.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd but readable files
            with Image.open(path) as image:
                image.load()
                return upright_rgb(image)
    except OSError as error:
        raise InputError(f"cannot read the image {path}: {error.strerror or 'it is no picture, or damaged'}") from error
    except Exception as error:  # decoders raise anything at all on broken files
        raise InputError(f"cannot read the image {path}: {error}") from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """The decoded picture turned as its EXIF block says, in RGB, transparency on white."""
    with suppress(Exception):  # a broken EXIF block does not make the pixels worse
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        # 16 bits of grey: Pillow's own conversion would clip all but the darkest 256 levels to white.
        return image.convert("I").point(lambda level: level * (1 / 256)).convert("L").convert("RGB")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")
