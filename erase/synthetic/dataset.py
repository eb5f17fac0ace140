"""Generated images and their questions as a folder that `erase.records` reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from erase.errors import InputError
from erase.records import PREFERRED
from erase.synthetic.generate import FAMILIES, METRICS, VERSION, check_source, sample
from erase.synthetic.sample import Sample

FEWEST, MOST = 36, 72 * 72
"""Vision tokens of an image: on smaller ones nothing may fit that could be asked about, larger ones are not drawn."""


def write_dataset(
    folder: Path,
    split: str,
    images: int,
    *,
    families: Sequence[str] = tuple(FAMILIES),
    tokens: tuple[int, int] = (64, 2304),
    first: int = 0,
) -> Iterator[Sample]:
    """Writes `images` PNG files per family and records.jsonl into a new folder; yields every sample once written.

    A line of records.jsonl has `name`, `image` and `turns` (`question`, `answer`, `kind`, and `evidence`: boxes as
    left, top, right, bottom in pixels), and beside these `family`, `metric`, `split` and `version`.

    Args:
        tokens: fewest and most vision tokens of an image, at 28 x 28 pixels each.
        first: number of the first sample; the samples before it are another part of the same split.

    Raises:
        InputError: unknown family or split, sizes that make no sense, or a folder that holds something already.
    """
    for family in families:
        check_source(family, split, first)
    if images < 1:
        raise InputError(f"images must be at least 1, got {images}")
    if len(set(families)) < len(families):
        raise InputError(f"families must be different ones, got {', '.join(families)}")
    if not FEWEST <= tokens[0] <= tokens[1] <= MOST:
        raise InputError(
            f"tokens must be two ascending numbers from {FEWEST} to {MOST}, got {tokens[0]} and {tokens[1]}"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists already; expected a new or empty folder")
    (folder / "images").mkdir(parents=True)
    with (folder / PREFERRED).open("w", encoding="utf-8") as records:
        for family in families:
            for index in range(first, first + images):
                made = sample(family, split, index, tokens=tokens)
                made.image.save(folder / "images" / f"{made.name}.png")
                records.write(json.dumps(_line(made, split)) + "\n")
                yield made


def _line(made: Sample, split: str) -> dict[str, Any]:
    return {
        "name": made.name,
        "image": f"images/{made.name}.png",
        "family": made.family,
        "metric": METRICS[made.family],
        "split": split,
        "version": VERSION,
        "turns": [
            {
                "question": question.text,
                "answer": question.answer,
                "kind": question.kind,
                "evidence": [[round(side, 1) for side in astuple(box)] for box in question.evidence],
            }
            for question in made.questions
        ],
    }
