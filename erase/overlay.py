"""A picture of what pruning did to an image: dropped cells dark or tinted, kept ones clear, and a legend below."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SMALLEST_WIDTH = 672
"""Pixels that a narrower picture is enlarged to, so that cells and legend can be read."""
NIGHT, TINT = (10, 14, 28), (255, 122, 26)
PAPER, INK = (250, 250, 248), (34, 36, 42)
GRID = 0.22
LEGEND_HEIGHT = 44

Pixels = NDArray[np.float32]
Colour = tuple[int, int, int]


class Fate(IntEnum):
    """What became of a vision token; the numbers are those of the service's pruning map."""

    DROPPED_BEFORE = 0
    DROPPED_INSIDE = 1
    KEPT = 2


LABELS = {
    Fate.KEPT: "kept",
    Fate.DROPPED_INSIDE: "dropped inside the decoder",
    Fate.DROPPED_BEFORE: "dropped before it",
}


def fates(tokens: int, entering: Iterable[int], kept: Iterable[int]) -> list[Fate]:
    """The fate of each of `tokens`, from the indices of those that enter the decoder and those it keeps."""
    found = [Fate.DROPPED_BEFORE] * tokens
    for index in entering:
        found[index] = Fate.DROPPED_INSIDE
    for index in kept:
        found[index] = Fate.KEPT
    return found


def overlay(
    image: Image.Image, columns: int, fate: Sequence[Fate], labels: dict[Fate, str] | None = None
) -> Image.Image:
    """The image, enlarged if it is small, with every cell marked by its fate.

    Args:
        image: as the model sees it, so that its cells are squares.
        columns: cells along its width.
        fate: of each cell, row after row.
        labels: what the legend says of each fate; one that is left out is not in the legend.

    Returns:
        RGB; below the picture is a legend with the number of cells of each fate.
    """
    cell = max(image.width, SMALLEST_WIDTH) // columns
    rows = len(fate) // columns
    picture = image.convert("RGB").resize((columns * cell, rows * cell), Image.Resampling.LANCZOS)
    pixels = np.asarray(picture, np.float32)
    mask = np.kron(np.array(fate, np.uint8).reshape(rows, columns), np.ones((cell, cell), np.uint8))[..., None]
    pixels = np.where(mask == Fate.DROPPED_BEFORE, _night(pixels), pixels)
    pixels = np.where(mask == Fate.DROPPED_INSIDE, _tinted(pixels), pixels)
    _draw_grid(pixels, cell)
    marked = Image.fromarray(pixels.round().astype(np.uint8))
    legend = _legend(marked.width, fate, LABELS if labels is None else labels)
    whole = Image.new("RGB", (marked.width, marked.height + legend.height))
    whole.paste(marked)
    whole.paste(legend, (0, marked.height))
    return whole


def _grey(pixels: Pixels) -> Pixels:
    return pixels @ np.array([[0.299], [0.587], [0.114]], np.float32)


def _night(pixels: Pixels) -> Pixels:
    return np.float32(0.16) * _grey(pixels) + np.array(NIGHT, np.float32)


def _tinted(pixels: Pixels) -> Pixels:
    return np.float32(0.5) * _grey(pixels) + np.float32(0.5) * np.array(TINT, np.float32)


def _draw_grid(pixels: Pixels, cell: int) -> None:
    """Lines one pixel wide between cells, a little darker than light ground and lighter than dark ground."""
    for lines in (pixels[cell::cell], pixels[:, cell::cell]):
        towards = np.where(_grey(lines) > 96, np.float32(0.0), np.float32(255.0))
        lines += np.float32(GRID) * (towards - lines)


def _legend(width: int, fate: Sequence[Fate], labels: dict[Fate, str]) -> Image.Image:
    strip = Image.new("RGB", (width, LEGEND_HEIGHT), PAPER)
    draw = ImageDraw.Draw(strip)
    entries = [(_swatch(one), f"{fate.count(one)} {label}") for one, label in labels.items()]
    size = next((size for size in (18, 15, 12) if _width(entries, size) <= width), 9)
    font = ImageFont.load_default(size)
    at = size
    middle = LEGEND_HEIGHT // 2
    for colour, text in entries:
        draw.rounded_rectangle((at, middle - size // 2, at + size, middle + size // 2), 3, fill=colour, outline=INK)
        draw.text((at + 1.5 * size, middle), text, INK, font, anchor="lm")
        at += _entry_width(text, size)
    return strip


def _swatch(fate: Fate) -> Colour:
    """What a light cell of that fate looks like."""
    light = np.full((1, 3), 240, np.float32)
    looks = {Fate.KEPT: light, Fate.DROPPED_INSIDE: _tinted(light), Fate.DROPPED_BEFORE: _night(light)}
    red, green, blue = looks[fate].round().astype(int)[0].tolist()
    return red, green, blue


def _width(entries: Sequence[tuple[Colour, str]], size: int) -> int:
    return size + sum(_entry_width(text, size) for _, text in entries)


def _entry_width(text: str, size: int) -> int:
    """Of a swatch, its text and the gap to the next entry, in pixels."""
    return round(1.5 * size + ImageFont.load_default(size).getlength(text) + 1.5 * size)
