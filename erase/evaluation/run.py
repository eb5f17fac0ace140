"""Asking every question with every policy, image by image, so that each image is encoded once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from erase.asking import in_turn, naming, submit
from erase.engine import Engine, EngineLimits, Handle
from erase.evaluation.answers import Answer, AnswerFile, Part, model_key, record_keys
from erase.evaluation.contestants import Contestant
from erase.methods import method_for
from erase.metrics import score
from erase.models.loading import LoadedModel
from erase.models.prompt import PreparedImage, prepare_images, prepare_prompt
from erase.pictures import open_picture
from erase.records import Record
from erase.trace import layer_average_retention

ALL = Part()
_AT_A_TIME = 16


@dataclass(frozen=True)
class Step:
    """How far an evaluation is: answers there, of how many."""

    done: int
    total: int


def evaluate(
    loaded: LoadedModel,
    records: Sequence[Record],
    contestants: Sequence[Contestant],
    folder: Path,
    *,
    part: Part = ALL,
    restart: bool = False,
    progress: Callable[[Step], None] = lambda step: None,
) -> dict[tuple[int, str], Answer]:
    """Greedy answers to all records by all contestants; what stands in the folder already is not asked again.

    Args:
        loaded: the model.
        records: the questions; those about the same images best come in a row.
        contestants: policies; equal ones are asked once.
        folder: where a file of JSON lines grows with every answer.
        part: which images to ask about; all parts can run at the same time, each in a process of its own.
        restart: whether to forget what the folder holds, of all parts.
        progress: called after every answer.

    Returns:
        Answers by record number and `Contestant.key`, to the part's questions.

    Raises:
        EraseError: a file belongs to another model.
        InputError: an image that cannot be read or a prompt too long for the model; the message names the record.
        EngineError: the model failed.
    """
    policies = list({contestant.key: contestant for contestant in contestants}.values())
    images = {paths: number for number, paths in enumerate(dict.fromkeys(record.images for record in records))}
    asked_about = [number for number, record in enumerate(records) if part.has(images[record.images])]
    records_by = record_keys(records)
    with AnswerFile(folder, model_key(loaded), part, restart=restart) as answers:
        found = {
            (number, own.key): answers.found[records_by[number], own.key]
            for number in asked_about
            for own in policies
            if (records_by[number], own.key) in answers.found
        }
        total = len(asked_about) * len(policies)
        progress(Step(len(found), total))
        with Engine(loaded, EngineLimits(min_vision_tokens=0)) as engine:
            asked = _submitted(loaded, engine, records, asked_about, policies, set(found))
            for number, key, answer in in_turn(asked, _AT_A_TIME, lambda one: _marked(loaded, records, one)):
                answers.add(records_by[number], key, answer)
                found[number, key] = answer
                progress(Step(len(found), total))
        return found


@dataclass(frozen=True, eq=False)
class _Asked:
    """A question on its way."""

    number: int
    key: str
    handle: Handle
    tokens: int
    given: int
    kept: int
    cells: Tensor | None


def _submitted(
    loaded: LoadedModel,
    engine: Engine,
    records: Sequence[Record],
    asked_about: Sequence[int],
    policies: Sequence[Contestant],
    known: Set[tuple[int, str]],
) -> Iterator[_Asked]:
    for paths, numbers_of in groupby(asked_about, key=lambda number: records[number].images):
        questions = list(numbers_of)
        missing = [(own, [number for number in questions if (number, own.key) not in known]) for own in policies]
        missing = [(own, numbers) for own, numbers in missing if numbers]
        if not missing:
            continue
        with naming(records[questions[0]]):
            pictures = [open_picture(path) for path in paths]
            whole = prepare_images(loaded, pictures)
        tokens = sum(image.tokens for image in whole)
        prompts = {number: prepare_prompt(loaded, records[number].question, whole) for number in questions}
        cells = {number: evidence_cells(records[number], pictures[0].size, whole[0]) for number in questions if whole}
        for own, numbers in missing:
            method = method_for(own.policy)
            resized = method.image_scale != 1.0
            with naming(records[numbers[0]]):
                images = prepare_images(loaded, pictures, method.image_scale) if resized else whole
            selection = method.preselect([image.pixels for image in images])
            for number in numbers:
                record = records[number]
                prompt = prepare_prompt(loaded, record.question, images) if resized else prompts[number]
                handle = submit(engine, loaded, record, prompt, method, selection)
                evidence = None if resized else cells.get(number)
                yield _Asked(number, own.key, handle, tokens, selection.tokens, len(selection.kept), evidence)


def _marked(loaded: LoadedModel, records: Sequence[Record], asked: _Asked) -> tuple[int, str, Answer]:
    result, record = asked.handle.result(), records[asked.number]
    share = asked.given / asked.tokens if asked.tokens else 1.0
    depth = loaded.adapter.depth
    evidence = None
    if asked.cells is not None and len(asked.cells):
        evidence = float(torch.isin(asked.cells, result.kept).float().mean())
    answer = Answer(
        text=result.text,
        score=score(record.metric, result.text, record.answers),
        final=len(result.kept) / asked.tokens if asked.tokens else 1.0,
        layer_average=share * layer_average_retention(asked.given, asked.kept, result.cuts, depth),
        evidence=evidence,
    )
    return asked.number, asked.key, answer


def evidence_cells(record: Record, size: tuple[int, int], image: PreparedImage) -> Tensor | None:
    """int64: the vision tokens that the record's evidence lies in; None where it names none, or several tiles.

    Args:
        record: whose boxes are in pixels of the picture.
        size: width and height of the picture.
        image: the picture as the model sees it.
    """
    if not record.evidence or len(record.images) != 1 or image.pixels.grid[0] > 1:
        return None
    rows, columns = image.cell_grid
    marked = torch.zeros(rows, columns, dtype=torch.bool)
    for left, top, right, bottom in record.evidence:
        across = _cells_between(left, right, size[0], columns)
        marked[_cells_between(top, bottom, size[1], rows), across] = True
    return marked.flatten().nonzero().squeeze(1)


def _cells_between(begin: float, end: float, side: int, cells: int) -> slice:
    """Which of the cells along a side lie between two places on it, in pixels; what lies outside does not count."""
    if end < 0 or begin > side:
        return slice(0)
    first = min(cells - 1, int(max(begin, 0) * cells / side))
    last = int(min(end, side) * cells / side - 1e-6)
    return slice(first, max(first, last) + 1)
