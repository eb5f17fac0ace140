"""Who should look where in a prompt: what attention is taught, question by question."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tokenizers import Encoding

from bench.demo_model.bars import Point
from bench.demo_model.grounding import Grounded, Grounds, of_token
from bench.demo_model.neighbours import Link

CELL = 28
LOOKS = ("beside", "above", "asking", "counting", "finding", "recalling", "answering")
"""Kinds of looks: from a value to the label beside it and to the one above it or, where the label comes later in
reading order, from it to the value; from the words of a question to what they name, all of it where that is counted,
and then to the answer; from where a token of the answer is predicted to these words, and then to what shows it."""
EVENLY = ("counting",)
"""Looks that everything gets an equal share of. The prompt's first token gets one, too: its share tells how many others
there are, which a mean over what is counted cannot."""
_FIRST = 0


@dataclass(frozen=True)
class Grid:
    """The cells of an image, which stand in a prompt from `start` on in reading order."""

    rows: int
    columns: int
    start: int

    def place(self, point: Point) -> int | None:
        """The position in the prompt of the cell around a point in pixels, if it lies in the image."""
        column, row = (int(part // CELL) for part in point)
        inside = 0 <= row < self.rows and 0 <= column < self.columns
        return self.start + row * self.columns + column if inside else None

    def places(self, points: Iterable[Point]) -> list[int]:
        return [place for point in points if (place := self.place(point)) is not None]


def looks_of(
    grounds: Grounds, grid: Grid, question: tuple[int, Encoding], answer: tuple[int, Encoding]
) -> dict[str, list[tuple[int, int]]]:
    """Pairs of positions in the prompt by kind of look: which one should look at which.

    Args:
        question: where its first token stands, and its tokens.
        answer: the position at which its first token is predicted, and its tokens.
    """
    looks: dict[str, list[tuple[int, int]]] = {kind: [] for kind in LOOKS}
    looks |= looks_beside(grounds.links(), grid)
    named = _cells_of_tokens(*question, grounds.asked, grid)
    shown = _cells_of_tokens(*answer, grounds.answered, grid)
    asked, answered = sorted(set().union(*named.values())), sorted(set().union(*shown.values()))
    # Where the label comes after the value, only the label's cells can know of both.
    knowing = [place for place in asked if answered and place > answered[-1]]
    looks["asking"] = [(word, cell) for word, cells in named.items() for cell in cells]
    looks["finding"] = [(word, cell) for word in named if answered for cell in (*answered, *knowing)]
    if grounds.counted:
        looks["counting"] = [(word, cell) for word, cells in named.items() for cell in (*cells, _FIRST)]
        shown = {answer[0]: []}
    looks["recalling"] = [(token, word) for token in shown for word in named]
    looks["answering"] = [(token, cell) for token, cells in shown.items() for cell in (*cells, *knowing)]
    return looks


def looks_beside(links: Iterable[Link], grid: Grid) -> dict[str, list[tuple[int, int]]]:
    """The looks "beside" and "above", each from the later one of two linked cells to the one before."""
    looks: dict[str, list[tuple[int, int]]] = {"beside": [], "above": []}
    for first, second, beside in links:
        places = sorted(set(grid.places((first, second))))
        if len(places) > 1:
            looks["beside" if beside else "above"].append((places[1], places[0]))
    return looks


def _cells_of_tokens(begin: int, text: Encoding, found: Sequence[Grounded], grid: Grid) -> dict[int, list[int]]:
    """Positions of the cells that show a token, by the token's position; the text begins at `begin`."""
    cells = {begin + number: grid.places(of_token(found, token)) for number, token in enumerate(text.offsets)}
    return {token: places for token, places in cells.items() if places}
