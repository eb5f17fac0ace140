"""An image under construction that remembers what was drawn where."""

from __future__ import annotations

import math
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from erase.synthetic import shapes
from erase.synthetic.colours import Rgb
from erase.synthetic.fonts import font, height_of
from erase.synthetic.sample import Box, Mark, MarkKind

_FINE = 4  # supersampling of shapes


class Canvas:
    """An RGB image of `width` x `height` pixels and the marks of everything drawn on it.

    `unit` is the height in pixels of ordinary text on this canvas; families lay themselves out in it.
    """

    def __init__(self, width: int, height: int, unit: int, rng: Random, ground: Rgb = (255, 255, 255)) -> None:
        self.width = width
        self.height = height
        self.unit = unit
        self.rng = rng
        self.image = Image.new("RGB", (width, height), ground)
        self.marks: list[Mark] = []

    @property
    def bounds(self) -> Box:
        return Box(0, 0, self.width, self.height)

    @property
    def draw(self) -> ImageDraw.ImageDraw:
        """Pillow's drawing object, for lines, frames and areas that need no mark."""
        return ImageDraw.Draw(self.image)

    def noise(self) -> np.random.Generator:
        """A numpy generator that follows from the canvas' own."""
        return np.random.Generator(np.random.PCG64(self.rng.getrandbits(63)))

    def mark(self, kind: MarkKind, value: str, box: Box) -> None:
        self.marks.append(Mark(kind, value, box))

    def fill(self, box: Box, colour: Rgb) -> None:
        """A plain rectangle, without a mark."""
        self.draw.rectangle((round(box.left), round(box.top), round(box.right) - 1, round(box.bottom) - 1), colour)

    def paste(self, picture: Image.Image, left: int = 0, top: int = 0) -> None:
        """Another image as (part of) the ground, without a mark."""
        self.image.paste(picture, (left, top))

    @staticmethod
    def text_size(text: str, face: str, size: int) -> tuple[float, float]:
        """Width and height in pixels that `text` will take up; the height is that of a line, whatever its letters."""
        return font(face, size).getlength(text), float(height_of(face, size))

    def text(
        self,
        left: float,
        top: float,
        text: str,
        face: str,
        size: int,
        colour: Rgb,
        *,
        angle: float = 0.0,
        colour_name: str | None = None,
    ) -> Box:
        """One line of text, its upper left corner at (left, top), turned by `angle` degrees about its own middle.

        Every character but the space leaves a mark; with `colour_name` each also leaves one of that colour.
        Returns the box around the inked characters.
        """
        drawn = font(face, size)
        glyphs = [
            (character, _inked(drawn.getbbox(character), left + drawn.getlength(text[:number]), top))
            for number, character in enumerate(text)
            if character != " "
        ]
        if angle:
            width, height = self.text_size(text, face, size)
            middle = (left + width / 2, top + height / 2)
            self._turned_text(text, face, size, colour, angle, middle)
            glyphs = [(character, _turned(box, middle, angle)) for character, box in glyphs]
        else:
            self.draw.text((left, top), text, fill=colour, font=drawn)
        for character, box in glyphs:
            self.mark("glyph", character, box)
            if colour_name:
                self.mark("colour", colour_name, box)
        return around([box for _, box in glyphs])

    def shape(
        self,
        name: str,
        x: float,
        y: float,
        radius: float,
        colour: Rgb,
        *,
        colour_name: str | None = None,
        turn: float = 0.0,
        edge: Rgb | None = None,
        hollow: bool = False,
    ) -> Box:
        """A shape of `shapes.NAMES` around (x, y); returns its box.

        `hollow` draws only its outline; `edge` is the colour of an outline around a filled shape.
        """
        box = Box(x - radius, y - radius, x + radius, y + radius)
        self.polygon(shapes.outline(name, x, y, radius, turn), colour, edge=edge, hollow=hollow)
        self.mark("shape", name, box)
        if colour_name:
            self.mark("colour", colour_name, box)
        return box

    def polygon(
        self, corners: list[shapes.Point], colour: Rgb, *, edge: Rgb | None = None, hollow: bool = False
    ) -> None:
        """An anti-aliased polygon, without a mark."""
        left = math.floor(min(x for x, _ in corners)) - 2
        top = math.floor(min(y for _, y in corners)) - 2
        width = math.ceil(max(x for x, _ in corners)) + 3 - left
        height = math.ceil(max(y for _, y in corners)) + 3 - top
        fine = [((x - left) * _FINE, (y - top) * _FINE) for x, y in corners]
        line = max(2, min(width, height) // 12) * _FINE
        if not hollow:
            self._stencil(fine, left, top, width, height, colour, 0)
        if hollow or edge is not None:
            self._stencil(
                fine, left, top, width, height, colour if edge is None else edge, line if hollow else line // 2
            )

    def _stencil(
        self, fine: list[shapes.Point], left: int, top: int, width: int, height: int, colour: Rgb, line: int
    ) -> None:
        mask = Image.new("L", (width * _FINE, height * _FINE), 0)
        if line:
            ImageDraw.Draw(mask).line([*fine, fine[0], fine[1]], fill=255, width=line, joint="curve")
        else:
            ImageDraw.Draw(mask).polygon(fine, fill=255)
        self.image.paste(colour, (left, top), mask.reduce(_FINE))

    def _turned_text(
        self, text: str, face: str, size: int, colour: Rgb, angle: float, middle: tuple[float, float]
    ) -> None:
        width, height = self.text_size(text, face, size)
        layer = Image.new("L", (math.ceil(width) + 4, math.ceil(height) + 4), 0)
        ImageDraw.Draw(layer).text((2, 2), text, fill=255, font=font(face, size))
        layer = layer.rotate(angle, resample=Image.Resampling.BICUBIC, expand=True)
        corner = (round(middle[0] - layer.width / 2), round(middle[1] - layer.height / 2))
        self.image.paste(colour, corner, layer)


def around(boxes: list[Box]) -> Box:
    """The smallest box that holds all of them."""
    return Box(
        min(box.left for box in boxes),
        min(box.top for box in boxes),
        max(box.right for box in boxes),
        max(box.bottom for box in boxes),
    )


def _inked(bbox: tuple[float, float, float, float], left: float, top: float) -> Box:
    return Box(left + bbox[0], top + bbox[1], left + bbox[2], top + bbox[3])


def _turned(box: Box, middle: tuple[float, float], angle: float) -> Box:
    """The upright box around a box turned counter-clockwise by `angle` degrees, as Pillow turns images."""
    radians = math.radians(angle)
    cos, sin = math.cos(radians), math.sin(radians)
    corners = [(x - middle[0], y - middle[1]) for x in (box.left, box.right) for y in (box.top, box.bottom)]
    xs = [middle[0] + x * cos + y * sin for x, y in corners]
    ys = [middle[1] - x * sin + y * cos for x, y in corners]
    return Box(min(xs), min(ys), max(xs), max(ys))
