"""What an image's header says, checked before anything is decoded.

Only the header is read here. A file whose header is fine and whose pixels are damaged is found by the worker, which
answers `invalid-image`. No error carries a decoder's own text.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import Literal

from PIL import Image, UnidentifiedImageError

from service.image_parts import too_many_parts
from service.problems import InvalidImageError, ServiceError, TooLargeError, UnsupportedImageFormatError
from worker.contract import ImageReference

Format = Literal["JPEG", "PNG", "WEBP"]
FORMATS: tuple[Format, ...] = ("JPEG", "PNG", "WEBP")

# This process never decodes, and `check` has a limit of its own: Pillow's would only warn.
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True)
class ImageLimits:
    """Bytes of a file, pixels (width x height), pixels of the shorter side, and longest : shortest side."""

    max_bytes: int
    max_pixels: int
    min_side: int
    max_aspect: float


@dataclass(frozen=True)
class Header:
    """What a file announces. Sides in pixels."""

    format: Format
    width: int
    height: int
    animated: bool


def inspect(data: bytes, limits: ImageLimits, name: str = "image") -> ImageReference:
    """Reference of a usable image; errors call it `name`.

    Raises `InvalidImageError`, `UnsupportedImageFormatError` or `TooLargeError`.
    """
    if not data:
        raise InvalidImageError(f"{name} is empty.")
    if len(data) > limits.max_bytes:
        raise TooLargeError(f"{name} has {len(data)} bytes; at most {limits.max_bytes} are allowed.")
    header = read_header(data, limits, name)
    _check(header, limits, name)
    return ImageReference(
        sha256=hashlib.sha256(data).hexdigest(),
        format=header.format,
        width=header.width,
        height=header.height,
        bytes=len(data),
    )


def read_header(data: bytes, limits: ImageLimits, name: str = "image") -> Header:
    """Read a file's header. Raises what `inspect` raises."""
    announced = sniff(data)
    if announced is None:
        raise UnsupportedImageFormatError(f"{name} is not a JPEG, PNG or WebP file.")
    if too_many_parts(data):
        raise InvalidImageError(f"{name} is made of more parts than a picture has.")
    if announced == "WEBP":
        # Pillow allocates the whole canvas when it opens a WebP file, so look at the size first.
        _check(_webp_header(data, name), limits, name)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            # A multi-picture JPEG (many phones write them) counts as its first picture.
            animated = announced != "JPEG" and bool(getattr(image, "is_animated", False))
    except UnidentifiedImageError:
        raise InvalidImageError(f"{name} has a damaged {announced} header.") from None
    except ServiceError:
        raise
    except Exception:
        # Whatever a parser raises on hostile bytes, the file is to blame.
        raise InvalidImageError(f"{name} has a damaged {announced} header.") from None
    return Header(announced, width, height, animated)


def sniff(data: bytes) -> Format | None:
    """The format that a file's first bytes name."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return None


def _webp_header(data: bytes, name: str) -> Header:
    """Canvas size of a WebP file (RFC 9649, section 2)."""
    kind = data[12:16]
    width = height = 0
    if len(data) >= 30 and kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width = int.from_bytes(data[26:28], "little") & 0x3FFF
        height = int.from_bytes(data[28:30], "little") & 0x3FFF
    elif len(data) >= 25 and kind == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        width, height = (bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1
    elif len(data) >= 30 and kind == b"VP8X":
        width, height = int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if not width or not height:
        raise InvalidImageError(f"{name} has a damaged WEBP header.")
    return Header("WEBP", width, height, kind == b"VP8X" and bool(data[20] & 0x02))


def _check(header: Header, limits: ImageLimits, name: str) -> None:
    width, height = header.width, header.height
    if width * height > limits.max_pixels:
        raise TooLargeError(f"{name} has {width} x {height} pixels; at most {limits.max_pixels} pixels are allowed.")
    if min(width, height) < limits.min_side:
        raise InvalidImageError(f"{name} has {width} x {height} pixels; each side needs at least {limits.min_side}.")
    if max(width, height) > limits.max_aspect * min(width, height):
        raise InvalidImageError(f"{name} is more than {limits.max_aspect:g} times as long as wide.")
    if header.animated:
        raise InvalidImageError(f"{name} is animated; send a single picture.")
