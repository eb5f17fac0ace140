"""From stored bytes to pixels. Every way in which an image can be bad ends in one error that shows no decoder text."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import redis
from PIL import Image

from erase.pictures import upright_rgb
from worker.contract import ImageReference, image_key
from worker.errors import BadImageError, ImageLostError

# Pixels are limited by the header check at admission; Pillow's own limit would warn or refuse.
Image.MAX_IMAGE_PIXELS = None


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
        with _QUIET():
            image = Image.open(io.BytesIO(data), formats=[reference.format])
            if image.size != (reference.width, reference.height):
                raise BadImageError("the image's size differs from what its header announced")
            image.load()
            return upright_rgb(image)
    except BadImageError:
        raise
    except Exception:  # decoders raise anything at all on broken files
        raise BadImageError(
            f"a {reference.format} image of {reference.width} x {reference.height} pixels cannot be decoded: "
            "the file is damaged or incomplete"
        ) from None


class _Quiet:
    """Ignores Pillow's warnings while any thread decodes.

    `warnings.catch_warnings` changes the whole process, so only the first thread in enters it and the last one leaves.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._catch = warnings.catch_warnings()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._catch = warnings.catch_warnings()
                self._catch.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\b")
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    self._catch.__exit__(None, None, None)


_QUIET = _Quiet()
