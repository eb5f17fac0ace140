"""Draws a laid-out document, below a title if there is room for one."""

from __future__ import annotations

from dataclasses import dataclass

from erase.synthetic.canvas import Canvas
from erase.synthetic.colours import Rgb, ink, mixed
from erase.synthetic.families.document_layout import BOLD_OF, Layout, Look
from erase.synthetic.families.page import Page, Pen, pen_for
from erase.synthetic.sample import Box
from erase.synthetic.words import SIGNS


@dataclass(frozen=True)
class Written:
    """The boxes of the pieces by row and column, and the title with its box."""

    boxes: dict[tuple[int, int], Box]
    title: tuple[str, Box] | None


def write(canvas: Canvas, page: Page, look: Look, layout: Layout, hard: str | None) -> Written:
    """Draws a layout somewhere in the page's area, below a title if there is room for one."""
    rng = canvas.rng
    title = _title(canvas, look, layout)
    head = title[3] if title else 0.0
    width = max(layout.width, title[4] if title else 0.0)
    spare_x = page.area.width - width
    spare_y = page.area.height - layout.height - head
    edge_x, edge_y = (page.area.width - look.room_width) / 2, (page.area.height - look.room_height) / 2
    left = page.area.left + edge_x + (spare_x - 2 * edge_x) * rng.random()
    top = page.area.top + edge_y + (spare_y - 2 * edge_y) * rng.random()
    block = Box(left, top, left + width, top + head + layout.height)
    pen = pen_for(canvas, block, hard)
    _rule(canvas, layout, left, top + head, pen)
    value_ink = ink(pen.ground, rng) if hard is None and not pen.halo and rng.random() < 0.3 else pen.ink
    boxes = {
        (it.row, it.column): pen.write(
            canvas, left + it.x, top + head + it.y, it.text, it.face, look.size, ink=value_ink if it.column else pen.ink
        )
        for it in layout.pieces
    }
    if not title:
        return Written(boxes, None)
    text, face, size, _, _ = title
    return Written(boxes, (text, pen.write(canvas, left, top, look.label(text), face, size)))


def _title(canvas: Canvas, look: Look, layout: Layout) -> tuple[str, str, int, float, float] | None:
    """Word, face, size, height with the gap below, and width of a title, if there is room and chance for one."""
    rng = canvas.rng
    word, size = rng.choice(SIGNS), round(look.size * rng.uniform(1.15, 1.6))
    face = BOLD_OF.get(look.face, look.face)
    width, height = Canvas.text_size(look.label(word), face, size)
    height += 0.4 * look.size
    if rng.random() < 0.6 or width > look.room_width or layout.height + height > look.room_height:
        return None
    return word, face, size, height, width


def _rule(canvas: Canvas, layout: Layout, left: float, top: float, pen: Pen) -> None:
    """Bands and lines, fainter than the text."""
    tone: Rgb = mixed(pen.ground, pen.ink, 0.5)
    if not pen.halo:
        for band in layout.bands:
            box = Box(left + band.left, top + band.top, left + band.right, top + band.bottom)
            canvas.fill(box, mixed(pen.ground, pen.ink, 0.08))
    width = max(1, canvas.unit // 16)
    for line in layout.lines:
        canvas.draw.line((left + line.left, top + line.top, left + line.right, top + line.bottom), tone, width)
