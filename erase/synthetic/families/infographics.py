"""Panels with icons, figures and captions, as in InfographicVQA."""

from __future__ import annotations

from random import Random

from erase.synthetic.canvas import Canvas
from erase.synthetic.colours import NAMES, Rgb, ink, mixed, paper, shade
from erase.synthetic.families.infographic_cards import Card, Look, draw_card
from erase.synthetic.families.local_colour import mean_colour
from erase.synthetic.families.things import texture
from erase.synthetic.fonts import BOLD, UPRIGHT, pick
from erase.synthetic.icons import NAMES as ICONS
from erase.synthetic.sample import Box, Question
from erase.synthetic.words import FACTS

_MOST_QUESTIONS = 8
_HEADINGS = ("facts", "report", "survey", "health", "travel", "nature", "city", "school", "energy", "market", "sports")
_STEPS = ("wash", "mix", "bake", "plan", "test", "build", "ship", "sign", "pay", "scan", "read", "send", "cut", "wait")
_PICTURED = {"trees": "tree", "homes": "house", "plants": "leaf"}  # captions that one might take for an icon's name


def compose(canvas: Canvas, crowd: float, hard: str | None) -> tuple[Question, ...]:
    """Draws a heading, panels, perhaps steps, and returns what may be asked about them."""
    rng = canvas.rng
    background = _paint_ground(canvas, hard)
    size = max(14, round(canvas.unit * rng.uniform(0.8, 1.0)))
    look = Look(pick(rng, UPRIGHT), rng.choice(BOLD), size, hard == "faint")
    room = Box(4, 3, canvas.width - 4, canvas.height - 3)
    questions: list[Question] = []
    if rng.random() < 0.4 and room.height > 6 * look.height:
        room = _heading(canvas, look, room, questions)
    if rng.random() < 0.3 and crowd > 0.1 and hard != "flat":
        room = _steps(canvas, look, room, questions)
    cards = _cards(canvas, look, room, crowd, hard, background)
    questions += _asked(rng, cards)
    rng.shuffle(questions)
    if background:
        whole = Question("What color is the background?", background, (canvas.bounds,), "background")
        questions.insert(0, whole)
    return tuple(questions[:_MOST_QUESTIONS])


def _paint_ground(canvas: Canvas, hard: str | None) -> str | None:
    """Paints the ground; returns the name of its colour if that is to be asked."""
    rng = canvas.rng
    if hard == "flat" and rng.random() < 0.5:
        name = rng.choice(NAMES)
        canvas.fill(canvas.bounds, shade(name, rng))
        canvas.mark("colour", name, canvas.bounds)
        return name
    canvas.fill(canvas.bounds, paper(rng))
    if hard == "busy":
        canvas.paste(texture(canvas, rng.choice(("clouds", "weave", "leaves", "bricks", "scene")), 0.9))
    return None


def _text_ink(canvas: Canvas, look: Look, box: Box) -> tuple[Rgb, Rgb]:
    """The mean colour of the ground inside `box`, and an ink for it."""
    ground = mean_colour(canvas, box)
    return ground, ink(ground, canvas.rng, 0.3 if look.faint else 0.9)


def _heading(canvas: Canvas, look: Look, room: Box, questions: list[Question]) -> Box:
    rng = canvas.rng
    word = rng.choice(_HEADINGS)
    printed = rng.choice((word.upper(), word.title()))
    size = round(look.size * 1.3)
    width, height = canvas.text_size(printed, look.bold, size)
    if width > room.width:
        return room
    x = room.left + (room.width - width) * rng.choice((0.0, 0.5))
    _, paint = _text_ink(canvas, look, Box(x, room.top, x + width, room.top + height))
    box = canvas.text(x, room.top, printed, look.bold, size, paint)
    questions.append(Question("What is the heading?", word, (box,), "heading"))
    return Box(room.left, room.top + height + 2, room.right, room.bottom)


def _steps(canvas: Canvas, look: Look, room: Box, questions: list[Question]) -> Box:
    """A strip of numbered steps with an arrow between them, at the foot of the room."""
    rng = canvas.rng
    words = rng.sample(_STEPS, rng.randint(2, 4))
    arrow = look.size * 0.9
    named = rng.random() < 0.4
    if _strip_width(look, _printed_steps(words, named), arrow) > room.width:
        named = False
    while words and _strip_width(look, _printed_steps(words, named), arrow) > room.width:
        words.pop()
    if len(words) < 2 or room.height < 5 * look.height:
        return room
    top, x = room.bottom - look.height * 1.1, room.left
    ground, paint = _text_ink(canvas, look, Box(room.left, top, room.right, room.bottom))
    for number, (word, printed) in enumerate(zip(words, _printed_steps(words, named), strict=True), 1):
        box = canvas.text(x, top, printed, look.face, look.size, paint)
        questions.append(Question(f"What is step {number}?", word, (box,), "step"))
        x += look.width(printed) + arrow * 0.2
        if number < len(words):
            middle, half = top + look.height / 2, arrow * 0.22
            head = [(x, middle - half), (x + arrow * 0.5, middle), (x, middle + half)]
            canvas.polygon(head, mixed(ground, paint, 0.6))
        x += arrow * 0.8
    return Box(room.left, room.top, room.right, top - 2)


def _printed_steps(words: list[str], named: bool) -> list[str]:
    return [f"Step {number}: {word}" if named else f"{number} {word}" for number, word in enumerate(words, 1)]


def _strip_width(look: Look, printed: list[str], arrow: float) -> float:
    return sum(look.width(text) + arrow for text in printed)


def _cards(canvas: Canvas, look: Look, room: Box, crowd: float, hard: str | None, background: str | None) -> list[Card]:
    """Panels in a grid; each has an icon and a figure, and a caption where there is room for one."""
    rng = canvas.rng
    stacked = rng.random() < 0.25
    across = rng.uniform(5.2, 7.5) * look.size
    down = rng.uniform(*((4.2, 5.2) if stacked else (3.0, 4.4))) * look.height
    columns, rows = max(1, int(room.width // across)), max(1, int(room.height // down))
    wanted = 1 + round(crowd * 11 * rng.uniform(0.5, 1.0))
    places = [(column, row) for row in range(rows) for column in range(columns)]
    if rng.random() < 0.5:
        rng.shuffle(places)
    places = places[: min(wanted, len(ICONS))]
    cell_width, cell_height = min(room.width / columns, across * 1.5), min(room.height / rows, down * 1.3)
    left = room.left + rng.uniform(0, room.width - cell_width * columns)
    top = room.top + rng.uniform(0, room.height - cell_height * rows)
    icons = rng.sample(ICONS, len(places))
    captions = rng.sample([word for word in FACTS if _PICTURED.get(word) not in icons], len(places))
    figures = _figures(rng, len(places))
    colours = _panel_colours(rng, len(places), hard, background)
    gap = rng.uniform(1.5, 4)
    cards = []
    for (column, row), icon, caption, figure, colour in zip(places, icons, captions, figures, colours, strict=True):
        x, y = left + column * cell_width, top + row * cell_height
        box = Box(x + gap, y + gap, x + cell_width - gap, y + cell_height - gap)
        cards.append(draw_card(canvas, look, box, (icon, figure, caption, colour), stacked))
    return cards


def _figures(rng: Random, count: int) -> list[str]:
    """Distinct figures, some of them percentages."""
    figures: list[str] = []
    while len(figures) < count:
        percent = rng.random() < 0.4
        figure = f"{rng.randint(2, 99)}%" if percent else str(rng.randint(2, rng.choice((99, 999, 9999))))
        if figure not in figures:
            figures.append(figure)
    return figures


def _panel_colours(rng: Random, count: int, hard: str | None, background: str | None) -> list[str | None]:
    """Plain panels, all in one colour, or each in another."""
    kind = rng.random()
    if hard != "flat" and kind < 0.3:
        return [None] * count
    if hard != "flat" and kind < 0.5:
        return [rng.choice(NAMES)] * count
    names = [name for name in NAMES if name != background]
    return [rng.choice(names) for _ in range(count)]


def _asked(rng: Random, cards: list[Card]) -> list[Question]:
    """One question about every figure, and now and then about the rest of a card; few cards are asked in full."""
    few = len(cards) <= 2
    questions = []
    for card in cards:
        questions.append(_about_figure(rng, card))
        if card.colour and (few or rng.random() < 0.4):
            asked = f"What color is the panel with the {card.icon}?"
            questions.append(Question(asked, card.colour, (card.icon_box, card.box), "panel_color"))
        if card.caption and card.caption_box and rng.random() < (0.8 if few else 0.2):
            asked = f"What is the word next to the {card.icon}?"
            questions.append(Question(asked, card.caption, (card.icon_box, card.caption_box), "word"))
    return questions


def _about_figure(rng: Random, card: Card) -> Question:
    if not card.caption_box or rng.random() < 0.4:
        asked = f"What is the number next to the {card.icon}?"
        return Question(asked, card.figure, (card.icon_box, card.figure_box), "icon")
    evidence = (card.caption_box, card.figure_box)
    if card.figure.endswith("%"):
        return Question(f"What percentage is {card.caption}?", card.figure, evidence, "percent")
    return Question(f"How many {card.caption} are there?", card.figure, evidence, "caption")
