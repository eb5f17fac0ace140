"""Bar charts, line charts and pie charts, as in ChartQA."""

from __future__ import annotations

from random import Random

from erase.synthetic.canvas import Canvas
from erase.synthetic.colours import NAMES, mixed, shade
from erase.synthetic.families.chart_parts import (
    Entry,
    Look,
    bar,
    bar_colours,
    centred,
    free_values,
    lying_axis,
    paint_ground,
    tick_values,
    upright_axis,
)
from erase.synthetic.families.chart_pie import pie
from erase.synthetic.sample import Box, Question
from erase.synthetic.words import CATEGORIES, CITIES, FACTS, GOODS

_MOST_QUESTIONS = 8
_TITLES = (*FACTS, "results", "budget", "growth", "income", "traffic", "energy")
_PRINTED = 0.6  # how often bars have their values printed beside them


def compose(canvas: Canvas, crowd: float, hard: str | None) -> tuple[Question, ...]:
    """Draws one chart and returns what may be asked about it."""
    rng = canvas.rng
    look = paint_ground(canvas, hard)
    frame, title = _titled(canvas, look, crowd)
    names = rng.sample(rng.choice((CATEGORIES, CITIES, GOODS)), 2 + round(crowd * 6 * rng.uniform(0.5, 1.0)))
    draw = rng.choice((_columns, _columns, _rows, _rows, pie, _line))
    entries = draw(canvas, look, frame, names)
    if len(entries) < 2:
        draw, entries = _rows, _rows(canvas, look, frame, names)
    questions = _asked(rng, entries, "share" if draw is pie else "value", draw is not _line)
    if title:
        questions.append(title)
    rng.shuffle(questions)
    if look.background:
        whole = Question("What color is the background?", look.background, (canvas.bounds,), "background")
        questions.insert(0, whole)
    return tuple(questions[:_MOST_QUESTIONS])


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
    room = canvas.text_size(printed, look.face, size)[0]
    if room > width:
        return frame, None
    box = canvas.text(left + (width - room) / 2, top, printed, look.face, size, look.ink)
    question = Question("What is the title?", word, (box,), "title")
    return Box(left, top + look.height * 1.3, frame.right, frame.bottom), question


def _columns(canvas: Canvas, look: Look, frame: Box, names: list[str]) -> list[Entry]:
    """Upright bars, their names below."""
    rng = canvas.rng
    left = frame.left + look.width("000") + 4
    names = _side_by_side(look, names, frame.right - left)
    top, bottom = frame.top + look.height * 1.1, frame.bottom - look.height * 1.15
    if len(names) < 2 or bottom - top < 3 * look.height:
        return []
    ticks = int((bottom - top) / (look.height * 1.05))
    printed = rng.random() < _PRINTED or ticks < len(names)
    values, step = (free_values(rng, len(names)), 0) if printed else tick_values(rng, len(names), ticks)
    scale = (bottom - top) / max(values)
    room = Box(left, top, frame.right, bottom)
    axis = upright_axis(canvas, look, room, max(values), step, lambda value: bottom - value * scale)
    slot = room.width / len(names)
    half = min(slot * 0.36, look.size * 1.6)
    entries = []
    colours = bar_colours(rng, look, len(names))
    for number, (name, value, colour) in enumerate(zip(names, values, colours, strict=True)):
        middle = left + slot * (number + 0.5)
        boxes = [
            bar(canvas, Box(middle - half, bottom - value * scale, middle + half, bottom), colour),
            centred(canvas, look, name, middle, bottom + 2),
        ]
        if printed:
            boxes.append(centred(canvas, look, str(value), middle, boxes[0].top - look.height))
        entries.append(Entry(name, value, colour, tuple(boxes), () if printed else axis))
    return entries


def _rows(canvas: Canvas, look: Look, frame: Box, names: list[str]) -> list[Entry]:
    """Lying bars, their names at the left."""
    rng = canvas.rng
    pitch = look.height * rng.uniform(1.05, 1.4)
    names = names[: max(1, int(frame.height // pitch))]
    while len(names) > 1 and look.widest(names) + look.width("000") + 2 * look.size > frame.width:
        names.remove(max(names, key=look.width))
    if look.widest(names) + look.width("000") + look.size > frame.width:
        names = ["sun"]
    left = frame.left + look.widest(names) + look.size * 0.4
    length = frame.right - left - look.width("000") - look.size * 0.4
    ticks = int(length / (look.width("000") + look.size * 0.5))
    below = frame.height - pitch * len(names)
    printed = rng.random() < _PRINTED or ticks < len(names) or len(names) < 2 or below < look.height * 1.2
    values, step = (free_values(rng, len(names)), 0) if printed else tick_values(rng, len(names), ticks)
    scale = length / max(values)
    top = frame.top + rng.uniform(0, max(0.0, below if printed else below - look.height * 1.2))
    axis: tuple[Box, ...] = ()
    if not printed:
        room = Box(left, top, frame.right - look.width("0"), top + pitch * len(names))
        axis = lying_axis(canvas, look, room, max(values), step, lambda value: left + value * scale)
    entries = []
    colours = bar_colours(rng, look, len(names))
    for number, (name, value, colour) in enumerate(zip(names, values, colours, strict=True)):
        y = top + number * pitch
        lying = Box(left, y + look.height * 0.1, left + max(3.0, value * scale), y + look.height * 0.9)
        boxes = [
            canvas.text(left - look.size * 0.4 - look.width(name), y, name, look.face, look.size, look.ink),
            bar(canvas, lying, colour),
        ]
        if printed:
            boxes.append(
                canvas.text(lying.right + look.size * 0.3, y, str(value), look.face, look.size, look.ink),
            )
        entries.append(Entry(name, value, colour, tuple(boxes), () if printed else axis))
    return entries


def _line(canvas: Canvas, look: Look, frame: Box, names: list[str]) -> list[Entry]:
    """Points joined by a line, each with its value above and its name below the axis."""
    rng = canvas.rng
    names = _side_by_side(look, names, frame.width)
    top, bottom = frame.top + look.height * 1.3, frame.bottom - look.height * 1.3
    if len(names) < 2 or bottom - top < 3 * look.height:
        return []
    values = free_values(rng, len(names))
    scale = (bottom - top) / max(values)
    slot = frame.width / len(names)
    points = [(frame.left + slot * (number + 0.5), bottom - value * scale) for number, value in enumerate(values)]
    colour = rng.choice(look.colours)
    paint = shade(colour, rng)
    canvas.draw.line((frame.left, bottom, frame.right, bottom), look.line, look.thin)
    canvas.draw.line(points, mixed(paint, look.ground, 0.45), max(2, look.size // 8), joint="curve")
    entries = []
    for name, value, (x, y) in zip(names, values, points, strict=True):
        dot = canvas.shape("circle", x, y, look.size * 0.22, paint, colour_name=colour)
        boxes = (centred(canvas, look, name, x, bottom + 2), dot, _on_patch(canvas, look, str(value), x, y))
        entries.append(Entry(name, value, colour, boxes))
    return entries


def _side_by_side(look: Look, names: list[str], room: float) -> list[str]:
    """As many of the names as can stand beside each other."""
    while names and look.widest(names) + look.size * 0.5 > room / len(names):
        names = names[:-1]
    return names


def _on_patch(canvas: Canvas, look: Look, text: str, x: float, y: float) -> Box:
    """A value above its point, on a patch of ground so that the line does not cross it."""
    width, top = look.width(text), y - look.height * 1.25
    canvas.fill(Box(x - width / 2 - 1, top + 2, x + width / 2 + 1, top + look.height - 1), look.ground)
    return centred(canvas, look, text, x, top)


def _asked(rng: Random, entries: list[Entry], word: str, coloured: bool) -> list[Question]:
    percent = "%" if word == "share" else ""
    everything = tuple(box for entry in entries for box in entry.boxes)
    own_colours = coloured and len({entry.colour for entry in entries}) == len(entries)
    questions = []
    for entry in entries:
        asked = rng.random()
        value, seen = f"{entry.value}{percent}", (*entry.boxes, *entry.axis)
        if asked < 0.7:
            questions.append(Question(f"What is the {word} of {entry.name}?", value, seen, "value"))
        elif asked < 0.85 or not own_colours or entry.name in NAMES:
            questions.append(Question(f"Which category has the {word} {value}?", entry.name, seen, "at_value"))
        else:
            questions.append(Question(f"What color is {entry.name}?", entry.colour, entry.boxes, "category_color"))
    if len(entries) > 1:
        by_value = sorted(entries, key=lambda entry: entry.value)
        for which, entry in (("highest", by_value[-1]), ("lowest", by_value[0])):
            questions.append(Question(f"Which category is {which}?", entry.name, everything, which))
    return questions
