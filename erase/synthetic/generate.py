"""Samples by family, split and number: the same three always give the same image and questions."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from random import Random
from typing import Literal

from erase.errors import InputError
from erase.metrics import Metric
from erase.synthetic.canvas import Canvas
from erase.synthetic.degrade import degrade
from erase.synthetic.families import charts, documents, general, infographics, ocr, scene_text
from erase.synthetic.sample import Question, Sample

VERSION = 1
SPLITS = ("train", "validation", "test")
Hard = Literal["faint", "busy", "flat"]
Size = tuple[int, int]
Compose = Callable[[Canvas, float, "Hard | None"], tuple[Question, ...]]

# Each mirrors one of the paper's benchmarks and is scored by that benchmark's metric.
FAMILIES: Mapping[str, Compose] = {
    "documents": documents.compose,
    "charts": charts.compose,
    "scene_text": scene_text.compose,
    "infographics": infographics.compose,
    "ocr": ocr.compose,
    "general": general.compose,
}
METRICS: Mapping[str, Metric] = {
    "documents": "anls",
    "charts": "relaxed",
    "scene_text": "words",
    "infographics": "anls",
    "ocr": "words",
    "general": "exact",
}
_CELL = 28  # pixels of one vision token's side in Qwen2.5-VL
_HARD_SHARE = 0.15
_LONGEST = 2016


def sample(
    family: str,
    split: str,
    index: int,
    *,
    size: Size | None = None,
    tokens: tuple[int, int] = (64, 2304),
    crowd: float | None = None,
) -> Sample:
    """Number `index` of a family's split.

    Args:
        size: width and height in pixels; by default drawn with `tokens` and an aspect ratio from 1:3 to 3:1.
        tokens: smallest and largest number of vision tokens (cells of 28 x 28 pixels) of a drawn size.
        crowd: how much content, from 0 (one or two things) to 1; by default drawn.

    Raises:
        InputError: an unknown family or split, or a negative index.
    """
    check_source(family, split, index)
    rng = Random(_seed(family, split, index))
    drawn_size, drawn_crowd, drawn_hard = random_size(rng, *tokens), rng.random(), rng.random()
    width, height = size or drawn_size
    hard: Hard | None = rng.choice(("faint", "busy", "flat"))
    if drawn_hard > _HARD_SHARE:
        hard = None
    canvas = Canvas(width, height, _unit(width, height, rng), rng)
    questions = FAMILIES[family](canvas, drawn_crowd if crowd is None else crowd, hard)
    image = degrade(canvas, 0.0 if rng.random() < 0.3 else rng.random())
    name = f"{family}-{split}-{index}"
    return Sample(name, family, image, questions, tuple(canvas.marks))


def check_source(family: str, split: str, index: int) -> None:
    """Raises `InputError` where there is no such sample."""
    if family not in FAMILIES:
        raise InputError(f"there is no family {family!r}; expected one of {', '.join(FAMILIES)}")
    if split not in SPLITS:
        raise InputError(f"there is no split {split!r}; expected one of {', '.join(SPLITS)}")
    if index < 0:
        raise InputError(f"index must not be negative, got {index}")


def random_size(rng: Random, fewest: int, most: int) -> Size:
    """Width and height in pixels for `fewest` to `most` vision tokens, aspect ratio 1:3 to 3:1, both log-uniform."""
    area = math.exp(rng.uniform(math.log(fewest), math.log(most))) * _CELL**2
    aspect = math.exp(rng.uniform(-math.log(3), math.log(3)))
    width = min(_LONGEST, math.sqrt(area * aspect))
    return round(width), round(min(_LONGEST, area / width))


def _unit(width: int, height: int, rng: Random) -> int:
    """Height of ordinary text in pixels: on large images either grown with them, or left small, or between."""
    base = rng.uniform(17, 24)
    growth = max(1.0, math.sqrt(width * height) / 300)
    return round(base * math.pow(growth, rng.uniform(0, 0.9)))


def _seed(family: str, split: str, index: int) -> int:
    text = f"erase-synthetic/{VERSION}/{family}/{split}/{index}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
