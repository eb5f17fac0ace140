"""Pages to write on and the pen that writes on them readably, for the documents and the ocr family."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from erase.synthetic.canvas import Canvas
from erase.synthetic.colours import NAMES, Rgb, ink, luminance, mixed, paper, shade
from erase.synthetic.families.things import Panel, texture
from erase.synthetic.fonts import font
from erase.synthetic.sample import Box

_TEXTURES = ("gradient", "clouds", "grain", "weave", "bricks", "leaves", "scene")
_CLEAR = 90.0  # smallest difference in brightness between ink and every part of its ground that needs no halo
_DARK: Rgb = (12, 12, 14)
_LIGHT: Rgb = (250, 250, 250)


@dataclass(frozen=True)
class Page:
    """Where to write, and the plain coloured parts if there are any."""

    area: Box
    panels: tuple[Panel, ...] = ()


@dataclass(frozen=True)
class Pen:
    """The ink for one part of the page, and the colour of a halo around it where the ground needs one."""

    ink: Rgb
    ground: Rgb
    halo: Rgb | None = None

    def write(
        self,
        canvas: Canvas,
        left: float,
        top: float,
        text: str,
        face: str,
        size: int,
        *,
        ink: Rgb | None = None,
        angle: float = 0.0,
        colour_name: str | None = None,
    ) -> Box:
        """One line of text as Canvas.text draws it."""
        if self.halo:
            _paint_halo(canvas, (left, top), text, face, size, angle, self.halo)
        return canvas.text(left, top, text, face, size, ink or self.ink, angle=angle, colour_name=colour_name)


def blank_page(canvas: Canvas, hard: str | None) -> Page:
    """Paints a ground of the sort that `hard` asks for."""
    rng = canvas.rng
    if hard == "flat":
        return _flat(canvas)
    if hard == "busy":
        canvas.paste(texture(canvas, rng.choice(_TEXTURES), rng.uniform(0.8, 1.0)))
        return Page(canvas.bounds)
    kind = rng.random()
    if kind < 0.55 or hard == "faint":
        canvas.fill(canvas.bounds, paper(rng) if rng.random() < 0.85 else shade(rng.choice(NAMES), rng))
        return Page(canvas.bounds)
    if kind < 0.75 and min(canvas.width, canvas.height) > 11 * canvas.unit:
        return _sheet_on_desk(canvas)
    picture = texture(canvas, rng.choice(_TEXTURES), rng.uniform(0.1, 0.4))
    veil = Image.new("RGB", picture.size, paper(rng) if rng.random() < 0.8 else _DARK)
    canvas.paste(Image.blend(picture, veil, rng.uniform(0.5, 0.9)))
    return Page(canvas.bounds)


def pen_for(canvas: Canvas, box: Box, hard: str | None) -> Pen:
    """Ink that is readable on all of `box` as it is painted now; faint but readable if `hard` says so."""
    patch = np.asarray(canvas.image.crop((int(box.left), int(box.top), int(box.right) + 1, int(box.bottom) + 1)))
    patch = patch[:: max(1, patch.shape[0] // 64), :: max(1, patch.shape[1] // 64)].reshape(-1, 3)
    red, green, blue = (int(value) for value in patch.mean(axis=0))
    ground = (red, green, blue)
    if hard == "faint":
        return Pen(ink(ground, canvas.rng, canvas.rng.uniform(0.28, 0.38)), ground)
    lowest, highest = np.percentile(patch @ np.array([0.299, 0.587, 0.114]), (3, 97))
    dark, light = lowest - luminance(_DARK), luminance(_LIGHT) - highest
    if max(dark, light) < _CLEAR:
        return Pen(*((_DARK, ground, _LIGHT) if dark > light else (_LIGHT, ground, _DARK)))
    if highest - lowest > 60:
        return Pen(_DARK if dark > light else _LIGHT, ground)
    return Pen(ink(ground, canvas.rng, canvas.rng.uniform(0.65, 0.95)), ground)


def _flat(canvas: Canvas) -> Page:
    """One named colour, or two, each on one half."""
    rng = canvas.rng
    one, other = rng.sample(NAMES, 2)
    if rng.random() < 0.5:
        return Page(canvas.bounds, (_painted(canvas, "background", one, canvas.bounds),))
    width, height = canvas.width, canvas.height
    if width > height:
        first, second = Box(0, 0, width // 2, height), Box(width // 2, 0, width, height)
        places = ("left half", "right half")
    else:
        first, second = Box(0, 0, width, height // 2), Box(0, height // 2, width, height)
        places = ("top half", "bottom half")
    panels = (_painted(canvas, places[0], one, first), _painted(canvas, places[1], other, second))
    return Page(rng.choice((first, second)), panels)


def _painted(canvas: Canvas, place: str, colour: str, box: Box) -> Panel:
    canvas.fill(box, shade(colour, canvas.rng))
    canvas.mark("colour", colour, box)
    return Panel(place, colour, box)


def _sheet_on_desk(canvas: Canvas) -> Page:
    """A lighter sheet with a shadow on a texture."""
    rng = canvas.rng
    canvas.paste(texture(canvas, rng.choice(_TEXTURES), rng.uniform(0.3, 1.0)))
    width, height = canvas.width * rng.uniform(0.7, 0.95), canvas.height * rng.uniform(0.7, 0.95)
    left, top = rng.uniform(0, canvas.width - width), rng.uniform(0, canvas.height - height)
    sheet = Box(round(left), round(top), round(left + width), round(top + height))
    shift = canvas.unit / 5
    shadow = Box(sheet.left + shift, sheet.top + shift, sheet.right + shift, sheet.bottom + shift)
    colour = paper(rng)
    canvas.fill(shadow, mixed(colour, _DARK, 0.7))
    canvas.fill(sheet, colour)
    return Page(sheet)


def _paint_halo(
    canvas: Canvas, corner: tuple[float, float], text: str, face: str, size: int, angle: float, colour: Rgb
) -> None:
    edge = max(2, size // 9)
    width, height = Canvas.text_size(text, face, size)
    layer = Image.new("L", (math.ceil(width) + 2 * edge + 2, math.ceil(height) + 2 * edge + 2), 0)
    stroke = ImageDraw.Draw(layer)
    stroke.text((edge + 1, edge + 1), text, 255, font(face, size), stroke_width=edge, stroke_fill=255)
    if angle:
        layer = layer.rotate(angle, resample=Image.Resampling.BICUBIC, expand=True)
    middle = (corner[0] + width / 2, corner[1] + height / 2)
    canvas.image.paste(colour, (round(middle[0] - layer.width / 2), round(middle[1] - layer.height / 2)), layer)
