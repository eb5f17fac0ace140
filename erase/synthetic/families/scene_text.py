"""Mirrors TextVQA: text as it stands in the world, on signs, plates, cars and walls."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import numpy as np
from PIL import Image

from erase.synthetic import fonts
from erase.synthetic.backgrounds import KINDS
from erase.synthetic.canvas import Canvas
from erase.synthetic.colours import NAMES, shade
from erase.synthetic.families.boards import FORMS, Board, ink_names, paint_behind, paint_board
from erase.synthetic.families.scene_text_questions import ask
from erase.synthetic.families.things import standing_out, texture
from erase.synthetic.sample import Box, Question
from erase.synthetic.words import CITIES, SIGNS
from erase.synthetic.words import NAMES as PEOPLE

_LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ"
_MOST = 6


def compose(canvas: Canvas, crowd: float, hard: str | None) -> tuple[Question, ...]:
    """Paints a street with one to six pieces of text and returns the questions about it."""
    rng = canvas.rng
    background = _paint_ground(canvas, hard)
    boards = _placed(canvas, rng.randint(1, 1 + round((_MOST - 1) * crowd)), hard, background)
    posts = all(board.form != "bare" for board in boards)  # a post would cross out bare text
    for board in boards:
        paint_behind(canvas, board, posts=posts)
    for board in boards:
        contrast = 0.32 if hard == "faint" and board.form != "bare" else None
        paint_board(canvas, board, contrast, halo=hard == "busy")
    return ask(canvas, boards, background)


def _paint_ground(canvas: Canvas, hard: str | None) -> str | None:
    """Paints what is behind the text; returns its colour's name where it is plain."""
    rng = canvas.rng
    if hard == "flat":
        name = rng.choice(NAMES)
        canvas.fill(canvas.bounds, shade(name, rng))
        canvas.mark("colour", name, canvas.bounds)
        return name
    kind = rng.choice((*KINDS, "scene", "scene", "bricks"))
    canvas.paste(texture(canvas, kind, rng.uniform(0.85, 1.0) if hard == "busy" else rng.uniform(0.3, 0.9)))
    return None


def _placed(canvas: Canvas, number: int, hard: str | None, background: str | None) -> list[Board]:
    """Up to `number` boards that neither touch each other nor the border; at least one."""
    rng = canvas.rng
    colours = rng.sample([name for name in NAMES if name != background], _MOST)
    boards: list[Board] = []
    for _ in range(number * 2):
        if len(boards) == number:
            break
        taken = [line.lower() for board in boards for line in board.lines]
        plated = any(board.noun == "license plate" for board in boards)
        board = _invented(canvas, colours[len(boards)], number, plated=plated, bare=hard != "flat")
        if any(line.lower() in taken for line in board.lines):
            continue
        found = _with_room(canvas, board, boards, halo=hard == "busy")
        if found:
            boards.append(found)
    return boards or [_only(canvas, colours[0])]


def _invented(canvas: Canvas, colour: str, number: int, *, plated: bool, bare: bool) -> Board:
    """A board without a place, as large as could fit when there are `number` of them."""
    rng = canvas.rng
    kind = rng.random()
    angle = rng.uniform(-8, 8) if rng.random() < 0.3 else 0.0
    if kind < 0.14 and not plated:
        colour = rng.choice(("white", "white", "yellow"))
        board = Board("license plate", (_plate(rng),), _face(rng), 100, "rounded", colour, "black", angle / 3)
        board = replace(board, padding=0.3, car=rng.choice(NAMES) if rng.random() < 0.6 else None)
    elif kind < 0.3 and bare:
        board = Board("text", (_cased(rng, _word(rng)),), _face(rng), 100, "bare", colour, None, angle)
    else:
        lines, form = _lines(rng), rng.choice(FORMS)
        board = Board("sign", lines, _face(rng), 100, form, colour, rng.choice(ink_names(colour)), angle)
        board = replace(board, padding=rng.uniform(0.3, 0.8))
    room = board.room
    share = math.exp(rng.uniform(math.log(0.3), 0))
    largest = 100 * min(canvas.width / room.width, canvas.height / room.height / min(number, 2)) * 0.92
    return replace(board, size=max(_smallest(canvas), min(round(largest * share), 6 * canvas.unit)))


def _with_room(canvas: Canvas, board: Board, others: list[Board], *, halo: bool) -> Board | None:
    """The board at a free place, made smaller if there is none for it as it is."""
    rng = canvas.rng
    size = board.size
    claims = [other.room for other in others]
    while size >= _smallest(canvas):
        board = replace(board, size=size, x=0.0, y=0.0)
        room = board.room
        if room.width < canvas.width - 4 and room.height < canvas.height - 4:
            for _ in range(25):
                x = rng.uniform(2 - room.left, canvas.width - 2 - room.right)
                y = rng.uniform(2 - room.top, canvas.height - 2 - room.bottom)
                moved = Box(room.left + x, room.top + y, room.right + x, room.bottom + y)
                if not any(moved.overlaps(claim) for claim in claims):
                    board = replace(board, x=x, y=y)
                    return _coloured(canvas, board, halo=halo) if board.noun == "text" else board
        size = min(size - 1, round(size * 0.75))
    return None


def _coloured(canvas: Canvas, board: Board, *, halo: bool) -> Board | None:
    """Bare text in a colour that stands out where it is, or nothing if none does."""
    box = board.box
    patch = canvas.image.crop((round(box.left), round(box.top), round(box.right), round(box.bottom)))
    pixels = np.asarray(patch.resize((6, 3), Image.Resampling.BOX)).reshape(-1, 3).tolist()
    usable = standing_out([(red, green, blue) for red, green, blue in pixels], 60.0 if halo else 160.0)
    if not usable:
        return None
    return replace(board, colour=canvas.rng.choice(usable), angle=0.0 if halo else board.angle)


def _only(canvas: Canvas, colour: str) -> Board:
    """What fits everywhere: a short number on a small plate."""
    size, middle = _smallest(canvas), Box(0, 0, canvas.width, canvas.height).centre
    board = Board(
        "sign", (str(canvas.rng.randint(2, 99)),), "sans-bold", size, "rectangle", colour, ink_names(colour)[0]
    )
    return replace(board, x=middle[0], y=middle[1])


def _smallest(canvas: Canvas) -> int:
    return max(15, math.ceil(0.8 * canvas.unit))


def _face(rng: Random) -> str:
    return fonts.pick(rng, fonts.BOLD if rng.random() < 0.6 else fonts.UPRIGHT)


def _word(rng: Random) -> str:
    return rng.choice(rng.choice((SIGNS, SIGNS, CITIES, PEOPLE)))


def _cased(rng: Random, word: str) -> str:
    return word.upper() if rng.random() < 0.7 else word.capitalize()


def _lines(rng: Random) -> tuple[str, ...]:
    """What a sign says: a word, a number, a code, two words, or a word and a number below."""
    kind = rng.random()
    if kind < 0.45:
        return (_cased(rng, _word(rng)),)
    if kind < 0.62:
        return (_number(rng),)
    if kind < 0.7:
        return (f"{rng.choice(_LETTERS)}{rng.randint(1, 99)}",)
    word = _cased(rng, _word(rng))
    if kind < 0.9:
        return (word, _number(rng))
    other = rng.choice([name for name in (*PEOPLE, *CITIES) if name != word.lower() and len(name) <= 5])
    return (word, other.upper() if word.isupper() else other.capitalize())


def _number(rng: Random) -> str:
    if rng.random() < 0.15:
        return f"{rng.randint(1, 9)}.{rng.randint(0, 99):02d}"
    return str(rng.randrange(2, 10 ** rng.choice((2, 2, 3, 3, 4))))


def _plate(rng: Random) -> str:
    """A license plate's code: A is any letter, 0 any digit."""
    pattern = rng.choice(("AAA-000", "AA00AAA", "000-AAA", "0AAA000", "AA-0000", "A-AA000"))
    return "".join(rng.choice(_LETTERS) if c == "A" else str(rng.randint(0, 9)) if c == "0" else c for c in pattern)
