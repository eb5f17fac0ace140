"""Procedural images: pages with text and a picture, so that entropy differs within and between them."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_WORDS = ("invoice", "total", "amount", "due", "date", "item", "price", "unit", "tax", "net", "page", "order", "room")
_FILLED = (0.9, 0.3, 0.6)
"""Share of the page that is covered, by turns: busy, sparse, in between."""


def page(number: int, width: int, height: int) -> Image.Image:
    """Page `number` in pixels; the same number and size always give the same image."""
    generator = np.random.default_rng(number)
    image = Image.new("RGB", (width, height), tuple(int(level) for level in generator.integers(235, 256, 3)))
    draw = ImageDraw.Draw(image)
    filled = int(height * _FILLED[number % len(_FILLED)])
    size = int(generator.integers(11, 20))
    font = ImageFont.load_default(size)
    for top in range(size // 2, filled - size, int(size * 1.5)):
        words = " ".join(f"{generator.choice(_WORDS)} {generator.integers(10_000)}" for _ in range(width // (size * 4)))
        draw.text((size, top), words, fill=tuple(int(level) for level in generator.integers(0, 120, 3)), font=font)
    image.paste(_picture(generator, max(1, width // 3), max(1, filled // 3)), (width // 2, filled // 3))
    return image


def _picture(generator: np.random.Generator, width: int, height: int) -> Image.Image:
    """A soft gradient under grain, as a photograph has."""
    ramp = np.linspace(0, 160, width)[None, :, None] + np.linspace(0, 60, height)[:, None, None]
    grain = generator.normal(0, 12, (height, width, 3))
    return Image.fromarray((ramp + grain + generator.integers(0, 30, 3)).clip(0, 255).astype(np.uint8))
