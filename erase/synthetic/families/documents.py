"""Mirrors document question answering (DocVQA): receipts, forms and invoices, and tables."""

from __future__ import annotations

from erase.synthetic.canvas import Canvas
from erase.synthetic.families.document_drawing import Written, write
from erase.synthetic.families.document_layout import Look, lay_pairs, lay_table, look_for
from erase.synthetic.families.entries import COLUMNS, ROW_NAMES, Entry, cents, entries, money, value_of
from erase.synthetic.families.page import Page, blank_page
from erase.synthetic.sample import Question
from erase.synthetic.words import FACTS, GOODS

_MOST_ROWS = 24
_MOST_QUESTIONS = 6
_SPARE = 8  # entries made in case some are too wide


def compose(canvas: Canvas, crowd: float, hard: str | None) -> tuple[Question, ...]:
    """Paints one document and returns the questions about it."""
    rng = canvas.rng
    page = blank_page(canvas, hard)
    look = look_for(canvas, page.area)
    maker = rng.choice((_form, _form, _receipt, _table, _table))
    questions = maker(canvas, page, look, crowd, hard) or _form(canvas, page, look, crowd, hard)
    rng.shuffle(questions)
    colours = [Question(f"What color is the {it.place}?", it.colour, (it.box,), "color") for it in page.panels]
    return tuple(colours + questions[: _MOST_QUESTIONS - len(colours)])


def _form(canvas: Canvas, page: Page, look: Look, crowd: float, hard: str | None) -> list[Question]:
    rng = canvas.rng
    wanted = rng.randint(1, 2) + round((_MOST_ROWS - 2) * crowd * rng.uniform(0.5, 1.0))
    fitting = [entry for entry in entries(rng, wanted + _SPARE) if look.fits_below(entry.label, entry.value)]
    layout = lay_pairs(look, fitting[:wanted], rng)
    written = write(canvas, page, look, layout, hard)
    questions = [_about_entry(written, row, entry, canvas) for row, entry in enumerate(layout.entries)]
    return questions + _about_title(written)


def _about_entry(written: Written, row: int, entry: Entry, canvas: Canvas) -> Question:
    if entry.label in ("rooms", "nights"):
        text = f"How many {entry.label} are there?"
    elif entry.label in ("paid", "due") or canvas.rng.random() < 0.15:
        text = f"What is given for {entry.label}?"
    else:
        text = f"What is the {entry.label}?"
    kind = "total" if entry.label == "total" else "field"
    return Question(text, entry.value, (written.boxes[row, 0], written.boxes[row, 1]), kind)


def _about_title(written: Written) -> list[Question]:
    if not written.title:
        return []
    return [Question("What is the title?", written.title[0], (written.title[1],), "title")]


def _receipt(canvas: Canvas, page: Page, look: Look, crowd: float, hard: str | None) -> list[Question]:
    """Items with prices and, mostly, their sum below a line."""
    rng = canvas.rng
    wanted = rng.randint(1, 2) + round((_MOST_ROWS - 5) * crowd * rng.uniform(0.4, 1.0))
    goods = [name for name in rng.sample(GOODS, len(GOODS)) if look.fits(name, "88.88")]
    room = look.rows(look.room_height) - 4
    goods = goods[: max(1, min(wanted, room))]
    prices = rng.sample([cents(rng) for _ in range(4 * len(goods))], len(goods))
    if room < 1 or not goods or len(set(prices)) < len(prices):
        return []
    items = [Entry(name, money(price), "price") for name, price in zip(goods, prices, strict=True)]
    summed = len(items) > 1 and rng.random() < 0.85 and look.fits("subtotal", "888.88")
    sums = _sums(canvas, sum(prices)) if summed else []
    layout = lay_pairs(look, items + sums, rng, style="right", rule=len(items) if sums else None)
    if len(layout.entries) < len(items + sums):
        return []
    written = write(canvas, page, look, layout, hard)
    questions = [_about_item(written, row, item, canvas) for row, item in enumerate(items)]
    rng.shuffle(questions)
    questions = questions[: _MOST_QUESTIONS - 1]
    questions += [_about_entry(written, len(items) + row, entry, canvas) for row, entry in enumerate(sums)]
    return questions + _about_title(written)


def _sums(canvas: Canvas, amount: int) -> list[Entry]:
    rng = canvas.rng
    if rng.random() < 0.6:
        return [Entry("total", money(amount), "price")]
    tax = round(amount * rng.uniform(0.03, 0.22))
    below = (("subtotal", amount), ("tax", tax), ("total", amount + tax))
    return [Entry(label, money(value), "price") for label, value in below]


def _about_item(written: Written, row: int, item: Entry, canvas: Canvas) -> Question:
    evidence = (written.boxes[row, 0], written.boxes[row, 1])
    if canvas.rng.random() < 0.12:
        return Question(f"Which item costs {item.value}?", item.label, evidence, "which")
    text = _phrase(canvas, f"What is the price of {item.label}?", f"How much is the {item.label}?")
    return Question(text, item.value, evidence, "price")


def _phrase(canvas: Canvas, usual: str, rare: str) -> str:
    return usual if canvas.rng.random() < 0.75 else rare


def _table(canvas: Canvas, page: Page, look: Look, crowd: float, hard: str | None) -> list[Question]:
    """Rows and columns with headers; the upper left corner says what the rows are."""
    rng = canvas.rng
    noun = rng.choice(tuple(ROW_NAMES))
    columns = rng.sample(COLUMNS, 1 + round(rng.uniform(0, 0.6) + 4 * crowd * rng.random()))
    rows = rng.sample(ROW_NAMES[noun], 1 + round(rng.random() + (_MOST_ROWS - 4) * crowd * rng.uniform(0.3, 1.0)))
    kinds = ["price" if name in ("price", "cost", "fee", "tax") else "whole" for name in columns]
    cells = [[noun, *columns]]
    cells += [[row, *(value_of("price" if kind == "price" else "whole", rng) for kind in kinds)] for row in rows]
    layout = lay_table(look, cells, rng)
    if layout is None:
        return []
    written = write(canvas, page, look, layout, hard)
    return _about_cells(written, layout.cells, noun, canvas) + _about_title(written)


def _about_cells(written: Written, cells: list[list[str]], noun: str, canvas: Canvas) -> list[Question]:
    rng = canvas.rng
    places = [(row, column) for row in range(1, len(cells)) for column in range(1, len(cells[0]))]
    questions = []
    for row, column in rng.sample(places, min(len(places), _MOST_QUESTIONS)):
        name, head, value = cells[row][0], cells[0][column], cells[row][column]
        boxes = written.boxes
        evidence = (boxes[row, 0], boxes[0, column], boxes[row, column])
        alone = [other[column] for other in cells].count(value) == 1
        if alone and len(cells) > 2 and rng.random() < 0.12:
            questions.append(Question(f"Which {noun} has {value} for {head}?", name, evidence, "which"))
        elif head in FACTS:
            text = _phrase(canvas, f"What are the {head} for {name}?", f"How many {head} for {name}?")
            questions.append(Question(text, value, evidence, "cell"))
        else:
            text = _phrase(canvas, f"What is the {head} for {name}?", f"What is the {head} of {name}?")
            questions.append(Question(text, value, evidence, "cell"))
    return questions
