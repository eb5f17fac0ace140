"""Grounds that are not plain: gradients, textures, and blurred scenes that look a little like photographs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Pixels = NDArray[np.floating[Any]]
KINDS = ("gradient", "clouds", "grain", "weave", "bricks", "leaves", "scene")


def ground(kind: str, width: int, height: int, noise: np.random.Generator, *, contrast: float = 1.0) -> Image.Image:
    """An RGB picture of one of `KINDS`; `contrast` 0 is flat, 1 is the kind's full strength."""
    pixels = _PAINTERS[kind](width, height, noise)
    mean = pixels.mean(axis=(0, 1), keepdims=True)
    return Image.fromarray(np.clip(mean + (pixels - mean) * contrast, 0, 255).astype(np.uint8), "RGB")


def _colour(noise: np.random.Generator, low: int = 40, high: int = 220) -> Pixels:
    return noise.integers(low, high, size=3).astype(np.float32)


def _field(width: int, height: int, cell: float, noise: np.random.Generator) -> Pixels:
    """Smooth random values from 0 to 1, with hills about `cell` pixels wide: (height, width)."""
    rows, columns = max(2, round(height / cell) + 1), max(2, round(width / cell) + 1)
    coarse = Image.fromarray(noise.random((rows, columns), dtype=np.float32), "F")
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)


def _blend(one: Pixels, other: Pixels, share: Pixels) -> Pixels:
    return one + (other - one) * share[..., None]


def _gradient(width: int, height: int, noise: np.random.Generator) -> Pixels:
    angle = noise.uniform(0, 2 * np.pi)
    x = np.linspace(-0.5, 0.5, width, dtype=np.float32)[None, :]
    y = np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None]
    return _blend(_colour(noise), _colour(noise), np.clip(x * np.cos(angle) + y * np.sin(angle) + 0.5, 0, 1))


def _clouds(width: int, height: int, noise: np.random.Generator) -> Pixels:
    side = max(width, height)
    share = sum(_field(width, height, side / 3 / 2**octave, noise) / 2**octave for octave in range(4)) / 1.875
    return _blend(_colour(noise), _colour(noise), np.asarray(share, dtype=np.float32))


def _grain(width: int, height: int, noise: np.random.Generator) -> Pixels:
    speckle = noise.normal(0, noise.uniform(10, 34), size=(height, width, 1)).astype(np.float32)
    return _colour(noise, 70, 200) + speckle + 30 * (_field(width, height, 90, noise)[..., None] - 0.5)


def _weave(width: int, height: int, noise: np.random.Generator) -> Pixels:
    pitch = noise.integers(4, 12)
    x, y = np.arange(width)[None, :], np.arange(height)[:, None]
    threads = ((x // pitch + y // pitch) % 2).astype(np.float32)
    one = _colour(noise)
    return _blend(one, one * noise.uniform(0.6, 0.85), threads) + noise.normal(0, 6, size=(height, width, 1))


def _bricks(width: int, height: int, noise: np.random.Generator) -> Pixels:
    brick = int(noise.integers(14, 34))
    x, y = np.arange(width)[None, :], np.arange(height)[:, None]
    row = y // brick
    shifted = x + (row % 2) * brick
    mortar = ((y % brick) < 2) | ((shifted % (2 * brick)) < 2)
    tone = noise.uniform(0.8, 1.15, size=(height // brick + 2, width // brick + 3)).astype(np.float32)
    stones = tone[row, shifted // (2 * brick)][..., None] * _colour(noise, 90, 190)
    return np.where(mortar[..., None], _colour(noise, 60, 210), stones) + noise.normal(0, 7, size=(height, width, 1))


def _leaves(width: int, height: int, noise: np.random.Generator) -> Pixels:
    """Thresholded hills of several sizes, like foliage or gravel."""
    layers = _field(width, height, 9, noise) + 0.7 * _field(width, height, 22, noise)
    dark, light = _colour(noise, 20, 110), _colour(noise, 90, 200)
    return _blend(dark, light, np.clip((layers - 0.6) * 2.5, 0, 1)) + noise.normal(0, 8, size=(height, width, 1))


def _scene(width: int, height: int, noise: np.random.Generator) -> Pixels:
    """Sky, ground and a few blurred blocks between them, with grain: a street seen out of focus."""
    horizon = int(height * noise.uniform(0.35, 0.65))
    pixels = np.empty((height, width, 3), dtype=np.float32)
    down = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    pixels[:] = _blend(_colour(noise, 120, 235), _colour(noise, 140, 250), np.broadcast_to(down, (height, width)))
    pixels[horizon:] = _colour(noise, 40, 140)
    for _ in range(int(noise.integers(4, 12))):
        left = int(noise.integers(-width // 8, width))
        wide = int(width * noise.uniform(0.06, 0.28)) + 1
        top = max(0, horizon - int(height * noise.uniform(0.02, 0.35)))
        pixels[top : horizon + int(height * noise.uniform(0, 0.2)), max(0, left) : left + wide] = _colour(noise)
    blurred = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGB")
    blurred = blurred.filter(ImageFilter.GaussianBlur(float(noise.uniform(1.5, 5.0))))
    return np.asarray(blurred, dtype=np.float32) + noise.normal(0, noise.uniform(2, 9), size=(height, width, 1))


_PAINTERS = {
    "gradient": _gradient,
    "clouds": _clouds,
    "grain": _grain,
    "weave": _weave,
    "bricks": _bricks,
    "leaves": _leaves,
    "scene": _scene,
}
