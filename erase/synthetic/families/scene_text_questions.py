"""The questions of the scene text family, each with one right answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import chain

from erase.synthetic.canvas import Canvas
from erase.synthetic.families.boards import Board
from erase.synthetic.sample import Question

_PER_KIND = 2
_PER_ANSWER = 2
_MOST = 8


def ask(canvas: Canvas, boards: list[Board], background: str | None) -> tuple[Question, ...]:
    """Up to eight questions about the boards, at most two of a kind and two with the same answer."""
    candidates = list(
        chain(
            _alone(boards),
            _by_colour(boards),
            _by_place(boards),
            _numbers(boards),
            _license_plates(boards),
            _colours(boards),
        )
    )
    if background:
        text = "What color is the background?"
        candidates.append(Question(text, background, (canvas.bounds,), "background"))
    canvas.rng.shuffle(candidates)
    kinds: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    asked = []
    for question in candidates:
        if kinds[question.kind] < _PER_KIND and answers[question.answer] < _PER_ANSWER:
            kinds[question.kind] += 1
            answers[question.answer] += 1
            asked.append(question)
    return tuple(asked[:_MOST])


def _says(board: Board) -> str | None:
    """All that a board says, if that is short enough for an answer."""
    said = " ".join(_as_answer(line) for line in board.lines)
    return said if len(said) <= 12 and not (len(board.lines) > 1 and board.lines[1][0].isdigit()) else None


def _as_answer(line: str) -> str:
    return line.lower() if line.isalpha() else line


def _is_number(line: str) -> bool:
    return line.replace(".", "").isdigit()


def _alone(boards: list[Board]) -> Iterator[Question]:
    said = _says(boards[0])
    if len(boards) == 1 and said and boards[0].noun != "license plate":
        yield Question(f"What does the {boards[0].noun} say?", said, (boards[0].box,), "sign")


def _by_colour(boards: list[Board]) -> Iterator[Question]:
    for board in _only_of_their_colour(boards):
        said = _says(board)
        if said:
            yield Question(f"What does the {board.colour} {board.noun} say?", said, (board.box,), "colored")
        if len(board.lines) > 1 and _is_number(board.lines[1]):
            text = f"What word is on the {board.colour} sign?"
            yield Question(text, _as_answer(board.lines[0]), (board.box,), "colored")
        for line in board.lines:
            if _is_number(line):
                text = f"What is the number on the {board.colour} sign?"
                yield Question(text, line, (board.box,), "number")


def _only_of_their_colour(boards: list[Board]) -> list[Board]:
    """Signs, and bare texts, that a colour singles out."""
    plates = Counter(board.colour for board in boards if board.noun != "text")
    inks = Counter(board.colour if board.noun == "text" else board.ink for board in boards)
    return [
        board
        for board in boards
        if (board.noun == "sign" and plates[board.colour] == 1) or (board.noun == "text" and inks[board.colour] == 1)
    ]


def _by_place(boards: list[Board]) -> Iterator[Question]:
    signs = [board for board in boards if board.noun == "sign"]
    if len(signs) < 2 or len(boards) > 4:
        return
    for sign in signs:
        said, box = _says(sign), sign.box
        others = [other.box for other in boards if other is not sign]
        if not said:
            continue
        places = {
            "on the left": all(box.right < other.left for other in others),
            "on the right": all(box.left > other.right for other in others),
            "at the top": all(box.bottom < other.top for other in others),
            "at the bottom": all(box.top > other.bottom for other in others),
        }
        for place, holds in places.items():
            if holds:
                yield Question(f"What does the sign {place} say?", said, (box,), "place")


def _numbers(boards: list[Board]) -> Iterator[Question]:
    with_digits = [(line, board) for board in boards for line in board.lines if not line.isalpha()]
    if len(with_digits) == 1 and _is_number(with_digits[0][0]):
        line, board = with_digits[0]
        yield Question("What is the number?", line, (board.box,), "number")
    for board in boards:
        if len(board.lines) > 1 and _is_number(board.lines[1]):
            text = f"What number is under {board.lines[0].lower()}?"
            yield Question(text, board.lines[1], (board.box,), "under")


def _license_plates(boards: list[Board]) -> Iterator[Question]:
    for board in boards:
        if board.noun == "license plate":
            yield Question("What is the license plate?", board.lines[0], (board.box,), "plate")
        if board.car:
            yield Question("What color is the car?", board.car, (board.room,), "car")


def _colours(boards: list[Board]) -> Iterator[Question]:
    for board in boards:
        if board.noun == "sign" and len(boards) == 1:
            yield Question("What color is the sign?", board.colour, (board.box,), "sign_color")
        elif board.lines[0].isalpha():
            text = f"What color is the {board.noun} that says {board.lines[0].lower()}?"
            yield Question(text, board.colour, (board.box,), "sign_color")
        elif board.noun == "sign" and _is_number(board.lines[0]):
            text = f"What color is the sign with the number {board.lines[0]}?"
            yield Question(text, board.colour, (board.box,), "sign_color")
