"""What the generator makes: an image, questions about it, and where in the image the answers stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from PIL import Image

MarkKind = Literal["glyph", "colour", "shape", "icon"]


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels of the image; right and bottom lie outside it."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def centre(self) -> tuple[float, float]:
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def height(self) -> float:
        return self.bottom - self.top

    def grown(self, by: float) -> Box:
        return Box(self.left - by, self.top - by, self.right + by, self.bottom + by)

    def overlaps(self, other: Box) -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def within(self, other: Box) -> bool:
        return (
            self.left >= other.left
            and self.top >= other.top
            and self.right <= other.right
            and self.bottom <= other.bottom
        )


@dataclass(frozen=True)
class Mark:
    """One thing that was drawn: a character, or the colour, shape or icon at a place.

    Training uses the marks: each vision token learns to say what has its centre in it.
    """

    kind: MarkKind
    value: str
    box: Box


@dataclass(frozen=True)
class Question:
    """A question, its answer, and the boxes without which nobody could answer it.

    `kind` names the sort of question inside a family (`total`, `highest`, `count`): accuracy is told by it.
    """

    text: str
    answer: str
    evidence: tuple[Box, ...]
    kind: str


@dataclass(frozen=True)
class Sample:
    """One image of a family with its questions; the same seed gives the same sample."""

    name: str
    family: str
    image: Image.Image
    questions: tuple[Question, ...]
    marks: tuple[Mark, ...]
