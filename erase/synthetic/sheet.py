"""Contact sheets: many samples of a family side by side, with their questions, answers and evidence."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from erase.synthetic.fonts import font
from erase.synthetic.sample import Sample

_TILE = 320
_LINES = 6
_LINE = 15


def contact_sheet(samples: Sequence[Sample], columns: int = 6) -> Image.Image:
    """An RGB image with one tile per sample; red frames are the evidence of the questions below the picture."""
    rows = -(-len(samples) // columns)
    tile_height = _TILE + _LINES * _LINE + 8
    sheet = Image.new("RGB", (columns * (_TILE + 8), rows * tile_height), "white")
    for number, sample in enumerate(samples):
        left, top = number % columns * (_TILE + 8), number // columns * tile_height
        sheet.paste(_framed(sample), (left, top))
        draw = ImageDraw.Draw(sheet)
        for line, question in enumerate(sample.questions[:_LINES]):
            text = f"{question.text} {question.answer}"
            draw.text((left + 2, top + _TILE + line * _LINE), text[:56], "black", font("sans", 11))
    return sheet


def _framed(sample: Sample) -> Image.Image:
    scale = _TILE / max(sample.image.size)
    tile = sample.image.resize((round(sample.image.width * scale), round(sample.image.height * scale)))
    draw = ImageDraw.Draw(tile)
    for question in sample.questions[:_LINES]:
        for box in question.evidence:
            corners = (box.left * scale, box.top * scale, box.right * scale, box.bottom * scale)
            draw.rectangle(corners, outline=(230, 0, 0))
    return tile
