"""Question-answer images from another renderer than the demo model learned from: does a ranking of methods hold there?

    python -m bench.other_renderer .erase/other --images 16
    erase evaluate .erase/other --out .erase/other-answers

Drawn by matplotlib with its own fonts and layouts, with the words and questions of `erase.synthetic`, which the demo
model knows. Five kinds: bar charts, forms, shapes, signs on noise, words.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from bench.report import positive, run_main
from erase.bar import progress_bar
from erase.errors import EraseError, InputError
from erase.records import PREFERRED
from erase.synthetic.colours import NAMED, VIVID
from erase.synthetic.words import CATEGORIES, LABELS, NAMES, SIGNS

VERSION = 1
"""To be raised where an image or a question of the same number becomes another one."""
CELL = 28
CELLS = (1000, 1300)
"""Fewest and most vision tokens of an image."""
_DPI = 100
_FONTS = ("DejaVu Sans", "DejaVu Serif", "DejaVu Sans Mono", "STIXGeneral", "cmr10", "cmss10")
_MARKERS = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D", "hexagon": "h", "star": "*", "cross": "P"}
Box = tuple[float, float, float, float]


@dataclass
class Page:
    """An image in the making: `width` and `height` in pixels, axes over all of it in pixels from the upper left."""

    width: int
    height: int
    random: Random
    background: str = "white"
    turns: list[tuple[str, str, tuple[Text | Box, ...]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.figure = Figure(figsize=(self.width / _DPI, self.height / _DPI), dpi=_DPI, facecolor=_rgb(self.background))
        canvas: Any = FigureCanvasAgg(self.figure)
        self.renderer = canvas.get_renderer()
        self.axes: Any = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, self.width), ylim=(self.height, 0))
        self.axes.axis("off")

    def text(self, x: float, y: float, content: str, size: float, colour: str = "black", font: str = "") -> Text:
        """Text of `size` pixels, its left middle at (x, y)."""
        family = font or self.random.choice(_FONTS)
        made: Text = self.axes.text(
            x, y, content, fontsize=size * 72 / _DPI, color=_rgb(colour), family=family, va="center_baseline"
        )
        return made

    def ask(self, question: str, answer: str, *evidence: Text | Box) -> None:
        """A question, and where its answer stands."""
        self.turns.append((question, answer, evidence))

    def box(self, seen: Text | Box) -> list[float]:
        """Left, top, right and bottom in pixels."""
        if not isinstance(seen, Text):
            return [round(side, 1) for side in seen]
        extent = seen.get_window_extent(self.renderer)
        return [round(side, 1) for side in (extent.x0, self.height - extent.y1, extent.x1, self.height - extent.y0)]


def bars(page: Page) -> None:
    """A bar chart with its values written on top."""
    count = page.random.randint(3, 6)
    names = page.random.sample(CATEGORIES, count)
    values = page.random.sample(range(2, 300), count)
    step = page.width * 0.8 / count
    size = min(page.random.randint(18, 30), int(1.4 * step / max(map(len, names))))
    bottom, tall = page.height * 0.85, page.height * 0.65
    for number, (name, value) in enumerate(zip(names, values, strict=True)):
        left, high = page.width * 0.1 + number * step, tall * value / max(values)
        page.axes.bar(left + step / 2, -high, step * 0.6, bottom=bottom, color=_rgb(page.random.choice(VIVID)))
        label = page.text(left + step * 0.25, bottom + size, name, size, font="DejaVu Sans")
        above = page.text(left + step * 0.3, bottom - high - size, str(value), size, font="DejaVu Sans")
        page.ask(f"What is the value of {name}?", str(value), label, above)
        if value in (max(values), min(values)):
            which = "highest" if value == max(values) else "lowest"
            page.ask(f"Which category is {which}?", name, label)
    page.axes.plot([page.width * 0.08, page.width * 0.92], [bottom, bottom], color="black")


def form(page: Page) -> None:
    """Labels and values in two columns."""
    count, size = page.random.randint(4, 9), page.random.randint(16, 30)
    font, left, gap = page.random.choice(_FONTS), page.width * page.random.uniform(0.05, 0.3), size * 9
    for number, label in enumerate(page.random.sample(LABELS, count)):
        y = page.height * (number + 1) / (count + 1)
        kind = page.random.randrange(3)
        price = f"{page.random.randint(1, 99)}.{page.random.randint(0, 99):02}"
        value = (price, str(page.random.randint(2, 9999)), page.random.choice(NAMES))[kind]
        shown = page.text(left, y, label, size, font=font), page.text(left + gap, y, value, size, font=font)
        page.ask(f"What is the {label}?", value, *shown)


def shapes(page: Page) -> None:
    """Shapes of different colours on plain ground."""
    names = page.random.sample(sorted(_MARKERS), page.random.randint(2, 4))
    colours = page.random.sample([colour for colour in VIVID if colour != page.background], len(names))
    for number, (name, colour) in enumerate(zip(names, colours, strict=True)):
        side = page.random.randint(70, 170)
        x = page.width * (number + 0.5) / len(names)
        y = page.random.uniform(side, page.height - side)
        page.axes.scatter([x], [y], s=(side * 72 / _DPI) ** 2, marker=_MARKERS[name], color=_rgb(colour), linewidths=0)
        where = (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
        page.ask(f"What color is the {name}?", colour, where)
        page.ask(f"What shape is {colour}?", name, where)


def signs(page: Page) -> None:
    """Coloured boards with a word each on noise."""
    noise = np.random.default_rng(page.random.randrange(2**32)).normal(150, 30, (page.height, page.width, 3))
    page.axes.imshow(noise.clip(0, 255).astype(np.uint8), extent=(0, page.width, page.height, 0), aspect="auto")
    count = page.random.randint(1, 3)
    colours = page.random.sample(VIVID, count)
    for number, (word, colour) in enumerate(zip(page.random.sample(SIGNS, count), colours, strict=True)):
        size = page.random.randint(28, 48)
        x, y = page.width * page.random.uniform(0.05, 0.4), page.height * (number + 0.7) / (count + 0.4)
        dark = sum(NAMED[colour]) < 380
        written = page.text(x + size, y, word, size, "white" if dark else "black")
        left, top, right, bottom = page.box(written)
        around = (left - size / 2, top - size / 2, right + size / 2, bottom + size / 2)
        page.axes.fill(
            [around[0], around[2], around[2], around[0]],
            [around[1], around[1], around[3], around[3]],
            color=_rgb(colour),
        )
        page.ask(f"What does the {colour} sign say?", word, around)
        page.ask(f"What color is the sign that says {word}?", colour, around)


def words(page: Page) -> None:
    """Words of different colours on plain ground."""
    count = page.random.randint(2, 4)
    colours = page.random.sample([colour for colour in VIVID if colour not in ("yellow", "pink")], count)
    for number, (word, colour) in enumerate(zip(page.random.sample(CATEGORIES, count), colours, strict=True)):
        size = page.random.randint(20, 60)
        x, y = page.width * page.random.uniform(0.05, 0.6), page.height * (number + 0.7) / (count + 0.4)
        page.ask(f"What is the {colour} word?", word, page.text(x, y, word, size, colour))


KINDS: dict[str, Callable[[Page], None]] = {kind.__name__: kind for kind in (bars, form, shapes, signs, words)}


def draw(kind: str, number: int) -> Page:
    """Image `number` of a kind; always the same."""
    random = Random(f"{kind} {number}")
    columns = random.randint(26, 44)
    least, most = (-(-CELLS[0] // columns), CELLS[1] // columns)
    ground = "white" if kind in ("bars", "form", "words") else random.choice(("white", "gray"))
    page = Page(columns * CELL, random.randint(least, most) * CELL, random, ground)
    KINDS[kind](page)
    return page


def write(folder: Path, images: int) -> Iterator[str]:
    """Writes `images` of each kind and their records into a new folder; yields each name.

    Raises:
        InputError: the folder holds something already.
    """
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} exists already; expected a new or empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / PREFERRED).open("w", encoding="utf-8") as records:
        for kind in KINDS:
            for number in range(images):
                page = draw(kind, number)
                name = f"{kind}-{number}"
                page.figure.savefig(folder / f"{name}.png", dpi=_DPI, facecolor=page.figure.get_facecolor())
                turns = [
                    {"question": question, "answer": answer, "evidence": [page.box(one) for one in evidence]}
                    for question, answer, evidence in page.turns
                ]
                records.write(json.dumps({"name": name, "image": f"{name}.png", "family": kind, "turns": turns}) + "\n")
                yield name


def _rgb(colour: str) -> tuple[float, float, float]:
    red, green, blue = NAMED[colour]
    return red / 255, green / 255, blue / 255


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws a folder of images and records."""
    parser = argparse.ArgumentParser(prog="python -m bench.other_renderer", description="Images drawn by matplotlib.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=positive, default=20, help="per kind (%(default)s)")

    def run(options: argparse.Namespace) -> None:
        for _ in progress_bar(write(options.folder, options.images), total=len(KINDS) * options.images):
            pass

    return run_main(run, parser.parse_args(arguments), EraseError)


if __name__ == "__main__":
    sys.exit(main())
