"""Which cells of an image a token of a question or its answer is about: what attention is taught to look at.

Answering "What is the value of east?" takes two looks: for the word that is asked about, then for what belongs to it.
From a million right answers alone, the demo model had learned neither (bench/README.md has the figures). The cells come
from the marks inside a question's evidence boxes: those of the glyphs that spell a word, and of the shapes, icons and
colours that a word names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from bench.demo_model.bars import EXTREMES, Point, tip_of_extreme, tip_to_axis
from bench.demo_model.neighbours import Link
from erase.synthetic.sample import Box, Mark, Question, Sample

_REACH = 2.0
_IGNORED = ":;"
_BESIDE = 0.35
_ALL = "How many objects"
_PLACED = ("place", "corner", "panel")
_PLACES = re.compile(r"\b(top|bottom|left|right|middle)\b")
Span = tuple[int, int]
"""Characters of a text, from and to (excluded)."""


@dataclass(frozen=True)
class Grounded:
    """Characters `span` of a text are drawn with their centre at `point`, as a part of the evidence box `box`."""

    span: Span
    point: Point
    box: int


@dataclass(frozen=True)
class Grounds:
    """What the characters of a question, and of its answer, are about; `between` is a bar's tip that leads from the
    name of its category to a number of the axis, or back. `counted`: the answer is how many points are asked about."""

    asked: tuple[Grounded, ...]
    answered: tuple[Grounded, ...]
    between: Point | None = None
    counted: bool = False

    def links(self) -> Iterator[Link]:
        """Pairs of points of what is asked about and of the answer, or of these and what is between them; true where
        both stand beside each other."""
        for box in sorted({one.box for one in self.asked}):
            asked = [one.point for one in self.asked if one.box == box]
            answered = [one.point for one in self.answered if one.box != box]
            if answered:
                stops = [asked, [self.between], answered] if self.between else [asked, answered]
                for before, after in pairwise(stops):
                    across, down = (abs(a - b) for a, b in zip(_middle(before), _middle(after), strict=True))
                    yield from ((first, second, down <= across * _BESIDE) for first in before for second in after)


def grounded(sample: Sample, question: Question) -> Grounds:
    """What the characters of a question and its answer are about, as far as its evidence shows it."""
    inside = [[mark for mark in sample.marks if _holds(box, mark)] for box in question.evidence]
    written = {box: glyphs for box, marks in enumerate(inside) if (glyphs := _written(marks))}
    compact = _compact(question.answer)
    exact = {box: glyphs for box, glyphs in written.items() if _text(glyphs) == compact}
    asked = [one for box, glyphs in written.items() for one in _asked(question.text, glyphs, box)]
    answered = [one for box, glyphs in (exact or written).items() for one in _answered(question.answer, glyphs, box)]
    for box, marks in enumerate(inside):
        for mark in marks:
            if mark.kind != "glyph":
                asked += _named(question.text, mark, box)
                answered += _named(question.answer, mark, box)
    between = None
    if question.kind in _PLACED:
        asked += _placed(question.text, answered)
    elif question.kind == "count":
        asked += _everything(question)
    if question.kind in EXTREMES and len(exact) == 1:
        asked += _extreme(question, _drawn(question, inside), *exact.items())
    elif asked and answered and question.kind in ("value", "at_value"):
        name = asked if question.kind == "value" else answered
        between = tip_to_axis(_drawn(question, inside), question, _middle([one.point for one in name]))
    return Grounds(tuple(asked), tuple(answered), between, counted=question.kind == "count")


def _drawn(question: Question, inside: Sequence[Sequence[Mark]]) -> dict[int, Box]:
    """The evidence boxes of bars, shapes and colours, by their place in it: those that are no text."""
    return {
        number: box
        for number, (box, marks) in enumerate(zip(question.evidence, inside, strict=True))
        if any(mark.kind != "glyph" and mark.box == box for mark in marks)
    }


def _extreme(question: Question, bars: Mapping[int, Box], name: tuple[int, list[Mark]]) -> Iterator[Grounded]:
    """The words "highest" and "lowest" are about the tip of that bar."""
    box, glyphs = name
    start = question.text.find(question.kind)
    found = tip_of_extreme(bars, len(question.evidence), box, _middle([mark.box.centre for mark in glyphs]))
    if found and start >= 0:
        bar, point = found
        yield Grounded((start, start + len(question.kind)), point, bar)


def _placed(text: str, answered: Sequence[Grounded]) -> Iterator[Grounded]:
    """The words "top", "left" and so on are about what stands there: the answer."""
    for word in _PLACES.finditer(text):
        yield from (replace(one, span=word.span()) for one in answered)


def _everything(question: Question) -> Iterator[Grounded]:
    """Where no shape or colour is named, "objects" are all things."""
    if question.text.startswith(_ALL):
        span = len(_ALL) - len(_ALL.split()[-1]), len(_ALL)
        yield from (Grounded(span, box.centre, number) for number, box in enumerate(question.evidence))


def _middle(points: Sequence[Point]) -> Point:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)


def of_token(found: Sequence[Grounded], token: Span) -> list[Point]:
    """The points of all characters of a token."""
    return [one.point for one in found if one.span[0] < token[1] and token[0] < one.span[1]]


def _holds(box: Box, mark: Mark) -> bool:
    x, y = mark.box.centre
    return box.left - _REACH <= x <= box.right + _REACH and box.top - _REACH <= y <= box.bottom + _REACH


def _written(marks: Sequence[Mark]) -> list[Mark]:
    """The glyphs in the order in which they were drawn, without the colon of a label."""
    glyphs = [mark for mark in marks if mark.kind == "glyph"]
    while glyphs and glyphs[-1].value in _IGNORED:
        glyphs.pop()
    return glyphs


def _text(glyphs: Sequence[Mark]) -> str:
    return "".join(mark.value for mark in glyphs).lower()


def _compact(text: str) -> str:
    return "".join(text.split()).lower()


def _asked(text: str, glyphs: Sequence[Mark], box: int) -> Iterator[Grounded]:
    """Every character of a question's text where it names the whole of what the glyphs spell."""
    places, compact, drawn = _places(text), _compact(text), _text(glyphs)
    first = compact.find(drawn)
    while first >= 0:
        named = places[first : first + len(glyphs)]
        if not text[: named[0]][-1:].isalnum() and not text[named[-1] + 1 :][:1].isalnum():
            for place, glyph in zip(named, glyphs, strict=True):
                yield Grounded((place, place + 1), glyph.box.centre, box)
        first = compact.find(drawn, first + 1)


def _answered(answer: str, glyphs: Sequence[Mark], box: int) -> Iterator[Grounded]:
    """Every character of an answer that the glyphs spell, alone or beside others."""
    first = _text(glyphs).find(_compact(answer))
    if first >= 0:
        for number, place in enumerate(_places(answer)):
            yield Grounded((place, place + 1), glyphs[first + number].box.centre, box)


def _places(text: str) -> list[int]:
    return [place for place, character in enumerate(text) if not character.isspace()]


def _named(text: str, mark: Mark, box: int) -> Iterator[Grounded]:
    start = text.lower().find(mark.value.lower())
    if start >= 0:
        yield Grounded((start, start + len(mark.value)), mark.box.centre, box)
