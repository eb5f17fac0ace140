"""What cameras, scanners and networks do to an image; nothing moves, so that all boxes stay right."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageFilter

from erase.synthetic.canvas import Canvas


def degrade(canvas: Canvas, strength: float) -> Image.Image:
    """The canvas' image with noise, blur, uneven light and JPEG artefacts: nothing at strength 0, plain to see at 1."""
    rng, image = canvas.rng, canvas.image
    if strength <= 0:
        return image
    if rng.random() < 0.3:
        image = _lit(image, canvas.noise(), 0.25 * strength)
    if rng.random() < 0.25:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.3 + 0.4 * strength)))
    if rng.random() < 0.5:
        image = _noisy(image, canvas.noise(), rng.uniform(1, 1 + 9 * strength))
    if rng.random() < 0.6:
        image = _as_jpeg(image, round(95 - rng.uniform(0, 60) * strength))
    return image


def _lit(image: Image.Image, noise: np.random.Generator, depth: float) -> Image.Image:
    """Light that falls off from one side."""
    across = np.linspace(-0.5, 0.5, image.width, dtype=np.float32)[None, :, None]
    down = np.linspace(-0.5, 0.5, image.height, dtype=np.float32)[:, None, None]
    angle = noise.uniform(0, 2 * np.pi)
    light = 1 - depth * (0.5 + across * np.cos(angle) + down * np.sin(angle)).clip(0, 1)
    return Image.fromarray(np.clip(np.asarray(image, dtype=np.float32) * light, 0, 255).astype(np.uint8), "RGB")


def _noisy(image: Image.Image, noise: np.random.Generator, deviation: float) -> Image.Image:
    grain = noise.standard_normal((image.height, image.width, 1), dtype=np.float32) * deviation
    return Image.fromarray(np.clip(np.asarray(image, dtype=np.float32) + grain, 0, 255).astype(np.uint8), "RGB")


def _as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")
