"""What stands beside and above what in an image, whoever asks: names and heads of a table's cells, rows of shapes.

A question about "left of" or about a cell of a table can be answered where every shape knows its neighbours and every
cell its row and its column. The few that are asked about teach that slowly, so all of them do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.demo_model.bars import Point
from erase.synthetic.sample import Box, Mark, Sample

Link = tuple[Point, Point, bool]
"""Two points that belong together; true where they stand beside each other, false for one above the other."""
_MOST_CELLS = 16
"""Cells of a table that are linked: all of a large one would outweigh the other images of a batch."""
_BACK = 0.3
_LINE = 0.6


def neighbours(sample: Sample) -> Iterator[Link]:
    """The links of a sample that its family is known for; none where there are neither tables nor shapes in rows."""
    if any(question.kind == "position" for question in sample.questions):
        shapes = [mark.box for mark in sample.marks if mark.kind == "shape"]
        yield from (link for box in shapes for link in _beside_and_above(box, shapes))
    elif any(len(question.evidence) == 3 and question.kind in ("cell", "which") for question in sample.questions):
        yield from _of_table([mark for mark in sample.marks if mark.kind == "glyph"])


def _beside_and_above(box: Box, others: Sequence[Box]) -> Iterator[Link]:
    """To the nearest of the others in the same row on the left, and in the same column above."""
    x, y = box.centre
    left = [other for other in others if other.centre[0] < box.left and other.top < y < other.bottom]
    above = [other for other in others if other.centre[1] < box.top and other.left < x < other.right]
    if left:
        yield max(other.centre for other in left), box.centre, True
    if above:
        yield max(above, key=lambda other: other.centre[1]).centre, box.centre, False


def _of_table(glyphs: Sequence[Mark]) -> Iterator[Link]:
    columns = table_columns(glyphs)
    names = columns[0] if columns else []
    cells = [(names[row], column[0], cell) for column in columns[1:] for row, cell in enumerate(column) if row]
    for name, head, cell in cells[:: -(-len(cells) // _MOST_CELLS) or 1]:
        for glyph in cell:
            yield from ((other.box.centre, glyph.box.centre, True) for other in name)
            yield from ((other.box.centre, glyph.box.centre, False) for other in head)


def table_columns(glyphs: Sequence[Mark]) -> list[list[list[Mark]]]:
    """The glyphs of a table by column and by row, its heads in row 0 and the names of its rows in column 0.

    Tables are drawn column by column, and a title after them. Empty where the glyphs do not fall into such columns.
    """
    line = max((glyph.box.height for glyph in glyphs), default=0.0)
    texts: list[list[Mark]] = []
    for number, glyph in enumerate(glyphs):
        if not number or _begins(glyphs[number - 1].box, glyph.box, line):
            texts.append([])
        texts[-1].append(glyph)
    rows = next((row for row in range(1, len(texts)) if _top(texts[row]) <= _top(texts[0]) + line * _LINE), 0)
    if rows < 2 or len(texts) % rows > 1:
        return []
    return [texts[first : first + rows] for first in range(0, len(texts) - len(texts) % rows, rows)]


def _begins(before: Box, box: Box, line: float) -> bool:
    """Whether a new text begins with `box`: it stands left of where the last glyph ended, or in another line."""
    return box.left < before.right - _BACK * line or abs(box.centre[1] - before.centre[1]) > _LINE * line


def _top(text: Sequence[Mark]) -> float:
    return min(glyph.box.top for glyph in text)
