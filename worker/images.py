"""From stored bytes to pixels. Every way in which an image can be bad ends in one error that shows no decoder text."""

from __future__ import annotations

import io
import warnings
from typing import cast

import redis
from PIL import Image, ImageOps

from worker.contract import ImageReference, image_key


class ImageLostError(Exception):
    """The stored bytes are gone."""


class BadImageError(Exception):
    """The bytes are no usable image; the message is fit for the client."""


def fetch_image(client: redis.Redis, reference: ImageReference) -> bytes:
    """Bytes behind a claim check. Raises `ImageLostError`."""
    data = client.get(image_key(reference.sha256))
    if data is None:
        raise ImageLostError(f"the image {reference.sha256[:12]} is no longer stored")
    return cast("bytes", data)


def decode_image(data: bytes, reference: ImageReference) -> Image.Image:
    """Decode to RGB, upright, transparency on white. Raises `BadImageError`.

    The header was checked at admission; a different size now means a file that says two things.
    """
    try:
        with warnings.catch_warnings():
            # Pixels are limited by the header check; Pillow's own limit would only add a warning.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=[reference.format])
            if image.size != (reference.width, reference.height):
                raise BadImageError("the image's size differs from what its header announced")
            image.load()
        upright = _upright(image)
    except BadImageError:
        raise
    except Exception:  # decoders raise anything at all on broken files
        raise BadImageError(
            f"a {reference.format} image of {reference.width} x {reference.height} pixels cannot be decoded: "
            "the file is damaged or incomplete"
        ) from None
    if upright.has_transparency_data:
        background = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(background, upright.convert("RGBA"))
    return upright.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block does not make the pixels worse
        return image
