"""Asking records through the engine: what calibration and evaluation have in common."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from erase.engine import ContextLengthError, Engine, Handle, SamplingParams, Sequence
from erase.errors import InputError
from erase.methods.base import Method, Preselection
from erase.metrics import Metric
from erase.models.loading import LoadedModel
from erase.models.prompt import PreparedImage, PreparedPrompt, prepare_images
from erase.pictures import open_picture
from erase.records import Record

Asked = TypeVar("Asked")
Outcome = TypeVar("Outcome")
BEYOND_THE_ANSWER: dict[Metric, int] = {"exact": 8, "relaxed": 8, "anls": 64, "vqa": 8, "contains": 64, "words": 64}
"""Tokens that an answer may have more than the longest one accepted. Where only the same text or number is right, a
longer one is wrong already; where it may stand in a sentence, or be near enough, a cut would change the score."""


def submit(
    engine: Engine,
    loaded: LoadedModel,
    record: Record,
    prompt: PreparedPrompt,
    method: Method,
    preselection: Preselection,
) -> Handle:
    """Puts a record to the engine, greedily.

    Raises:
        InputError: the prompt is too long for the model; the message names the record.
    """
    tokenizer = loaded.text_tokenizer
    longest = max(len(tokenizer(text, add_special_tokens=False).input_ids) for text in record.answers)
    sampling = SamplingParams(max_tokens=longest + BEYOND_THE_ANSWER[record.metric])
    with naming(record):
        return engine.submit(Sequence(record.name, prompt, method, preselection, sampling))


def images_of(loaded: LoadedModel, record: Record) -> tuple[PreparedImage, ...]:
    """The record's images as the model sees them.

    Raises:
        InputError: one cannot be read, or the model cannot take it; the message names the record.
    """
    with naming(record):
        return prepare_images(loaded, [open_picture(path) for path in record.images])


@contextmanager
def naming(record: Record) -> Iterator[None]:
    """Errors about what the record asks for become `InputError`s that name it."""
    try:
        yield
    except (InputError, ContextLengthError) as error:
        raise InputError(f"{record.name}: {error}") from error


def in_turn(asked: Iterable[Asked], at_a_time: int, finish: Callable[[Asked], Outcome]) -> Iterator[Outcome]:
    """Finishes what is asked in its order, while up to `at_a_time` are on their way."""
    waiting: deque[Asked] = deque()
    for one in asked:
        waiting.append(one)
        if len(waiting) == at_a_time:
            yield finish(waiting.popleft())
    while waiting:
        yield finish(waiting.popleft())
