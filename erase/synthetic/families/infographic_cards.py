"""The panels of an infographic: an icon, a figure and a caption."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from erase.synthetic.canvas import Canvas
from erase.synthetic.colours import NAMED, NAMES, Rgb, ink, luminance, paper, shade
from erase.synthetic.fonts import height_of
from erase.synthetic.icons import draw_icon
from erase.synthetic.sample import Box

_SMALLEST = 14  # pixels of text
_CELL = 28.0  # pixels of a vision token's side


@dataclass(frozen=True)
class Look:
    """Type and manner of an infographic."""

    face: str
    bold: str
    size: int
    faint: bool

    def width(self, text: str) -> float:
        return Canvas.text_size(text, self.face, self.size)[0]

    @property
    def height(self) -> float:
        return float(height_of(self.face, self.size))


@dataclass(frozen=True)
class Card:
    """What a panel says and where; without a `caption_box` the caption had no room."""

    icon: str
    figure: str
    caption: str
    colour: str | None
    box: Box
    icon_box: Box
    figure_box: Box
    caption_box: Box | None


def draw_card(canvas: Canvas, look: Look, box: Box, content: tuple[str, str, str, str | None], stacked: bool) -> Card:
    """Draws a panel with `content` (icon, figure, caption, name of the colour).

    The icon stands before the figure, or above it if `stacked` and the panel is high enough; the caption below both.
    """
    rng = canvas.rng
    icon, figure, caption, colour = content
    ground = _paint_panel(canvas, box, colour)
    paint = ink(ground, rng, 0.33 if look.faint else 0.95)
    radius = min(look.size * rng.uniform(0.7, 1.1), box.height * 0.3)
    stacked = stacked and 2 * radius + 2.2 * look.height < box.height - 6
    size, radius = _fitted(look, figure, round(look.size * rng.uniform(1.0, 1.5)), box, radius, stacked)
    width, height = canvas.text_size(figure, look.bold, size)
    caption_width = look.width(caption)
    above = 2 * radius + 2 if stacked else 0.0
    captioned = caption_width < box.width - 4 and above + height + look.height < box.height - 2
    top = box.top + max(0.0, (box.height - above - height - (look.height if captioned else 0)) / 2)
    middle = (box.left + box.right) / 2
    x = middle if stacked else box.left + 4 + radius
    y = top + radius if stacked else top + height / 2
    icon_box = draw_icon(canvas, icon, x, y, radius, _icon_colour(rng, ground, paint, look.faint))
    figure_left = middle - width / 2 if stacked else x + radius + 4
    figure_box = canvas.text(figure_left, top + above, figure, look.bold, size, paint)
    caption_box = None
    if captioned:
        share = 0.5 if stacked else rng.choice((0.0, 0.5))
        left = box.left + 3 + (box.width - 6 - caption_width) * share
        caption_box = canvas.text(left, top + above + height, caption, look.face, look.size, paint)
    return Card(icon, figure, caption, colour, box, icon_box, figure_box, caption_box)


def _paint_panel(canvas: Canvas, box: Box, colour: str | None) -> Rgb:
    """Fills the panel and marks its colour along its edge, where no text stands."""
    ground = shade(colour, canvas.rng, 10) if colour else paper(canvas.rng)
    canvas.fill(box, ground)
    if colour:
        wide, high = min(_CELL, box.width / 2), min(_CELL, box.height / 2)
        for left in (box.left, box.right - wide):
            for top in (box.top, box.bottom - high):
                canvas.mark("colour", colour, Box(left, top, left + wide, top + high))
    return ground


def _fitted(look: Look, figure: str, size: int, box: Box, radius: float, stacked: bool) -> tuple[int, float]:
    """Size of the figure and radius of the icon, so that both fit into the panel."""
    beside = 0.0 if stacked else 2 * radius
    room = box.width - 10 - beside
    width = Canvas.text_size(figure, look.bold, size)[0]
    if width > room:
        size = max(_SMALLEST, int(size * room / width))
    lacking = Canvas.text_size(figure, look.bold, size)[0] - room
    return size, radius if stacked or lacking <= 0 else max(radius * 0.6, radius - lacking / 2)


def _icon_colour(rng: Random, ground: Rgb, paint: Rgb, faint: bool) -> Rgb:
    usable = [name for name in NAMES if abs(luminance(NAMED[name]) - luminance(ground)) > 90]
    return paint if faint or not usable or rng.random() < 0.5 else shade(rng.choice(usable), rng)
