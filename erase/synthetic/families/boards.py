"""Signs, license plates and lettering as they stand in a street, for the scene text family."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from erase.synthetic.canvas import Canvas, around
from erase.synthetic.colours import NAMED, Rgb, ink, luminance, mixed, shade
from erase.synthetic.fonts import font
from erase.synthetic.sample import Box
from erase.synthetic.shapes import Point

Noun = Literal["sign", "license plate", "text"]
Form = Literal["rectangle", "rounded", "ellipse", "hexagon", "arrow", "bare"]
FORMS: tuple[Form, ...] = ("rectangle", "rectangle", "rounded", "rounded", "ellipse", "hexagon", "arrow")
_LINE_GAP = 0.45  # between two lines, in sizes of the text


@dataclass(frozen=True)
class Board:
    """One or two lines of text on a plate, or bare on the ground, around (x, y).

    `colour` names the plate's colour, of bare text the ink's; `ink` names the lettering's
    colour if it has one, `car` the colour of the car that the plate is on.
    """

    noun: Noun
    lines: tuple[str, ...]
    face: str
    size: int
    form: Form
    colour: str
    ink: str | None = None
    angle: float = 0.0
    padding: float = 0.5
    car: str | None = None
    x: float = 0.0
    y: float = 0.0

    @property
    def half(self) -> tuple[float, float]:
        """Half the width and height of the plate before it is turned."""
        inked = [font(self.face, self.size).getbbox(line) for line in self.lines]
        width = max(right - left for left, _, right, _ in inked)
        height = sum(bottom - top for _, top, _, bottom in inked)
        height += _LINE_GAP * self.size * (len(inked) - 1)
        pad = self.padding * self.size if self.form != "bare" else 2.0
        wide, high = width / 2 + pad, height / 2 + pad * 0.8
        if self.form == "ellipse":
            return (max(wide, high) * 1.2,) * 2 if wide < 1.5 * high else (wide * 1.3, high * 1.35)
        if self.form in ("hexagon", "arrow"):
            return wide + high * 0.7, high
        return wide, high

    @property
    def box(self) -> Box:
        """What the plate covers."""
        xs, ys = zip(*self.outline(), strict=True)
        return Box(min(xs), min(ys), max(xs), max(ys))

    @property
    def room(self) -> Box:
        """What the plate and all that belongs to it cover."""
        box = self.box
        if not self.car:
            return box.grown(0.12 * self.size + 2)
        return Box(
            box.left - 0.6 * box.width, box.top - 1.6 * box.height, box.right + 0.6 * box.width, box.bottom + box.height
        )

    def outline(self, inset: float = 0.0) -> list[Point]:
        """The plate's corners, `inset` pixels inside its border."""
        wide, high = self.half
        corners = _corners(self.form, wide - inset, high - inset)
        return [_turned((self.x, self.y), x, y, self.angle) for x, y in corners]


def paint_behind(canvas: Canvas, board: Board, *, posts: bool) -> None:
    """What stands behind a board: posts, or the back of a car."""
    rng = canvas.rng
    if board.car:
        _paint_car(canvas, board.room, board.car)
    elif posts and board.form != "arrow" and rng.random() < 0.45:
        _paint_posts(canvas, board)


def paint_board(canvas: Canvas, board: Board, contrast: float | None, halo: bool) -> None:
    """The plate with its frame and shadow, and the text; `contrast` makes the ink a faint one."""
    rng = canvas.rng
    colour = shade(board.colour, rng, 10)
    if board.form == "bare":
        _paint_lines(canvas, board, colour, halo=_opposite(colour) if halo else None)
        return
    lettering = _lettering(board, colour) if contrast is None else ink(colour, rng, contrast)
    _paint_plate(canvas, board, colour, lettering)
    canvas.mark("colour", board.colour, board.box)
    _paint_lines(canvas, board, lettering)


def ink_names(colour: str) -> tuple[str, ...]:
    """The colours of letters that are easily read on a plate."""
    if luminance(NAMED[colour]) < 150:
        return ("white", "white", "yellow") if colour not in ("orange", "gray") else ("white", "black")
    return ("black", "black", "blue", "red") if colour in ("white", "yellow") else ("black",)


def _lettering(board: Board, plate: Rgb) -> Rgb:
    return NAMED[board.ink] if board.ink else _opposite(plate)


def _opposite(colour: Rgb) -> Rgb:
    return (15, 15, 18) if luminance(colour) > 140 else (250, 250, 250)


def _paint_plate(canvas: Canvas, board: Board, colour: Rgb, lettering: Rgb) -> None:
    rng = canvas.rng
    line = max(1.5, 0.07 * board.size)
    if rng.random() < 0.5:
        drop = 0.12 * board.size
        canvas.polygon([(x + drop, y + drop) for x, y in board.outline(inset=drop / 2)], (38, 38, 42))
    manner = rng.choice(("plain", "framed", "framed", "lined"))
    if manner == "framed":
        canvas.polygon(board.outline(), mixed(colour, rng.choice(((0, 0, 0), (255, 255, 255), lettering)), 0.8))
        canvas.polygon(board.outline(inset=line), colour)
        return
    canvas.polygon(board.outline(), colour)
    if manner == "lined" and board.padding > 0.35:
        canvas.polygon(board.outline(inset=line), lettering)
        canvas.polygon(board.outline(inset=2 * line), colour)


def _paint_lines(canvas: Canvas, board: Board, colour: Rgb, halo: Rgb | None = None) -> Box:
    """All lines of a board, each centred, turned about the board's middle."""
    drawn = font(board.face, board.size)
    inked = [drawn.getbbox(line) for line in board.lines]
    heights = [bottom - top for _, top, _, bottom in inked]
    down = -(sum(heights) + _LINE_GAP * board.size * (len(inked) - 1)) / 2
    boxes = []
    for line, (left, top, right, bottom), height in zip(board.lines, inked, heights, strict=True):
        width, line_height = canvas.text_size(line, board.face, board.size)
        off_x, off_y = width / 2 - (left + right) / 2, line_height / 2 - (top + bottom) / 2
        middle = _turned((board.x, board.y), off_x, down + height / 2 + off_y, board.angle)
        corner = (middle[0] - width / 2, middle[1] - line_height / 2)
        if halo and not board.angle:
            canvas.draw.text(corner, line, colour, drawn, stroke_width=max(1, board.size // 12), stroke_fill=halo)
        name = board.colour if board.form == "bare" else None
        boxes.append(canvas.text(*corner, line, board.face, board.size, colour, angle=board.angle, colour_name=name))
        down += height + _LINE_GAP * board.size
    return around(boxes)


def _paint_posts(canvas: Canvas, board: Board) -> None:
    rng = canvas.rng
    wide = board.half[0]
    thick = max(3.0, 0.22 * board.size)
    colour = shade(rng.choice(("gray", "brown", "black")), rng)
    foot = (
        canvas.height if rng.random() < 0.5 else min(canvas.height, board.box.bottom + board.size * rng.uniform(2, 5))
    )
    for place in rng.choice(((0.0,), (-0.6, 0.6))):
        middle = board.x + place * wide
        canvas.fill(Box(middle - thick / 2, board.y, middle + thick / 2, foot), colour)


def _paint_car(canvas: Canvas, room: Box, colour: str) -> None:
    """The back of a car that fills `room`: wheels, body, window and lights."""
    body = shade(colour, canvas.rng)
    canvas.mark("colour", colour, room)
    wide, high = room.width, room.height
    draw = canvas.draw
    for left in (room.left + 0.06 * wide, room.right - 0.2 * wide):
        canvas.fill(Box(left, room.bottom - 0.2 * high, left + 0.14 * wide, room.bottom), (24, 24, 26))
    roof = (room.left + 0.14 * wide, room.top, room.right - 0.14 * wide, room.top + 0.5 * high)
    draw.rounded_rectangle(roof, 0.12 * high, body)
    window = (roof[0] + 0.05 * wide, roof[1] + 0.06 * high, roof[2] - 0.05 * wide, room.top + 0.3 * high)
    draw.rounded_rectangle(window, 0.06 * high, (70, 84, 98))
    draw.rounded_rectangle((room.left, room.top + 0.32 * high, room.right, room.bottom - 0.1 * high), 0.1 * high, body)
    for left in (room.left + 0.02 * wide, room.right - 0.12 * wide):
        top = room.top + 0.38 * high
        draw.rectangle((left, top, left + 0.1 * wide, top + 0.12 * high), (170, 16, 20), (40, 10, 10))


def _corners(form: Form, wide: float, high: float) -> list[Point]:
    if form == "ellipse":
        turns = [2 * math.pi * number / 60 for number in range(60)]
        return [(wide * math.cos(turn), high * math.sin(turn)) for turn in turns]
    if form == "rounded":
        return _rounded(wide, high, 0.35 * min(wide, high))
    tip = 0.7 * high
    if form == "hexagon":
        return [(-wide, 0), (tip - wide, -high), (wide - tip, -high), (wide, 0), (wide - tip, high), (tip - wide, high)]
    if form == "arrow":
        return [(-wide, -high), (wide - tip, -high), (wide, 0), (wide - tip, high), (-wide, high)]
    return [(-wide, -high), (wide, -high), (wide, high), (-wide, high)]


def _rounded(wide: float, high: float, radius: float) -> list[Point]:
    points = []
    for quarter, (x, y) in enumerate(((1, 1), (-1, 1), (-1, -1), (1, -1))):
        for step in range(7):
            turn = (quarter + step / 6) * math.pi / 2
            points.append(
                (x * (wide - radius) + radius * math.cos(turn), y * (high - radius) + radius * math.sin(turn))
            )
    return points


def _turned(middle: Point, x: float, y: float, angle: float) -> Point:
    """(x, y) turned counter-clockwise by `angle` degrees about the origin, then moved to `middle`."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return middle[0] + x * cos + y * sin, middle[1] - x * sin + y * cos
