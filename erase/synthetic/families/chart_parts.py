"""What all charts are made of: their look, values, colours, axes and bars."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from erase.synthetic.canvas import Canvas
from erase.synthetic.colours import NAMES, VIVID, Rgb, ink, mixed, paper, shade
from erase.synthetic.families.local_colour import mean_colour
from erase.synthetic.families.things import standing_out, texture
from erase.synthetic.fonts import UPRIGHT, height_of, pick
from erase.synthetic.sample import Box

_GAP = 85.0  # smallest distance in RGB between a bar and its ground
_TICK_STEPS = (1, 2, 5, 10, 20, 50)


@dataclass(frozen=True)
class Look:
    """The type and the inks of a chart, the colours that stand out on its ground, and the ground's if it is asked."""

    face: str
    size: int
    ink: Rgb
    line: Rgb
    ground: Rgb
    colours: tuple[str, ...]
    background: str | None

    @property
    def height(self) -> float:
        return float(height_of(self.face, self.size))

    @property
    def thin(self) -> int:
        return max(1, self.size // 14)

    def width(self, text: str) -> float:
        return Canvas.text_size(text, self.face, self.size)[0]

    def widest(self, texts: list[str]) -> float:
        return max(self.width(text) for text in texts)


@dataclass(frozen=True)
class Entry:
    """One category with its value; `boxes` are what was drawn for it: its name, its bar, its printed value.

    `axis` are the numbers of the axis if the value has to be read off them.
    """

    name: str
    value: int
    colour: str
    boxes: tuple[Box, ...]
    axis: tuple[Box, ...] = ()


def paint_ground(canvas: Canvas, hard: str | None) -> Look:
    """Paints the ground and chooses a type and inks for it."""
    rng = canvas.rng
    background = rng.choice(NAMES) if hard == "flat" else None
    if background:
        ground = shade(background, rng)
        canvas.mark("colour", background, canvas.bounds)
    else:
        ground = paper(rng) if hard == "busy" or rng.random() < 0.85 else shade("black", rng, 16)
    canvas.fill(canvas.bounds, ground)
    if hard == "busy":
        canvas.paste(texture(canvas, rng.choice(("grain", "weave", "clouds")), 0.9))
        ground = mean_colour(canvas, canvas.bounds)
    size = max(14, round(canvas.unit * rng.uniform(0.8, 0.95)))
    paint = ink(ground, rng, 0.32 if hard == "faint" else rng.uniform(0.8, 1.0))
    line = mixed(ground, ink(ground, rng), 0.35)
    usable = standing_out([ground], _GAP)
    colours = tuple(name for name in VIVID if name in usable)
    return Look(pick(rng, UPRIGHT), size, paint, line, ground, colours, background)


def free_values(rng: Random, count: int) -> list[int]:
    """Distinct values, to be printed."""
    step = rng.choice(_TICK_STEPS)
    return rng.sample(range(step, 10 * step + 9), count) if step > 1 else rng.sample(range(1, 20), count)


def tick_values(rng: Random, count: int, ticks: int) -> tuple[list[int], int]:
    """Distinct values on at most `ticks` ticks of an axis, to be read off it; and the distance of the ticks."""
    step = rng.choice(_TICK_STEPS)
    most = min(ticks, max(count, rng.randint(4, 6)))
    return [number * step for number in rng.sample(range(1, most + 1), count)], step


def bar_colours(rng: Random, look: Look, count: int) -> list[str]:
    """All bars in one colour, or each in its own."""
    if rng.random() < 0.35 or count > len(look.colours):
        return [rng.choice(look.colours)] * count
    return rng.sample(look.colours, count)


def upright_axis(
    canvas: Canvas, look: Look, room: Box, most: int, step: int, height_at: Callable[[int], float]
) -> tuple[Box, ...]:
    """The axes of a chart in `room` with numbers up to `most` at the left, which it returns.

    `step` 0 means a round one that fits; else lines go across too, since values are read off them then.
    """
    numbers = []
    across = step > 0 or canvas.rng.random() < 0.5
    canvas.draw.line((room.left, room.top, room.left, room.bottom), look.line, look.thin)
    canvas.draw.line((room.left, room.bottom, room.right, room.bottom), look.line, look.thin)
    for value in range(0, most + 1, step or _round_step(most, int(room.height / (look.height * 1.05)))):
        y, text = height_at(value), str(value)
        numbers.append(
            canvas.text(room.left - look.width(text) - 4, y - look.height / 2, text, look.face, look.size, look.ink)
        )
        if across and value:
            canvas.draw.line((room.left, y, room.right, y), mixed(look.line, look.ground, 0.5), look.thin)
    return tuple(numbers)


def lying_axis(
    canvas: Canvas, look: Look, room: Box, most: int, step: int, across_at: Callable[[int], float]
) -> tuple[Box, ...]:
    """The axes of a chart in `room` with lines upwards and numbers up to `most` below it, which it returns."""
    numbers = []
    canvas.draw.line((room.left, room.top, room.left, room.bottom), look.line, look.thin)
    canvas.draw.line((room.left, room.bottom, room.right, room.bottom), look.line, look.thin)
    for value in range(0, most + 1, step):
        x = across_at(value)
        numbers.append(centred(canvas, look, str(value), x, room.bottom + 2))
        if value:
            canvas.draw.line((x, room.top, x, room.bottom), mixed(look.line, look.ground, 0.5), look.thin)
    return tuple(numbers)


def _round_step(most: int, ticks: int) -> int:
    """The smallest of 1, 2, 5, 10, 20, ... that needs at most `ticks` steps to `most`."""
    least = most / max(1, ticks)
    power = int(10 ** max(0, math.floor(math.log10(max(1.0, least)))))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)


def bar(canvas: Canvas, box: Box, colour: str) -> Box:
    canvas.fill(box, shade(colour, canvas.rng))
    canvas.mark("colour", colour, box)
    return box


def centred(canvas: Canvas, look: Look, text: str, middle: float, top: float) -> Box:
    return canvas.text(middle - look.width(text) / 2, top, text, look.face, look.size, look.ink)
