"""Coloured shapes, the grounds they lie on, and textures, for the general family and others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from erase.synthetic.backgrounds import ground
from erase.synthetic.canvas import Canvas
from erase.synthetic.colours import NAMED, NAMES, Rgb, ink, mixed, paper, shade
from erase.synthetic.sample import Box

_PAINTED = 240  # longest side in pixels up to which textures are painted at full size
_ENLARGED = 3.0  # how much larger ones are enlarged at most
_TEXTURES = ("clouds", "grain", "weave", "bricks", "leaves", "scene")
_GAP = 110.0  # smallest distance in RGB between a shape's colour and every part of its ground


@dataclass(frozen=True)
class Thing:
    """A shape in a named colour around (x, y); without a name its colour is never asked for."""

    shape: str
    colour: str | None
    x: float
    y: float
    radius: float

    @property
    def box(self) -> Box:
        return Box(self.x - self.radius, self.y - self.radius, self.x + self.radius, self.y + self.radius)


@dataclass(frozen=True)
class Ground:
    """What was painted: the name of its colour if it is plain and has one, and the names that stand out on it."""

    name: str | None
    usable: tuple[str, ...]
    busy: bool = False


@dataclass(frozen=True)
class Panel:
    """A plain part of the canvas that has a name: `background`, `left half`, `top right quarter`."""

    place: str
    colour: str
    box: Box


@dataclass(frozen=True)
class Scene:
    """The things of an image and what may be asked about them, beside their colours and shapes.

    `counted` is the shape or colour whose number is asked; `neighbours` holds (word, one, other) where the thing
    number `other` is, for example, `left of` number `one`; `places` says which thing is in the `top left corner`.
    """

    things: list[Thing]
    background: str | None = None
    panels: tuple[Panel, ...] = ()
    counted: str | None = None
    neighbours: tuple[tuple[str, int, int], ...] = ()
    places: tuple[tuple[str, int], ...] = ()
    sized: bool = False


def plain_ground(canvas: Canvas, name: str) -> Ground:
    """All of the canvas in one named colour."""
    colour = shade(name, canvas.rng)
    canvas.fill(canvas.bounds, colour)
    canvas.mark("colour", name, canvas.bounds)
    return Ground(name, standing_out([colour], _GAP))


def paint_ground(canvas: Canvas, hard: str | None) -> Ground:
    """A ground of the sort that `hard` asks for: plain, a gradient, or a texture."""
    rng = canvas.rng
    if hard == "flat":
        return plain_ground(canvas, rng.choice(NAMES))
    if hard == "faint":
        canvas.fill(canvas.bounds, paper(rng) if rng.random() < 0.5 else shade("gray", rng, 70))
        return Ground(None, ())
    kind = rng.random()
    if hard is None and kind < 0.25:
        return plain_ground(canvas, rng.choice(NAMES))
    if hard is None and kind < 0.5:
        colour = paper(rng)
        canvas.fill(canvas.bounds, colour)
        return Ground(None, standing_out([colour], _GAP))
    return _textured_ground(canvas, hard == "busy")


def _textured_ground(canvas: Canvas, busy: bool) -> Ground:
    rng = canvas.rng
    for _ in range(4):
        kind = rng.choice(_TEXTURES if busy or rng.random() < 0.6 else ("gradient",))
        picture = texture(canvas, kind, rng.uniform(0.8, 1.0) if busy else rng.uniform(0.2, 0.5))
        if not busy and rng.random() < 0.7:
            veil = Image.new("RGB", picture.size, paper(rng) if rng.random() < 0.7 else (12, 12, 16))
            picture = Image.blend(picture, veil, rng.uniform(0.3, 0.7))
        patches = np.asarray(picture.resize((6, 6), Image.Resampling.BOX)).reshape(-1, 3).tolist()
        usable = standing_out([(red, green, blue) for red, green, blue in patches], 70.0 if busy else _GAP)
        if len(usable) >= 6:
            canvas.paste(picture)
            return Ground(None, usable, busy)
    return plain_ground(canvas, "white")


def texture(canvas: Canvas, kind: str, contrast: float) -> Image.Image:
    """A ground of backgrounds.py as large as the canvas, painted small and enlarged."""
    scale = min(_ENLARGED, max(1.0, max(canvas.width, canvas.height) / _PAINTED))
    small = (round(canvas.width / scale), round(canvas.height / scale))
    picture = ground(kind, *small, canvas.noise(), contrast=contrast)
    return picture.resize((canvas.width, canvas.height), Image.Resampling.BICUBIC) if scale > 1 else picture


def standing_out(grounds: list[Rgb], gap: float = _GAP) -> tuple[str, ...]:
    """The names of the colours that are at least `gap` away from each of `grounds`."""
    return tuple(name for name in NAMES if all(_distance(NAMED[name], colour) >= gap for colour in grounds))


def paint_things(canvas: Canvas, things: list[Thing], ground: Ground) -> None:
    """Draws all things in one manner: filled, hollow, or edged."""
    rng = canvas.rng
    manner = "edged" if ground.busy else rng.choice(("filled",) * 6 + ("hollow", "edged"))
    lean = rng.choice((0.0, 0.0, 0.15))
    for thing in things:
        under = _under(canvas, thing)
        colour = shade(thing.colour, rng) if thing.colour else ink(under, rng, 0.3)
        edge = mixed(colour, _far_end(colour), 0.8) if manner == "edged" and thing.colour else None
        canvas.shape(
            thing.shape,
            thing.x,
            thing.y,
            thing.radius,
            colour,
            colour_name=thing.colour,
            turn=rng.uniform(-lean, lean),
            edge=edge,
            hollow=manner == "hollow",
        )


def _under(canvas: Canvas, thing: Thing) -> Rgb:
    red, green, blue = canvas.image.getpixel((round(thing.x), round(thing.y)))  # type: ignore[misc]
    return red, green, blue


def _far_end(colour: Rgb) -> Rgb:
    return (255, 255, 255) if sum(colour) < 380 else (0, 0, 0)


def _distance(one: Rgb, other: Rgb) -> float:
    return float(sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5)
