"""Bar charts, line charts and pie charts, as in ChartQA."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

from erase.synthetic.canvas import Canvas
from erase.synthetic.colours import VIVID, Rgb, ink, mixed, paper, shade
from erase.synthetic.families.things import texture
from erase.synthetic.fonts import UPRIGHT, height_of, pick
from erase.synthetic.sample import Box, Question
from erase.synthetic.words import CATEGORIES, CITIES, FACTS, GOODS

_MOST_QUESTIONS = 8
_TITLES = (*FACTS, "results", "budget", "growth", "income", "traffic", "energy")


@dataclass(frozen=True)
class Look:
    """The type and the inks of a chart."""

    face: str
    size: int
    ink: Rgb
    line: Rgb
    ground: Rgb

    @property
    def height(self) -> float:
        return float(height_of(self.face, self.size))

    def width(self, text: str) -> float:
        return Canvas.text_size(text, self.face, self.size)[0]


@dataclass(frozen=True)
class Entry:
    """One category with its value; `boxes` are what was drawn for it: its name, its bar, its printed value."""

    name: str
    value: int
    colour: str
    boxes: tuple[Box, ...]


def compose(canvas: Canvas, crowd: float, hard: str | None) -> tuple[Question, ...]:
    """Draws one chart and returns what may be asked about it."""
    rng = canvas.rng
    look = _look(canvas, hard)
    frame, title = _titled(canvas, look, crowd)
    names = rng.sample(rng.choice((CATEGORIES, CITIES, GOODS)), 2 + round(crowd * 6 * rng.uniform(0.5, 1.0)))
    draw = rng.choice((_columns, _columns, _rows, _rows, _pie, _line))
    entries = draw(canvas, look, frame, names)
    if len(entries) < 2:
        draw, entries = _rows, _rows(canvas, look, frame, names)
    questions = _asked(rng, entries, "share" if draw is _pie else "value", draw is not _line)
    if title:
        questions.append(title)
    rng.shuffle(questions)
    return tuple(questions[:_MOST_QUESTIONS])


def _look(canvas: Canvas, hard: str | None) -> Look:
    rng = canvas.rng
    ground = paper(rng) if hard == "busy" or rng.random() < 0.85 else shade("black", rng, 16)
    canvas.fill(canvas.bounds, ground)
    if hard == "busy":
        canvas.paste(texture(canvas, rng.choice(("grain", "weave", "clouds")), 0.9))
        ground = canvas.image.resize((1, 1)).getpixel((0, 0))  # type: ignore[assignment]
    size = max(14, round(canvas.unit * rng.uniform(0.8, 0.95)))
    contrast = 0.32 if hard == "faint" else rng.uniform(0.8, 1.0)
    return Look(pick(rng, UPRIGHT), size, ink(ground, rng, contrast), mixed(ground, ink(ground, rng), 0.35), ground)


def _titled(canvas: Canvas, look: Look, crowd: float) -> tuple[Box, Question | None]:
    """The room for the chart, at most as large as is sensible for its text, and the title if there is one."""
    rng = canvas.rng
    width = min(canvas.width - 8.0, look.size * rng.uniform(18, 40))
    height = min(canvas.height - 6.0, look.size * rng.uniform(12, 26))
    left, top = rng.uniform(4, canvas.width - width - 4), rng.uniform(3, canvas.height - height - 3)
    frame = Box(left, top, left + width, top + height)
    if rng.random() > 0.35 or crowd < 0.15 or height < 6 * look.height:
        return frame, None
    word = rng.choice(_TITLES)
    printed = rng.choice((word, word.title(), word.upper()))
    size = round(look.size * 1.15)
    if canvas.text_size(printed, look.face, size)[0] > width:
        return frame, None
    middle = left + (width - canvas.text_size(printed, look.face, size)[0]) / 2
    box = canvas.text(middle, top, printed, look.face, size, look.ink)
    question = Question("What is the title?", word, (box,), "title")
    return Box(left, top + look.height * 1.3, frame.right, frame.bottom), question


def _values(rng: Random, count: int, printed: bool) -> tuple[list[int], int]:
    """Distinct values and the distance of the axis' ticks; without printed values they lie on ticks."""
    step = rng.choice((1, 2, 5, 10, 20, 50))
    if printed:
        return rng.sample(range(step, 10 * step + 9), count) if step > 1 else rng.sample(range(1, 20), count), step
    most = max(count, rng.randint(4, 6))
    return [number * step for number in rng.sample(range(1, most + 1), count)], step


def _columns(canvas: Canvas, look: Look, frame: Box, names: list[str]) -> list[Entry]:
    """Upright bars, their names below."""
    rng = canvas.rng
    axis = look.width("000") + 4
    room = frame.width - axis
    while names and max(look.width(name) for name in names) + look.size * 0.5 > room / len(names):
        names = names[:-1]
    if len(names) < 2:
        return []
    printed = rng.random() < 0.6
    if not printed:
        names = names[:6]
    values, step = _values(rng, len(names), printed)
    top, bottom = frame.top + look.height * 1.1, frame.bottom - look.height * 1.15
    if bottom - top < 3 * look.height:
        return []
    scale = (bottom - top) / max(values)
    left = frame.left + axis
    _ticks(
        canvas, look, values, step, printed, lambda value: bottom - value * scale, Box(left, top, frame.right, bottom)
    )
    slot = room / len(names)
    colours = _colours(rng, len(names))
    entries = []
    for number, (name, value, colour) in enumerate(zip(names, values, colours, strict=True)):
        middle = left + slot * (number + 0.5)
        half = min(slot * 0.36, look.size * 1.6)
        bar = Box(middle - half, bottom - value * scale, middle + half, bottom)
        boxes = [_bar(canvas, bar, colour)]
        boxes.append(_centred(canvas, look, name, middle, bottom + 2))
        if printed:
            boxes.append(_centred(canvas, look, str(value), middle, bar.top - look.height))
        entries.append(Entry(name, value, colour, tuple(boxes)))
    return entries


def _rows(canvas: Canvas, look: Look, frame: Box, names: list[str]) -> list[Entry]:
    """Lying bars, their names at the left, their values always printed."""
    rng = canvas.rng
    step = look.height * rng.uniform(1.05, 1.4)
    names = names[: max(1, int(frame.height // step))]
    while len(names) > 1 and max(map(look.width, names)) + look.width("000") + 2 * look.size > frame.width:
        names.remove(max(names, key=look.width))
    if max(map(look.width, names)) + look.width("000") + look.size > frame.width:
        names = ["sun"]
    values, _ = _values(rng, len(names), True)
    left = frame.left + max(map(look.width, names)) + look.size * 0.4
    length = frame.right - left - look.width("000") - look.size * 0.4
    colours = _colours(rng, len(names))
    top = frame.top + rng.uniform(0, max(0.0, frame.height - step * len(names)))
    entries = []
    for number, (name, value, colour) in enumerate(zip(names, values, colours, strict=True)):
        y = top + number * step
        bar = Box(left, y + look.height * 0.1, left + max(3.0, length * value / max(values)), y + look.height * 0.9)
        boxes = (
            canvas.text(left - look.size * 0.4 - look.width(name), y, name, look.face, look.size, look.ink),
            _bar(canvas, bar, colour),
            canvas.text(bar.right + look.size * 0.3, y, str(value), look.face, look.size, look.ink),
        )
        entries.append(Entry(name, value, colour, boxes))
    return entries


def _line(canvas: Canvas, look: Look, frame: Box, names: list[str]) -> list[Entry]:
    """Points joined by a line, each with its value above and its name below the axis."""
    rng = canvas.rng
    while names and max(look.width(name) for name in names) + look.size * 0.5 > frame.width / len(names):
        names = names[:-1]
    top, bottom = frame.top + look.height * 1.3, frame.bottom - look.height * 1.3
    if len(names) < 2 or bottom - top < 3 * look.height:
        return []
    values, _ = _values(rng, len(names), True)
    scale = (bottom - top) / max(values)
    slot = frame.width / len(names)
    points = [(frame.left + slot * (number + 0.5), bottom - value * scale) for number, value in enumerate(values)]
    colour = rng.choice(VIVID)
    paint = shade(colour, rng)
    canvas.draw.line((frame.left, bottom, frame.right, bottom), look.line, max(1, look.size // 14))
    canvas.draw.line(points, mixed(paint, look.ground, 0.45), max(2, look.size // 8), joint="curve")
    entries = []
    for name, value, (x, y) in zip(names, values, points, strict=True):
        dot = canvas.shape("circle", x, y, look.size * 0.22, paint, colour_name=colour)
        boxes = (_centred(canvas, look, name, x, bottom + 2), dot, _halo(canvas, look, str(value), x, y))
        entries.append(Entry(name, value, colour, boxes))
    return entries


def _pie(canvas: Canvas, look: Look, frame: Box, names: list[str]) -> list[Entry]:
    """A pie with a legend that names the colours and gives the shares in percent."""
    rng = canvas.rng
    names = names[: min(6, max(1, int(frame.height // (look.height * 1.15))))]
    legend = max(map(look.width, names)) + look.width("100%") + look.size * 2.4
    radius = min(frame.height / 2, (frame.width - legend) / 2) - 2
    if len(names) < 2 or radius < look.size * 1.2:
        return []
    shares = _shares(rng, len(names))
    colours = rng.sample(VIVID, len(names))
    x, y = frame.left + radius, (frame.top + frame.bottom) / 2
    pie = Box(x - radius, y - radius, x + radius, y + radius)
    left = pie.right + look.size * 0.6
    top = y - len(names) * look.height * 1.15 / 2
    start = rng.uniform(0, 2 * math.pi)
    entries = []
    for number, (name, share, colour) in enumerate(zip(names, shares, colours, strict=True)):
        paint = shade(colour, rng)
        slice_box = _slice(canvas, x, y, radius, start, start + share / 100 * 2 * math.pi, paint, colour)
        start += share / 100 * 2 * math.pi
        line = top + number * look.height * 1.15
        key = Box(left, line + look.height * 0.2, left + look.height * 0.6, line + look.height * 0.8)
        canvas.fill(key, paint)
        canvas.mark("colour", colour, key)
        word = canvas.text(key.right + look.size * 0.4, line, name, look.face, look.size, look.ink)
        figure = canvas.text(
            key.right + look.size * 0.9 + look.width(name), line, f"{share}%", look.face, look.size, look.ink
        )
        entries.append(Entry(name, share, colour, (key, word, figure, slice_box)))
    return entries


def _slice(canvas: Canvas, x: float, y: float, radius: float, start: float, end: float, paint: Rgb, colour: str) -> Box:
    """Draws a slice; its box stands around its middle."""
    steps = max(2, int((end - start) / 0.06))
    rim = [start + (end - start) * number / steps for number in range(steps + 1)]
    canvas.polygon([(x, y), *((x + radius * math.cos(turn), y + radius * math.sin(turn)) for turn in rim)], paint)
    middle = (start + end) / 2
    cx, cy = x + radius * 0.6 * math.cos(middle), y + radius * 0.6 * math.sin(middle)
    box = Box(cx - radius * 0.25, cy - radius * 0.25, cx + radius * 0.25, cy + radius * 0.25)
    canvas.mark("colour", colour, box)
    return box


def _ticks(canvas: Canvas, look: Look, values: list[int], step: int, printed: bool, at, room: Box) -> None:  # type: ignore[no-untyped-def]
    """The vertical axis with its numbers, and lines across."""
    rng = canvas.rng
    wide = max(1, look.size // 14)
    across = not printed or rng.random() < 0.5
    canvas.draw.line((room.left, room.top, room.left, room.bottom), look.line, wide)
    canvas.draw.line((room.left, room.bottom, room.right, room.bottom), look.line, wide)
    spread = 1
    while room.height / (max(values) / (step * spread)) < look.height * 1.05:
        spread += 1 if spread < 2 else spread
    for value in range(0, max(values) + 1, step * spread):
        y = at(value)
        text = str(value)
        canvas.text(room.left - look.width(text) - 4, y - look.height / 2, text, look.face, look.size, look.ink)
        if across and value:
            canvas.draw.line((room.left, y, room.right, y), mixed(look.line, look.ground, 0.5), wide)


def _bar(canvas: Canvas, bar: Box, colour: str) -> Box:
    canvas.fill(bar, shade(colour, canvas.rng))
    canvas.mark("colour", colour, bar)
    return bar


def _centred(canvas: Canvas, look: Look, text: str, middle: float, top: float) -> Box:
    return canvas.text(middle - look.width(text) / 2, top, text, look.face, look.size, look.ink)


def _halo(canvas: Canvas, look: Look, text: str, x: float, y: float) -> Box:
    """A value above its point, on a patch of ground so that the line does not cross it."""
    width, top = look.width(text), y - look.height * 1.25
    canvas.fill(Box(x - width / 2 - 1, top + 2, x + width / 2 + 1, top + look.height - 1), look.ground)
    return _centred(canvas, look, text, x, top)


def _colours(rng: Random, count: int) -> list[str]:
    """All bars in one colour, or each in its own."""
    if rng.random() < 0.35 or count > len(VIVID):
        return [rng.choice(VIVID)] * count
    return rng.sample(VIVID, count)


def _shares(rng: Random, count: int) -> list[int]:
    """Distinct whole percentages that add up to 100."""
    while True:
        cuts = sorted(rng.sample(range(4, 97), count - 1))
        shares = [high - low for low, high in zip([0, *cuts], [*cuts, 100], strict=True)]
        if min(shares) >= 4 and len(set(shares)) == count:
            return shares


def _asked(rng: Random, entries: list[Entry], word: str, coloured: bool) -> list[Question]:
    percent = "%" if word == "share" else ""
    everything = tuple(box for entry in entries for box in entry.boxes)
    own_colours = coloured and len({entry.colour for entry in entries}) == len(entries)
    questions = []
    for entry in entries:
        asked = rng.random()
        value = f"{entry.value}{percent}"
        if asked < 0.7:
            questions.append(Question(f"What is the {word} of {entry.name}?", value, entry.boxes, "value"))
        elif asked < 0.85 or not own_colours:
            questions.append(Question(f"Which category has the {word} {value}?", entry.name, entry.boxes, "at_value"))
        else:
            questions.append(Question(f"What color is {entry.name}?", entry.colour, entry.boxes, "category_color"))
    if len(entries) > 1:
        by_value = sorted(entries, key=lambda entry: entry.value)
        for which, entry in (("highest", by_value[-1]), ("lowest", by_value[0])):
            questions.append(Question(f"Which category is {which}?", entry.name, everything, which))
    return questions
