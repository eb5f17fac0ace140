"""Small pictures of things, from polygons."""

from __future__ import annotations

import math
from collections.abc import Callable

from erase.synthetic.canvas import Canvas
from erase.synthetic.colours import Rgb
from erase.synthetic.sample import Box
from erase.synthetic.shapes import Point

Part = list[Point]


def draw_icon(canvas: Canvas, name: str, x: float, y: float, radius: float, colour: Rgb) -> Box:
    """Draws one of `NAMES` in one colour around (x, y), no larger than `radius` in any direction; marks its box."""
    for part in _PARTS[name]():
        canvas.polygon([(x + radius * across, y + radius * down) for across, down in part], colour)
    box = Box(x - radius, y - radius, x + radius, y + radius)
    canvas.mark("icon", name, box)
    return box


def _disc(x: float, y: float, radius: float, stretch: float = 1.0) -> Part:
    turns = [2 * math.pi * number / 28 for number in range(28)]
    return [(x + radius * math.cos(turn), y + radius * stretch * math.sin(turn)) for turn in turns]


def _block(left: float, top: float, right: float, bottom: float) -> Part:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _house() -> list[Part]:
    left_wall, right_wall = _block(-0.65, -0.1, -0.18, 0.9), _block(0.18, -0.1, 0.65, 0.9)
    return [[(-0.95, 0.0), (0.0, -0.9), (0.95, 0.0)], left_wall, right_wall, _block(-0.65, -0.1, 0.65, 0.3)]


def _tree() -> list[Part]:
    return [
        [(-0.55, -0.2), (0.0, -1.0), (0.55, -0.2)],
        [(-0.8, 0.5), (0.0, -0.5), (0.8, 0.5)],
        _block(-0.14, 0.45, 0.14, 1.0),
    ]


def _person() -> list[Part]:
    return [_disc(0.0, -0.62, 0.34), [(-0.6, 0.95), (-0.5, -0.05), (0.0, -0.25), (0.5, -0.05), (0.6, 0.95)]]


def _drop() -> list[Part]:
    return [_disc(0.0, 0.32, 0.6), [(-0.57, 0.15), (0.0, -1.0), (0.57, 0.15)]]


def _sun() -> list[Part]:
    rays = []
    for number in range(8):
        turn = math.pi * number / 4
        cos, sin = math.cos(turn), math.sin(turn)
        foot = [(0.62 * cos + side * sin, 0.62 * sin - side * cos) for side in (-0.13, 0.13)]
        rays.append([foot[0], (cos, sin), foot[1]])
    return [_disc(0.0, 0.0, 0.5), *rays]


def _car() -> list[Part]:
    roof = [(-0.5, -0.05), (-0.3, -0.5), (0.35, -0.5), (0.6, -0.05)]
    return [roof, _block(-0.95, -0.08, 0.95, 0.35), _disc(-0.5, 0.38, 0.24), _disc(0.5, 0.38, 0.24)]


def _cup() -> list[Part]:
    bowl = [(-0.75, -0.6), (0.45, -0.6), (0.3, 0.7), (-0.6, 0.7)]
    handle = [
        (0.42, -0.45),
        (0.95, -0.3),
        (0.85, 0.25),
        (0.34, 0.4),
        (0.36, 0.18),
        (0.66, 0.08),
        (0.7, -0.15),
        (0.4, -0.22),
    ]
    return [bowl, handle]


def _fish() -> list[Part]:
    return [_disc(-0.2, 0.0, 0.7, 0.62), [(0.3, 0.0), (0.98, -0.55), (0.98, 0.55)]]


def _flag() -> list[Part]:
    return [_block(-0.7, -0.95, -0.52, 1.0), [(-0.52, -0.9), (0.85, -0.45), (-0.52, 0.05)]]


def _mail() -> list[Part]:
    flap = [(-0.95, -0.62), (0.95, -0.62), (0.0, 0.12)]
    body = [(-0.95, -0.42), (0.0, 0.34), (0.95, -0.42), (0.95, 0.62), (-0.95, 0.62)]
    return [flap, body]


def _key() -> list[Part]:
    turns = [2 * math.pi * number / 24 for number in range(25)]
    outer = [(-0.5 + 0.45 * math.cos(turn), 0.45 * math.sin(turn)) for turn in turns]
    inner = [(-0.5 + 0.2 * math.cos(turn), 0.2 * math.sin(turn)) for turn in reversed(turns)]
    teeth = [_block(0.45, 0.0, 0.6, 0.4), _block(0.75, 0.0, 0.92, 0.45)]
    return [outer + inner, _block(-0.1, -0.11, 0.95, 0.11), *teeth]


def _bell() -> list[Part]:
    dome = [(-0.85, 0.5), (-0.6, 0.2), (-0.5, -0.4), (-0.2, -0.8), (0.2, -0.8), (0.5, -0.4), (0.6, 0.2), (0.85, 0.5)]
    return [dome, _disc(0.0, 0.68, 0.24), _disc(0.0, -0.85, 0.14)]


def _leaf() -> list[Part]:
    return [[(-0.9, 0.9), (-0.7, -0.1), (-0.1, -0.75), (0.95, -0.95), (0.75, 0.1), (0.1, 0.7), (-0.6, 0.72)]]


def _bolt() -> list[Part]:
    return [[(0.2, -1.0), (-0.6, 0.15), (-0.05, 0.15), (-0.25, 1.0), (0.6, -0.25), (0.05, -0.25)]]


_PARTS: dict[str, Callable[[], list[Part]]] = {
    "house": _house,
    "tree": _tree,
    "person": _person,
    "drop": _drop,
    "sun": _sun,
    "car": _car,
    "cup": _cup,
    "fish": _fish,
    "flag": _flag,
    "mail": _mail,
    "key": _key,
    "bell": _bell,
    "leaf": _leaf,
    "bolt": _bolt,
}
NAMES = tuple(_PARTS)
