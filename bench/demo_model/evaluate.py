"""Accuracy of a demo model by family and by image size: python -m bench.demo_model evaluate --model erase/demo

Unpruned, on generated images that training never saw, all sizes and aspect ratios, hard cases included. A question
counts when the whole answer is right.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForImageTextToText

from bench.demo_model.data import MARK_CLASSES, Collator, fitted
from bench.demo_model.looks import CELL
from bench.demo_model.network import TrainingNetwork
from bench.demo_model.validate import answered
from bench.report import table, this_machine, write_json
from erase import synthetic
from erase.bar import progress_bar

BANDS = ((64, 100), (144, 220), (400, 600), (1000, 1300), (1800, 2304))
"""Fewest and most vision tokens of an image."""
_QUESTIONS = 4
_RESAMPLES = 1000


@dataclass(frozen=True)
class Cell:
    """Questions of one family and one band: for every image, how many of its questions came out right, of how many."""

    family: str
    band: tuple[int, int]
    images: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Share:
    """Right answers, with a 95% interval from resampling whole images."""

    right: int
    questions: int
    low: float
    high: float

    @property
    def value(self) -> float:
        return self.right / self.questions

    def __str__(self) -> str:
        return f"{100 * self.value:.0f}% ({100 * self.low:.0f} to {100 * self.high:.0f})"


def evaluate(model_folder: Path, split: str, images: int, bands: Sequence[tuple[int, int]], device: str) -> list[Cell]:
    """Asks every family in every band about `images` images of a split, in float32."""
    model = AutoModelForImageTextToText.from_pretrained(model_folder, dtype=torch.float32)
    network = TrainingNetwork(model, MARK_CLASSES).to(device).eval()
    collator = Collator(model_folder)
    cells = []
    total = len(bands) * len(synthetic.FAMILIES) * images
    with progress_bar(total=total, unit="image", desc="evaluating") as bar:
        for number, band in enumerate(bands):
            for family in synthetic.FAMILIES:
                outcomes = []
                for sample in _samples(family, split, images, band, number):
                    batch = collator.batch([sample], [sample.questions[:_QUESTIONS]]).to(torch.device(device))
                    right = answered(network, batch, reduced=False)
                    outcomes.append((sum(right), len(right)))
                    bar.update()
                cells.append(Cell(family, band, tuple(outcomes)))
    return cells


def share_of(cells: Sequence[Cell]) -> Share:
    """All images of some cells together."""
    counts = np.array([image for cell in cells for image in cell.images])
    drawn = np.random.default_rng(0).integers(0, len(counts), size=(_RESAMPLES, len(counts)))
    shares = counts[drawn, 0].sum(axis=1) / counts[drawn, 1].sum(axis=1)
    low, high = np.percentile(shares, [2.5, 97.5])
    return Share(int(counts[:, 0].sum()), int(counts[:, 1].sum()), float(low), float(high))


def summary(cells: Sequence[Cell]) -> Mapping[str, Mapping[str, Share]]:
    """Families and `all` by band and `all`."""
    grouped: dict[str, dict[str, list[Cell]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        for row in (cell.family, "all"):
            for column in (band_name(cell.band), "all"):
                grouped[row][column].append(cell)
    return {row: {column: share_of(many) for column, many in columns.items()} for row, columns in grouped.items()}


def report(arguments: argparse.Namespace) -> None:
    """Prints the table of a model and writes all figures, if a file is named."""
    cells = evaluate(arguments.model, arguments.split, arguments.images, BANDS, arguments.device)
    shares = summary(cells)
    columns = [band_name(band) for band in BANDS] + ["all"]
    rows = [[family, *(str(shares[family][column]) for column in columns)] for family in shares]
    rows.append(["questions", *(str(shares["all"][column].questions) for column in columns)])
    machine = this_machine()
    print(f"{machine}\n\nRight answers, unpruned, by vision tokens of the image (95% interval)\n")
    print(table(["family", *columns], rows))
    figures = {row: {column: asdict(share) for column, share in line.items()} for row, line in shares.items()}
    settings = argparse.Namespace(model=str(arguments.model), split=arguments.split, images=arguments.images)
    write_json(arguments.json, machine, settings, {"version": synthetic.VERSION, "shares": figures})


def band_name(band: tuple[int, int]) -> str:
    return f"{band[0]} to {band[1]}"


def _samples(family: str, split: str, images: int, band: tuple[int, int], number: int) -> Iterator[synthetic.Sample]:
    """Samples whose resized images have a number of vision tokens inside the band."""
    for index in range(number * images, (number + 1) * images):
        sample = synthetic.sample(family, split, index, tokens=band)
        columns, rows = (max(1, round(side / CELL)) for side in sample.image.size)
        if columns * rows < band[0]:
            columns, rows = (math.ceil(side / CELL) for side in sample.image.size)
        yield fitted(sample, columns, rows)
