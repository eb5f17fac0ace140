"""Panels with icons, figures and captions, as in InfographicVQA."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from erase.synthetic.canvas import Canvas
from erase.synthetic.colours import NAMED, NAMES, Rgb, ink, luminance, mixed, paper, shade
from erase.synthetic.families.things import texture
from erase.synthetic.fonts import BOLD, UPRIGHT, height_of, pick
from erase.synthetic.icons import NAMES as ICONS
from erase.synthetic.icons import draw_icon
from erase.synthetic.sample import Box, Question
from erase.synthetic.words import FACTS

_MOST_QUESTIONS = 8
_HEADINGS = ("facts", "report", "survey", "health", "travel", "nature", "city", "school", "energy", "market", "sports")
_STEPS = ("wash", "mix", "bake", "plan", "test", "build", "ship", "sign", "pay", "scan", "read", "send", "cut", "wait")


@dataclass(frozen=True)
class Look:
    """Type and manner of an infographic."""

    face: str
    bold: str
    size: int
    faint: bool

    def width(self, text: str, scale: float = 1.0) -> float:
        return Canvas.text_size(text, self.face, round(self.size * scale))[0]

    @property
    def height(self) -> float:
        return float(height_of(self.face, self.size))


@dataclass(frozen=True)
class Card:
    """What a panel says: an icon, a figure and what is counted; `box` is the panel, the rest stands inside it."""

    icon: str
    figure: str
    caption: str
    colour: str | None
    box: Box
    icon_box: Box | None = None
    figure_box: Box | None = None
    caption_box: Box | None = None

    def evidence(self, *wanted: str) -> tuple[Box, ...]:
        boxes = {"icon": self.icon_box, "figure": self.figure_box, "caption": self.caption_box, "panel": self.box}
        return tuple(box for name in wanted if (box := boxes[name]) is not None)


def compose(canvas: Canvas, crowd: float, hard: str | None) -> tuple[Question, ...]:
    """Draws a heading, panels, perhaps steps, and returns what may be asked about them."""
    rng = canvas.rng
    ground = _paint_ground(canvas, hard)
    look = Look(
        pick(rng, UPRIGHT), rng.choice(BOLD), max(14, round(canvas.unit * rng.uniform(0.8, 1.0))), hard == "faint"
    )
    room = Box(4, 3, canvas.width - 4, canvas.height - 3)
    questions: list[Question] = []
    if rng.random() < 0.4 and room.height > 6 * look.height:
        room = _heading(canvas, look, room, ground, questions)
    if rng.random() < 0.3 and crowd > 0.1 and hard != "flat":
        room = _steps(canvas, look, room, ground, questions)
    cards = _cards(canvas, look, room, crowd, hard)
    questions += _asked(rng, cards)
    rng.shuffle(questions)
    return tuple(questions[:_MOST_QUESTIONS])


def _paint_ground(canvas: Canvas, hard: str | None) -> Rgb:
    rng = canvas.rng
    colour = paper(rng)
    canvas.fill(canvas.bounds, colour)
    if hard == "busy":
        canvas.paste(texture(canvas, rng.choice(("clouds", "weave", "leaves", "bricks", "scene")), 0.9))
        colour = canvas.image.resize((1, 1)).getpixel((0, 0))  # type: ignore[assignment]
    return colour


def _heading(canvas: Canvas, look: Look, room: Box, ground: Rgb, questions: list[Question]) -> Box:
    rng = canvas.rng
    word = rng.choice(_HEADINGS)
    printed = rng.choice((word.upper(), word.title()))
    size = round(look.size * 1.3)
    width, height = canvas.text_size(printed, look.bold, size)
    if width > room.width:
        return room
    x = room.left + (room.width - width) * rng.choice((0.0, 0.5))
    box = canvas.text(x, room.top, printed, look.bold, size, ink(ground, rng, 0.3 if look.faint else 0.9))
    questions.append(Question("What is the heading?", word, (box,), "heading"))
    return Box(room.left, room.top + height + 2, room.right, room.bottom)


def _steps(canvas: Canvas, look: Look, room: Box, ground: Rgb, questions: list[Question]) -> Box:
    """A strip of numbered steps with an arrow between them, at the foot of the room."""
    rng = canvas.rng
    words = rng.sample(_STEPS, rng.randint(2, 4))
    arrow = look.size * 0.9
    while words and sum(look.width(f"{number} {word}") for number, word in enumerate(words, 1)) + arrow * len(words) > (
        room.width
    ):
        words.pop()
    if len(words) < 2 or room.height < 5 * look.height:
        return room
    top = room.bottom - look.height * 1.1
    x = room.left
    paint = ink(ground, rng, 0.3 if look.faint else 0.85)
    for number, word in enumerate(words, 1):
        printed = f"{number} {word}"
        box = canvas.text(x, top, printed, look.face, look.size, paint)
        questions.append(Question(f"What is step {number}?", word, (box,), "step"))
        x += look.width(printed) + arrow * 0.2
        if number < len(words):
            middle, half = top + look.height / 2, arrow * 0.22
            canvas.polygon(
                [(x, middle - half), (x + arrow * 0.5, middle), (x, middle + half)], mixed(ground, paint, 0.6)
            )
        x += arrow * 0.8
    return Box(room.left, room.top, room.right, top - 2)


def _cards(canvas: Canvas, look: Look, room: Box, crowd: float, hard: str | None) -> list[Card]:
    """Panels in a grid; each has an icon and a figure, and a caption where there is room for one."""
    rng = canvas.rng
    across = rng.uniform(5.2, 7.5) * look.size
    down = rng.uniform(3.0, 4.4) * look.height
    columns, rows = max(1, int(room.width // across)), max(1, int(room.height // down))
    wanted = 1 + round(crowd * 11 * rng.uniform(0.5, 1.0))
    places = [(column, row) for row in range(rows) for column in range(columns)]
    if rng.random() < 0.5:
        rng.shuffle(places)
    places = places[: min(wanted, len(FACTS), len(ICONS))]
    cell_width, cell_height = min(room.width / columns, across * 1.5), min(room.height / rows, down * 1.3)
    left = room.left + rng.uniform(0, room.width - cell_width * columns)
    top = room.top + rng.uniform(0, room.height - cell_height * rows)
    icons, captions = rng.sample(ICONS, len(places)), rng.sample(FACTS, len(places))
    figures = _figures(rng, len(places))
    colours = _panel_colours(rng, len(places), hard)
    gap = rng.uniform(1.5, 4)
    cards = []
    for (column, row), icon, caption, figure, colour in zip(places, icons, captions, figures, colours, strict=True):
        x, y = left + column * cell_width, top + row * cell_height
        box = Box(x + gap, y + gap, x + cell_width - gap, y + cell_height - gap)
        cards.append(_card(canvas, look, box, Card(icon, figure, caption, colour, box)))
    return cards


def _card(canvas: Canvas, look: Look, box: Box, card: Card) -> Card:
    rng = canvas.rng
    ground = shade(card.colour, rng, 10) if card.colour else paper(rng)
    canvas.fill(box, ground)
    if card.colour:
        canvas.mark("colour", card.colour, Box(box.left, box.top, box.left + 12, box.top + 12))
    paint = ink(ground, rng, 0.33 if look.faint else 0.95)
    figure_size = round(look.size * rng.uniform(1.0, 1.5))
    width, height = canvas.text_size(card.figure, look.bold, figure_size)
    caption_width = look.width(card.caption)
    radius = min(look.size * rng.uniform(0.7, 1.1), box.height * 0.3)
    with_caption = caption_width < box.width - 4 and height + look.height < box.height - 2
    if width + 2 * radius + 10 > box.width:
        figure_size = max(14, round(figure_size * (box.width - 2 * radius - 10) / width))
        width, height = canvas.text_size(card.figure, look.bold, figure_size)
    used = height + (look.height if with_caption else 0)
    top = box.top + max(0.0, (box.height - used) / 2)
    x = box.left + 4 + radius
    icon_colour = _icon_colour(rng, ground, paint, look.faint)
    icon_box = draw_icon(canvas, card.icon, x, top + height / 2, radius, icon_colour)
    figure_box = canvas.text(x + radius + 4, top, card.figure, look.bold, figure_size, paint)
    if not with_caption:
        return replace(card, caption="", icon_box=icon_box, figure_box=figure_box)
    caption_left = box.left + 3 + (box.width - 6 - caption_width) * rng.choice((0.0, 0.5))
    caption_box = canvas.text(caption_left, top + height, card.caption, look.face, look.size, paint)
    return replace(card, icon_box=icon_box, figure_box=figure_box, caption_box=caption_box)


def _icon_colour(rng: Random, ground: Rgb, paint: Rgb, faint: bool) -> Rgb:
    usable = [name for name in NAMES if abs(luminance(NAMED[name]) - luminance(ground)) > 90]
    return paint if faint or not usable or rng.random() < 0.5 else shade(rng.choice(usable), rng)


def _figures(rng: Random, count: int) -> list[str]:
    """Distinct figures, some of them percentages."""
    figures: list[str] = []
    while len(figures) < count:
        percent = rng.random() < 0.4
        figure = f"{rng.randint(2, 99)}%" if percent else str(rng.randint(2, rng.choice((99, 999, 9999))))
        if figure not in figures:
            figures.append(figure)
    return figures


def _panel_colours(rng: Random, count: int, hard: str | None) -> list[str | None]:
    """Plain panels, all in one colour, or each in another."""
    kind = rng.random()
    if hard != "flat" and kind < 0.3:
        return [None] * count
    if hard != "flat" and kind < 0.5:
        return [rng.choice(NAMES)] * count
    return [rng.choice(NAMES) for _ in range(count)]


def _asked(rng: Random, cards: list[Card]) -> list[Question]:
    questions = []
    for card in cards:
        questions.append(_about_figure(rng, card))
        if card.colour and rng.random() < 0.4:
            asked = f"What color is the panel with the {card.icon}?"
            questions.append(Question(asked, card.colour, card.evidence("icon", "panel"), "panel_color"))
        if card.caption and rng.random() < 0.2:
            asked = f"What is the word next to the {card.icon}?"
            questions.append(Question(asked, card.caption, card.evidence("icon", "caption"), "caption"))
    return questions


def _about_figure(rng: Random, card: Card) -> Question:
    if not card.caption or rng.random() < 0.4:
        asked = f"What is the number next to the {card.icon}?"
        return Question(asked, card.figure, card.evidence("icon", "figure"), "icon")
    evidence = card.evidence("figure", "caption")
    if card.figure.endswith("%"):
        return Question(f"What percentage is {card.caption}?", card.figure, evidence, "percent")
    return Question(f"How many {card.caption} are there?", card.figure, evidence, "figure")
