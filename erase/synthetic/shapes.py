"""Plain shapes as polygons."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Point = tuple[float, float]
NAMES = ("circle", "square", "triangle", "star", "diamond", "hexagon", "cross", "heart")


def outline(name: str, x: float, y: float, radius: float, turn: float = 0.0) -> list[Point]:
    """Corners of a shape around (x, y) that fits into a circle of `radius` pixels, turned by `turn` radians."""
    return [
        (
            x + radius * (px * math.cos(turn) - py * math.sin(turn)),
            y + radius * (px * math.sin(turn) + py * math.cos(turn)),
        )
        for px, py in _UNIT[name]()
    ]


def _ring(corners: int, start: float, radii: Sequence[float] = (1.0,)) -> list[Point]:
    points = []
    for number in range(corners):
        angle = start + 2 * math.pi * number / corners
        radius = radii[number % len(radii)]
        points.append((radius * math.cos(angle), radius * math.sin(angle)))
    return points


def _square() -> list[Point]:
    side = 0.86
    return [(-side, -side), (side, -side), (side, side), (-side, side)]


def _cross() -> list[Point]:
    arm, end = 0.32, 0.95
    quarter = [(arm, -end), (arm, -arm), (end, -arm), (end, arm), (arm, arm), (arm, end)]
    return quarter + [(-x, -y) for x, y in quarter]


def _heart() -> list[Point]:
    points = []
    for number in range(48):
        angle = 2 * math.pi * number / 48
        x = 16 * math.sin(angle) ** 3
        y = 13 * math.cos(angle) - 5 * math.cos(2 * angle) - 2 * math.cos(3 * angle) - math.cos(4 * angle)
        points.append((x / 17, -(y + 2.5) / 17))
    return points


_UNIT: dict[str, Callable[[], list[Point]]] = {
    "circle": lambda: _ring(60, 0.0),
    "square": _square,
    "triangle": lambda: [(0.0, -0.95), (0.95, 0.8), (-0.95, 0.8)],
    "star": lambda: _ring(10, -math.pi / 2, (1.0, 0.42)),
    "diamond": lambda: [(0.0, -1.0), (0.72, 0.0), (0.0, 1.0), (-0.72, 0.0)],
    "hexagon": lambda: _ring(6, 0.0),
    "cross": _cross,
    "heart": _heart,
}
