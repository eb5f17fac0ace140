"""Where the text of a document stands: pairs of label and value, tables, and the lines between them."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Literal

from erase.synthetic import fonts
from erase.synthetic.canvas import Canvas
from erase.synthetic.families.entries import Entry
from erase.synthetic.sample import Box

Style = Literal["right", "aligned", "next", "below"]
Case = Literal["lower", "title", "upper"]
BOLD_OF = {"sans": "sans-bold", "mono": "mono-bold", "serif": "serif-bold", "open": "open-bold", "slab": "slab-bold"}
_STYLES: tuple[Style, ...] = ("right", "aligned", "next", "below")
_SMALLEST = 14  # pixels


@dataclass(frozen=True)
class Look:
    """How the text of one document looks, and the room there is for it."""

    face: str
    label_face: str
    size: int
    case: Case
    value_case: Case
    spacing: float  # of rows, in line heights
    room_width: float
    room_height: float

    @property
    def line(self) -> float:
        return max(Canvas.text_size("x", face, self.size)[1] for face in (self.face, self.label_face))

    @property
    def pitch(self) -> float:
        return self.line * self.spacing

    def label(self, text: str) -> str:
        return _cased(text, self.case)

    def value(self, text: str) -> str:
        return _cased(text, self.value_case)

    def label_width(self, text: str) -> float:
        return Canvas.text_size(self.label(text), self.label_face, self.size)[0]

    def value_width(self, text: str) -> float:
        return Canvas.text_size(self.value(text), self.face, self.size)[0]

    def fits(self, label: str, value: str) -> bool:
        """Whether a label and a value fit beside each other."""
        return self.label_width(label) + self.value_width(value) + self.size <= self.room_width

    def fits_below(self, label: str, value: str) -> bool:
        """Whether a label with a colon and a value fit one below the other."""
        return max(self.label_width(label + ":"), self.value_width(value)) <= self.room_width

    def rows(self, height: float) -> int:
        """How many rows fit into a height."""
        return int((height - self.line) / self.pitch) + 1 if height >= self.line else 0


@dataclass(frozen=True)
class Piece:
    """Text at a place in the layout; row and column are the key of its box."""

    row: int
    column: int
    text: str
    x: float
    y: float
    face: str


@dataclass
class Layout:
    """Pieces of text and lines (left, top, right, bottom), relative to the upper left corner of the whole."""

    width: float = 0.0
    height: float = 0.0
    pieces: list[Piece] = field(default_factory=list)
    lines: list[Box] = field(default_factory=list)
    bands: list[Box] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    cells: list[list[str]] = field(default_factory=list)


def look_for(canvas: Canvas, area: Box) -> Look:
    """A random look for the room that `area` has within its margins."""
    rng = canvas.rng
    face = fonts.pick(rng, fonts.UPRIGHT)
    size = max(_SMALLEST, round(canvas.unit * rng.uniform(0.76, 1.0)))
    margin = max(5.0, 0.3 * canvas.unit)
    cases: tuple[Case, ...] = ("lower", "title", "title", "upper")
    return Look(
        face=face,
        label_face=BOLD_OF.get(face, face) if rng.random() < 0.3 else face,
        size=size,
        case=rng.choice(cases),
        value_case=rng.choice(cases),
        spacing=rng.uniform(1.05, 1.7),
        room_width=area.width - 2 * margin,
        room_height=area.height - 2 * margin,
    )


def lay_pairs(
    look: Look, entries: list[Entry], rng: Random, *, style: Style | None = None, rule: int | None = None
) -> Layout:
    """As many entries as fit, one below the other, in more than one column where that is needed or by chance.

    `rule` is the row above which a line separates sums from items; such rows stay in one column.
    """
    beside = [entry for entry in entries if look.fits(entry.label + ":", entry.value)]
    chosen = rng.choice(_STYLES) if style is None else style
    if len(beside) < min(len(entries), 2) or (look.rows(look.room_height) < 2 and not beside):
        chosen = "below"
    below = [entry for entry in entries if look.fits_below(entry.label, entry.value)]
    entries = below if chosen == "below" else beside
    colon = "" if style else rng.choice(("", ":", ":"))
    return _columns_of_pairs(look, entries, rng, chosen, colon, rule)


def _widths(look: Look, entry: Entry) -> tuple[float, float]:
    return look.label_width(entry.label + ":"), look.value_width(entry.value)


def _columns_of_pairs(
    look: Look, entries: list[Entry], rng: Random, style: Style, colon: str, rule: int | None
) -> Layout:
    layout = Layout()
    gap = rng.uniform(0.6, 1.4) * look.size
    pitch = look.pitch + (look.line if style == "below" else 0)
    per_column = max(1, int((look.room_height - (pitch - look.pitch + look.line)) / pitch) + 1)
    if rule is None and len(entries) > 2 and rng.random() < 0.3:
        per_column = min(per_column, -(-len(entries) // 2))
    left = 0.0
    stretch = rng.uniform(0, 0.5) * look.room_width if len(entries) <= per_column and style == "right" else 0.0
    while entries:
        shown, entries = entries[:per_column], entries[per_column:]
        labels = max(_widths(look, entry)[0] for entry in shown)
        values = max(_widths(look, entry)[1] for entry in shown)
        if style == "aligned" and labels + gap + values > look.room_width:
            style = "next"
        width = max(labels, values) if style == "below" else labels + gap + values
        width = min(look.room_width, width + stretch)
        if left + width > look.room_width + 0.5 and layout.pieces:
            break
        for number, entry in enumerate(shown):
            row = len(layout.entries)
            top = number * pitch + (look.pitch * 0.3 if rule is not None and number >= rule else 0)
            label_width, value_width = _widths(look, entry)
            x, y = {
                "right": (left + width - value_width, top),
                "aligned": (left + width - values, top),
                "next": (left + min(label_width + 0.4 * look.size, width - value_width), top),
                "below": (left, top + look.line),
            }[style]
            layout.pieces.append(Piece(row, 0, look.label(entry.label) + colon, left, top, look.label_face))
            layout.pieces.append(Piece(row, 1, look.value(entry.value), x, y, look.face))
            layout.entries.append(entry)
            layout.height = max(layout.height, y + look.line)
            if number == rule:
                layout.lines.append(Box(left, top - look.pitch * 0.15, left + width, top - look.pitch * 0.15))
        layout.width = left + width
        left += width + 2 * gap
    if rule is None and style != "below" and rng.random() < 0.2:
        for piece in layout.pieces[::2]:
            y = piece.y + look.line
            layout.lines.append(Box(piece.x, y, min(layout.width, piece.x + width), y))
    return layout


def lay_table(look: Look, cells: list[list[str]], rng: Random) -> Layout | None:
    """As many rows and columns as fit; None if there is no room for two of each."""
    pad = rng.uniform(0.35, 0.8) * look.size
    cells = cells[: look.rows(look.room_height)]
    if len(cells) < 2:
        return None
    widths = [
        max(_cell_width(look, row[column], number) for number, row in enumerate(cells))
        for column in range(len(cells[0]))
    ]
    count = max(
        number for number in range(len(widths) + 1) if sum(widths[:number]) + 2 * pad * number <= look.room_width
    )
    if count < 2:
        return None
    cells = [row[:count] for row in cells]
    stretch = rng.uniform(0, 0.6) * (look.room_width - sum(widths[:count]) - 2 * pad * count) / count
    layout = Layout(cells=cells, height=(len(cells) - 1) * look.pitch + look.line)
    align = rng.choice((0.0, 0.5, 1.0))
    edges = [0.0]
    for column in range(count):
        left, room = edges[-1] + pad, widths[column] + stretch
        for number, row in enumerate(cells):
            shift = (room - _cell_width(look, row[column], number)) * (align if column else 0.0)
            text, face = _cell_text(look, row[column], number)
            layout.pieces.append(Piece(number, column, text, left + shift, number * look.pitch, face))
        edges.append(left + room + pad)
    layout.width = edges[-1]
    _rule_table(look, layout, edges, rng)
    return layout


def _cell_text(look: Look, text: str, row: int) -> tuple[str, str]:
    return (look.label(text), look.label_face) if row == 0 else (look.value(text), look.face)


def _cell_width(look: Look, text: str, row: int) -> float:
    return look.label_width(text) if row == 0 else look.value_width(text)


def _rule_table(look: Look, layout: Layout, edges: list[float], rng: Random) -> None:
    """Grid lines, a line below the head, or bands behind every other row."""
    between = (look.pitch - look.line) / 2
    tops = [number * look.pitch - between for number in range(len(layout.cells) + 1)]
    kind = rng.choice(("none", "head", "rows", "grid", "bands"))
    if kind == "bands":
        layout.bands += [Box(0, tops[row], layout.width, tops[row + 1]) for row in range(0, len(layout.cells), 2)]
    shown = {"head": tops[1:2], "rows": tops[1:-1], "grid": tops}.get(kind, [])
    layout.lines += [Box(0, top, layout.width, top) for top in shown]
    if kind == "grid":
        layout.lines += [Box(x, tops[0], x, tops[-1]) for x in edges]


def _cased(text: str, case: Case) -> str:
    if case == "upper":
        return text.upper()
    return text[:1].upper() + text[1:] if case == "title" else text
