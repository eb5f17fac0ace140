"""Training batches, rendered while the model learns."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from bench.demo_model.dense import dense_sample
from bench.demo_model.grounding import grounded
from bench.demo_model.looks import CELL, LOOKS, Grid, looks_beside, looks_of
from bench.demo_model.neighbours import neighbours
from bench.demo_model.network import Batch
from bench.demo_model.recipe import Phase, Recipe
from bench.demo_model.tokenizer import SYSTEM
from erase import synthetic
from erase.synthetic import colours, icons, shapes
from erase.synthetic.sample import Mark, Question, Sample

_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,%:/-"
_CLASSES = [
    *(("glyph", character) for character in _CHARACTERS),
    *(("colour", name) for name in colours.NAMES),
    *(("shape", name) for name in shapes.NAMES),
    *(("icon", name) for name in icons.NAMES),
]
_CLASS_OF = {key: number for number, key in enumerate(_CLASSES)}
THIRDS = 3
# Room for a few more kinds; each may have its centre in the left, middle or right third of a cell, which tells the
# order of characters.
KINDS = 80
MARK_CLASSES = THIRDS * KINDS

_RESIZED_SHARE = 0.2
_WHOLE_WINDOWS_SHARE = 0.6
_DENSE_SHARE = 0.6
_FAR = 2**40
_KEPT = 60
_MOVE = CELL
_RARE = 3.0


@dataclass(frozen=True)
class Chat:
    """Token ids of the chat format around an image and its questions."""

    before_image: list[int]
    image_pad: int
    after_image: list[int]
    before_answer: list[int]
    end: int
    pad: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Chat:
        def ids(text: str) -> list[int]:
            return list(tokenizer.encode(text, add_special_tokens=False).ids)

        return cls(
            before_image=ids(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n<|vision_start|>"),
            image_pad=ids("<|image_pad|>")[0],
            after_image=ids("<|vision_end|>"),
            before_answer=ids("<|im_end|>\n<|im_start|>assistant\n"),
            end=ids("<|im_end|>")[0],
            pad=ids("<|endoftext|>")[0],
        )


class Collator:
    """Makes a `Batch` of samples whose images have one size in whole cells."""

    def __init__(self, tokenizer_folder: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
        self.chat = Chat.of(self.tokenizer)

    def batch(self, samples: Sequence[Sample], asked: Sequence[Sequence[Question]]) -> Batch:
        columns, rows = (side // CELL for side in samples[0].image.size)
        lines = [self._line(sample, questions, rows, columns) for sample, questions in zip(samples, asked, strict=True)]
        length = max(len(line.tokens) for line in lines)
        return Batch(
            images=torch.from_numpy(np.stack([np.asarray(sample.image) for sample in samples])),
            tokens=torch.stack([_padded(line.tokens, length, self.chat.pad) for line in lines]),
            positions=torch.stack([_padded_positions(line.positions, length) for line in lines], dim=1),
            branch=torch.stack([_padded(line.branch, length, -1) for line in lines]),
            targets=torch.stack([_padded(line.targets, length, -100) for line in lines]),
            marks=_marks([sample.marks for sample in samples], columns, rows),
            looks={kind: _pairs([line.looks[kind] for line in lines]) for kind in LOOKS},
            image_start=len(self.chat.before_image),
            families=tuple(sample.family for sample in samples),
        )

    def _line(self, sample: Sample, questions: Sequence[Question], rows: int, columns: int) -> _Line:
        chat = self.chat
        start = len(chat.before_image)
        line = _Line()
        line.add(chat.before_image, 0, range(start))
        places = [(start, start + row, start + column) for row in range(rows) for column in range(columns)]
        line.add([chat.image_pad] * len(places), 0, places)
        behind = start + max(rows, columns)
        line.add(chat.after_image, 0, range(behind, behind + len(chat.after_image)))
        behind += len(chat.after_image)
        grid = Grid(rows, columns, start)
        for number, question in enumerate(questions, 1):
            text, reply = (
                self.tokenizer.encode(one, add_special_tokens=False) for one in (question.text, question.answer)
            )
            asked = [*text.ids, *chat.before_answer]
            answer = [*reply.ids, chat.end]
            begin = len(line.tokens)
            line.add(asked + answer, number, range(behind, behind + len(asked) + len(answer)))
            first = len(line.tokens) - len(answer) - 1
            line.targets[first : first + len(answer)] = answer
            grounds = grounded(sample, question)
            line.add_looks(looks_of(grounds, grid, (begin, text), (first, reply)))
        line.add_looks(looks_beside(neighbours(sample), grid))
        return line


class _Line:
    """One image's prompt with its questions, token by token."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.positions: list[tuple[int, int, int]] = []
        self.branch: list[int] = []
        self.targets: list[int] = []
        self.looks: dict[str, list[tuple[int, int]]] = {kind: [] for kind in LOOKS}

    def add(self, tokens: list[int], branch: int, positions: Sequence[Any]) -> None:
        self.tokens += tokens
        self.branch += [branch] * len(tokens)
        self.positions += [place if isinstance(place, tuple) else (place, place, place) for place in positions]
        self.targets += [-100] * len(tokens)

    def add_looks(self, looks: Mapping[str, list[tuple[int, int]]]) -> None:
        for kind, pairs in looks.items():
            self.looks[kind] += pairs


class Stream(IterableDataset[Batch]):
    """Batches without end for the phase that `progress` (a shared tensor with one number from 0 to 1) tells.

    An image that is shown again comes some sixty batches later with its questions drawn anew or, where there are none,
    moved by some pixels.
    """

    def __init__(self, recipe: Recipe, tokenizer_folder: Path, progress: Tensor, seed: int) -> None:
        self.recipe = recipe
        self.tokenizer_folder = tokenizer_folder
        self.progress = progress
        self.seed = seed

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        number, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        collator = Collator(self.tokenizer_folder)
        kept: deque[tuple[Phase, int, list[Sample]]] = deque()
        while True:
            rng = Random(f"{self.seed}/{number}")
            phase = self.recipe.phase(float(self.progress))
            while kept and kept[0][0] != phase:
                kept.popleft()
            if len(kept) > _KEPT // stride:
                _, shown, samples = kept.popleft()
                if phase.cells_only:
                    samples = [moved(one, rng.randint(-_MOVE, _MOVE), rng.randint(-_MOVE, _MOVE)) for one in samples]
            else:
                shown, samples = 0, self._drawn(rng, phase)
            if shown + 1 < phase.shown:
                kept.append((phase, shown + 1, samples))
            asked = [rng.sample(one.questions, min(len(one.questions), self.recipe.questions)) for one in samples]
            yield collator.batch(samples, asked)
            number += stride

    def _drawn(self, rng: Random, phase: Phase) -> list[Sample]:
        """New images of one size, as many as fit into a batch with their questions."""
        columns, rows = draw_cells(rng, phase)
        text = 0 if phase.cells_only else 20 + round(18 * min(self.recipe.questions, 2.5 + 5 * phase.crowd))
        count = max(1, self.recipe.batch_tokens // (columns * rows + text))
        families = [*synthetic.FAMILIES, *self.recipe.harder]
        samples = []
        for _ in range(count):
            if phase.cells_only and rng.random() < _DENSE_SHARE:
                samples.append(dense_sample(columns * CELL, rows * CELL, rng))
            else:
                family, index = rng.choice(families), rng.randrange(_FAR)
                samples.append(render(family, "train", index, columns, rows, rng, phase.crowd))
        return samples


def loader(stream: Stream, workers: int) -> Iterator[Batch]:
    """Batches made by `workers` processes beside the trainer."""
    ahead = 4 if workers else None
    pinned = torch.cuda.is_available()
    return iter(DataLoader(stream, batch_size=None, num_workers=workers, prefetch_factor=ahead, pin_memory=pinned))


def draw_cells(rng: Random, phase: Phase) -> tuple[int, int]:
    """Columns and rows of an image in cells, mostly whole attention windows."""
    width, height = synthetic.random_size(rng, *phase.tokens)
    step = 4 if rng.random() < _WHOLE_WINDOWS_SHARE and phase.tokens[1] > 64 else 1
    columns, rows = (max(step, round(side / CELL / step) * step) for side in (width, height))
    if columns * rows > phase.tokens[1] * 1.1:
        shrink = math.sqrt(phase.tokens[1] / (columns * rows))
        columns, rows = max(1, int(columns * shrink)), max(1, int(rows * shrink))
    return columns, rows


def render(family: str, split: str, index: int, columns: int, rows: int, rng: Random, crowd: float = 1.0) -> Sample:
    """A sample of the given size in cells; now and then drawn a little larger or smaller and resized to it."""
    width, height = columns * CELL, rows * CELL
    scale = rng.uniform(0.94, 1.08) if rng.random() < _RESIZED_SHARE else 1.0
    drawn = (round(width * scale), round(height * scale))
    return fitted(synthetic.sample(family, split, index, size=drawn, crowd=rng.random() * crowd), columns, rows)


def fitted(sample: Sample, columns: int, rows: int) -> Sample:
    """The sample resized to whole cells, as the image processor does it, with its marks and its evidence."""
    size = (columns * CELL, rows * CELL)
    if sample.image.size == size:
        return sample
    across, down = size[0] / sample.image.width, size[1] / sample.image.height

    def stretched(box: synthetic.Box) -> synthetic.Box:
        return synthetic.Box(box.left * across, box.top * down, box.right * across, box.bottom * down)

    marks = tuple(replace(mark, box=stretched(mark.box)) for mark in sample.marks)
    questions = tuple(
        replace(question, evidence=tuple(stretched(box) for box in question.evidence)) for question in sample.questions
    )
    image = sample.image.resize(size, Image.Resampling.BICUBIC)
    return Sample(sample.name, sample.family, image, questions, marks)


def moved(sample: Sample, across: int, down: int) -> Sample:
    """The sample with its image moved right and down by so many pixels; what leaves at one side enters at the other."""
    width, height = sample.image.size
    image = Image.fromarray(np.roll(np.asarray(sample.image), (down, across), axis=(0, 1)))
    marks = []
    for mark in sample.marks:
        x, y = mark.box.centre
        right, lower = (x + across) % width - x, (y + down) % height - y
        box = synthetic.Box(
            mark.box.left + right, mark.box.top + lower, mark.box.right + right, mark.box.bottom + lower
        )
        marks.append(Mark(mark.kind, mark.value, box))
    return Sample(sample.name, sample.family, image, sample.questions, tuple(marks))


def mark_weights() -> Tensor:
    """(MARK_CLASSES,) weights of the auxiliary loss: colours, shapes and icons are rarer than characters."""
    weights = torch.ones(THIRDS, KINDS)
    weights[:, len(_CHARACTERS) :] = _RARE
    return weights.flatten()


def _marks(marks: Sequence[Sequence[Mark]], columns: int, rows: int) -> Tensor:
    found = []
    grid = Grid(rows, columns, start=0)
    for image, many in enumerate(marks):
        for mark in many:
            number = _CLASS_OF.get((mark.kind, mark.value.lower()))
            cell = grid.place(mark.box.centre)
            if number is not None and cell is not None:
                third = int(mark.box.centre[0] % CELL * THIRDS / CELL)
                found.append((image, cell, third * KINDS + number))
    return torch.tensor(found, dtype=torch.long).view(-1, 3)


def _pairs(lines: Sequence[Sequence[tuple[int, int]]]) -> Tensor:
    found = [(image, *pair) for image, pairs in enumerate(lines) for pair in sorted(set(pairs))]
    return torch.tensor(found, dtype=torch.long).view(-1, 3)


def _padded(values: list[int], length: int, filler: int) -> Tensor:
    return torch.tensor(values + [filler] * (length - len(values)), dtype=torch.long)


def _padded_positions(places: list[tuple[int, int, int]], length: int) -> Tensor:
    return torch.tensor(places + [(0, 0, 0)] * (length - len(places)), dtype=torch.long).T
