"""Asking every question with every policy, image by image, so that each image is encoded once for all of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from erase.engine import ContextLengthError, Engine, EngineLimits, Handle, SamplingParams
from erase.engine import Sequence as EngineSequence
from erase.errors import InputError
from erase.evaluation.answers import Answer, AnswerFile, model_key, record_keys
from erase.evaluation.contestants import Contestant
from erase.methods import method_for
from erase.metrics import score
from erase.models.loading import LoadedModel
from erase.models.prompt import PreparedImage, prepare_images, prepare_prompt
from erase.pictures import open_picture
from erase.records import Record
from erase.trace import layer_average_retention

BEYOND_THE_ANSWER = 8
"""Tokens that an answer may have more than the longest one accepted."""
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
    file: Path,
    *,
    restart: bool = False,
    progress: Callable[[Step], None] = lambda step: None,
) -> dict[tuple[int, str], Answer]:
    """Greedy answers to all records by all contestants; what stands in `file` already is not asked again.

    Args:
        loaded: the model.
        records: the questions; those about the same images best come in a row.
        contestants: policies; equal ones are asked once.
        file: JSON lines that grow with every answer.
        restart: whether to forget what the file holds.
        progress: called after every answer.

    Returns:
        Answers by record number and `Contestant.key`.

    Raises:
        EraseError: the file belongs to another model.
        InputError: an image that cannot be read or a prompt too long for the model; the message names the record.
        EngineError: the model failed.
    """
    policies = list({contestant.key: contestant for contestant in contestants}.values())
    records_by = record_keys(records)
    with AnswerFile(file, model_key(loaded), restart=restart) as answers:
        found = {
            (number, own.key): answers.found[record, own.key]
            for number, record in enumerate(records_by)
            for own in policies
            if (record, own.key) in answers.found
        }
        total = len(records) * len(policies)
        progress(Step(len(found), total))
        with Engine(loaded, EngineLimits(min_vision_tokens=0)) as engine:
            for number, key, answer in _asked(loaded, engine, records, policies, set(found)):
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


def _asked(
    loaded: LoadedModel,
    engine: Engine,
    records: Sequence[Record],
    policies: Sequence[Contestant],
    known: Set[tuple[int, str]],
) -> Iterator[tuple[int, str, Answer]]:
    waiting: deque[_Asked] = deque()
    for asked in _submitted(loaded, engine, records, policies, known):
        waiting.append(asked)
        if len(waiting) == _AT_A_TIME:
            yield _marked(loaded, records, waiting.popleft())
    while waiting:
        yield _marked(loaded, records, waiting.popleft())


def _submitted(
    loaded: LoadedModel,
    engine: Engine,
    records: Sequence[Record],
    policies: Sequence[Contestant],
    known: Set[tuple[int, str]],
) -> Iterator[_Asked]:
    for paths, numbered in groupby(enumerate(records), key=lambda pair: pair[1].images):
        questions = list(numbered)
        missing = [(number, own) for number, _ in questions for own in policies if (number, own.key) not in known]
        if not missing:
            continue
        pictures = [open_picture(path) for path in paths]
        whole = prepare_images(loaded, pictures)
        tokens = sum(image.tokens for image in whole)
        for own in policies:
            numbers = [number for number, contestant in missing if contestant is own]
            if not numbers:
                continue
            method = method_for(own.policy)
            images = whole if method.image_scale == 1.0 else prepare_images(loaded, pictures, method.image_scale)
            selection = method.preselect([image.pixels for image in images])
            for number in numbers:
                record = records[number]
                sequence = EngineSequence(
                    id=record.name,
                    prompt=prepare_prompt(loaded, record.question, images),
                    method=method,
                    preselection=selection,
                    sampling=SamplingParams(max_tokens=_longest(loaded, record) + BEYOND_THE_ANSWER),
                )
                try:
                    handle = engine.submit(sequence)
                except ContextLengthError as error:
                    raise InputError(f"{record.name}: {error}") from error
                cells = evidence_cells(record, pictures[0].size, whole[0]) if images is whole and pictures else None
                yield _Asked(number, own.key, handle, tokens, selection.tokens, len(selection.kept), cells)


def _longest(loaded: LoadedModel, record: Record) -> int:
    return max(len(loaded.text_tokenizer(text, add_special_tokens=False).input_ids) for text in record.answers)


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
        across, down = columns / size[0], rows / size[1]
        first, last = int(left * across), min(columns - 1, int(right * across - 1e-6))
        upper, lower = int(top * down), min(rows - 1, int(bottom * down - 1e-6))
        marked[upper : lower + 1, first : last + 1] = True
    return marked.flatten().nonzero().squeeze(1)
