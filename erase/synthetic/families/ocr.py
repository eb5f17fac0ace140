"""Mirrors optical character recognition (OCRBench): words, codes and numbers in many sorts of lettering."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Literal

import numpy as np
from PIL import Image

from erase.synthetic import fonts
from erase.synthetic.canvas import Canvas
from erase.synthetic.colours import NAMED, luminance, shade
from erase.synthetic.families.entries import code
from erase.synthetic.families.page import Page, Pen, blank_page, pen_for
from erase.synthetic.families.things import standing_out
from erase.synthetic.sample import Box, Question
from erase.synthetic.words import CATEGORIES, CITIES, FACTS, GOODS, LABELS, NAMES, SIGNS

Sort = Literal["word", "letters", "code", "number"]

_SORTS: tuple[Sort, ...] = ("word",) * 5 + ("letters",) * 3 + ("code",) * 3 + ("number",) * 3
_WORDS = tuple(
    word
    for word in (*LABELS, *GOODS, *CATEGORIES, *SIGNS, *NAMES, *CITIES, *FACTS)
    if word != "code" and word not in NAMED  # their questions would read two ways
)
_CAPITALS = "ABCDEFGHJKLMNPRSTUVWXYZ"
_MOST = 24
_MOST_QUESTIONS = 6
_TRIES = 12  # places tried for one text before it is made smaller or left out
_SMALLEST = 14  # pixels
_DISTANCE = 110.0  # in RGB, between a named ink and its ground
_BRIGHTER = 38.0  # difference in brightness between them


@dataclass(frozen=True)
class Text:
    """One word, code or number; `answer` is how it is answered."""

    sort: Sort
    shown: str
    answer: str

    @property
    def noun(self) -> str:
        return "word" if self.sort == "letters" else self.sort


@dataclass(frozen=True)
class Spot:
    """Lettering of a text and the room it takes up."""

    face: str
    size: int
    angle: float
    room: Box


@dataclass(frozen=True)
class Drawn:
    """A text on the canvas."""

    text: Text
    box: Box
    colour: str | None


def compose(canvas: Canvas, crowd: float, hard: str | None) -> tuple[Question, ...]:
    """Scatters texts over a page and returns the questions about them."""
    rng = canvas.rng
    page = blank_page(canvas, hard)
    drawn: list[Drawn] = []
    used: list[Box] = []
    coloured = hard != "faint" and rng.random() < 0.65
    while not drawn:
        for text in _texts(rng, crowd, alone=not coloured or rng.random() < 0.4):
            if drawn and not coloured and text.noun == drawn[0].text.noun:
                continue  # so that there is always something to ask for
            spot = _spot(canvas, page, text, used, crowd)
            if spot is None:
                continue
            inks = _inks(canvas, spot.room, drawn) if coloured else ()
            if coloured and not inks and drawn:
                continue
            coloured = bool(inks)
            used.append(spot.room.grown(0.15 * max(canvas.unit, spot.size)))
            drawn.append(_draw(canvas, text, spot, hard, rng.choice(inks) if inks else None))
    questions = list(_about(page, drawn))
    rng.shuffle(questions)
    return tuple(questions[:_MOST_QUESTIONS])


def _texts(rng: Random, crowd: float, *, alone: bool) -> list[Text]:
    """Different texts, often a single one; with `alone` the first is the only one of its noun."""
    wanted = 1 if rng.random() < 0.55 - 0.45 * crowd else 2 + round((_MOST - 2) * crowd * rng.uniform(0.2, 1.0))
    first = _random_text(rng)
    made = {first.answer.lower(): first}
    while len(made) < wanted:
        text = _random_text(rng)
        if not alone or text.noun != first.noun:
            made.setdefault(text.answer.lower(), text)
    return list(made.values())


def _random_text(rng: Random) -> Text:
    sort = rng.choice(_SORTS)
    if sort == "word":
        word = rng.choice(_WORDS)
        return Text(sort, rng.choice((word, word.upper(), word.capitalize())), word)
    if sort == "letters":
        letters = "".join(rng.choice(_CAPITALS) for _ in range(rng.randint(3, 5)))
        return Text(sort, letters, letters)
    digits = rng.randint(2, 5)
    shown = str(rng.randrange(10 ** (digits - 1), 10**digits)) if sort == "number" else code(rng)
    return Text(sort, shown, shown)


def _spot(canvas: Canvas, page: Page, text: Text, used: list[Box], crowd: float) -> Spot | None:
    """Lettering and a free place for a text; None if none is found."""
    rng = canvas.rng
    face = fonts.pick(rng)
    angle = _angle(rng, crowd)
    size = canvas.unit * (rng.uniform(1.0, 2.8) if rng.random() < 0.5 else rng.uniform(0.8, 1.3))
    smallest = max(_SMALLEST, math.ceil(0.75 * canvas.unit))
    for _ in range(_TRIES):
        fitted = max(smallest, round(size))
        width, height = _turned_size(*Canvas.text_size(text.shown, face, fitted), angle)
        margin = 4 + 0.12 * fitted  # some letters reach a little out of their line's box
        spare_x, spare_y = page.area.width - width - 2 * margin, page.area.height - height - 2 * margin
        if spare_x >= 0 and spare_y >= 0:
            left = page.area.left + margin + spare_x * rng.random()
            top = page.area.top + margin + spare_y * rng.random()
            room = Box(left, top, left + width, top + height)
            if not any(room.grown(0.12 * fitted).overlaps(box) for box in used):
                return Spot(face, fitted, angle, room)
        else:
            angle = 0.0
        size *= 0.88
    return None


def _angle(rng: Random, crowd: float) -> float:
    """No turn on the simplest images; else mostly a slight one, seldom a strong one."""
    if crowd < 0.05 or rng.random() > 0.2 + 0.5 * crowd:
        return 0.0
    return rng.uniform(-15, 15) if rng.random() < 0.85 else rng.choice((-1, 1)) * rng.uniform(15, 50)


def _turned_size(width: float, height: float, angle: float) -> tuple[float, float]:
    cos, sin = math.cos(math.radians(angle)), abs(math.sin(math.radians(angle)))
    return width * cos + height * sin, width * sin + height * cos


def _draw(canvas: Canvas, text: Text, spot: Spot, hard: str | None, colour: str | None) -> Drawn:
    """Draws in a named colour or, without one, in ink that suits the ground, now and then a faint one."""
    rng = canvas.rng
    faint = hard is None and rng.random() < 0.12
    pen = pen_for(canvas, spot.room, "faint" if faint else hard)
    if colour:
        pen = Pen(shade(colour, rng, 10), pen.ground)
    width, height = Canvas.text_size(text.shown, spot.face, spot.size)
    x, y = spot.room.centre
    corner = (x - width / 2, y - height / 2)
    box = pen.write(canvas, *corner, text.shown, spot.face, spot.size, angle=spot.angle, colour_name=colour)
    return Drawn(text, box, colour)


def _inks(canvas: Canvas, room: Box, drawn: list[Drawn]) -> tuple[str, ...]:
    """The colours that stand out from all the ground below and are not the first text's; none if they are few."""
    patch = canvas.image.crop((int(room.left), int(room.top), int(room.right) + 1, int(room.bottom) + 1))
    pixels = np.asarray(patch.resize((6, 4), Image.Resampling.BOX)).reshape(-1, 3).tolist()
    grounds = [(red, green, blue) for red, green, blue in pixels]
    lights = [luminance(ground) for ground in grounds]
    clear = tuple(
        name
        for name in standing_out(grounds, _DISTANCE)
        if name != "gray"
        and all(abs(luminance(NAMED[name]) - light) > _BRIGHTER for light in lights)
        and (not drawn or name != drawn[0].colour)
    )
    return clear if len(clear) >= 3 else ()


def _about(page: Page, drawn: list[Drawn]) -> Iterator[Question]:
    for panel in page.panels:
        yield Question(f"What color is the {panel.place}?", panel.colour, (panel.box,), "color")
    if len(drawn) == 1:
        yield Question("What is written in the image?", drawn[0].text.answer, (drawn[0].box,), "read")
    yield from _about_sorts(drawn)
    yield from _about_colours(drawn)
    yield from _about_places(drawn)


def _about_sorts(drawn: list[Drawn]) -> Iterator[Question]:
    for noun in ("word", "number", "code"):
        alone = [it for it in drawn if it.text.noun == noun]
        if len(alone) == 1:
            yield Question(f"What is the {noun}?", alone[0].text.answer, (alone[0].box,), noun)


def _about_colours(drawn: list[Drawn]) -> Iterator[Question]:
    if len(drawn) < 2:
        return
    for name in NAMED:
        for noun in ("word", "number", "code"):
            alone = [it for it in drawn if it.colour == name and it.text.noun == noun]
            if len(alone) == 1:
                yield Question(f"What is the {name} {noun}?", alone[0].text.answer, (alone[0].box,), "colored")


def _about_places(drawn: list[Drawn]) -> Iterator[Question]:
    """What stands clearly farther out than all else."""
    if len(drawn) < 2:
        return
    for side, axis, sign in (
        ("at the top", 1, 1),
        ("at the bottom", 1, -1),
        ("on the left", 0, 1),
        ("on the right", 0, -1),
    ):
        first, second = sorted(drawn, key=partial(_rank, axis=axis, sign=sign))[:2]
        gap = 0.8 * max(first.box.height, second.box.height)
        if axis == 0:
            gap = max(gap, 0.5 * max(first.box.width, second.box.width))
        if _rank(second, axis, sign) - _rank(first, axis, sign) > gap:
            yield Question(f"What {first.text.noun} is {side}?", first.text.answer, (first.box,), "place")


def _rank(it: Drawn, axis: int, sign: int) -> float:
    return sign * it.box.centre[axis]
