"""Asking records through the engine, many at a time, and marking the answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from erase.asking import images_of, in_turn, submit
from erase.calibration.search import ImageStats
from erase.engine import Engine, EngineLimits, Handle
from erase.methods.base import Architecture, Cut, Method, Preselection
from erase.methods.binned import BinnedMethod
from erase.models.loading import LoadedModel
from erase.models.prompt import prepare_prompt
from erase.records import Record


class StageOneMethod(BinnedMethod):
    """Revision 1 without its second stage."""

    name = "erase-binned-stage1"

    def cuts(self, preselection: Preselection, architecture: Architecture) -> tuple[Cut, ...]:
        return ()


@dataclass(frozen=True)
class Marked:
    """A record that was asked: its number, whether the answer was right, and its images."""

    record: int
    right: bool
    images: tuple[ImageStats, ...]


class Examiner:
    """Puts records to a model. Images are prepared while earlier records run, and let go when theirs is answered."""

    def __init__(self, loaded: LoadedModel, records: Sequence[Record], engine: Engine, at_a_time: int) -> None:
        self._loaded = loaded
        self._records = records
        self._engine = engine
        self._at_a_time = at_a_time

    def ask(self, tasks: Iterable[tuple[int, Method]]) -> Iterator[Marked]:
        """Greedy answers to (record number, method), in order.

        Raises:
            InputError: an image that cannot be read or a prompt too long for the model; the message names the record.
            EngineError: the model failed.
        """
        asked = (self._submit(record, method) for record, method in tasks)
        return in_turn(asked, self._at_a_time, lambda one: self._mark(*one))

    def _submit(self, number: int, method: Method) -> tuple[int, Preselection, Handle]:
        record, loaded = self._records[number], self._loaded
        images = images_of(loaded, record)
        preselection = method.preselect([image.pixels for image in images])
        prompt = prepare_prompt(loaded, record.question, images)
        return number, preselection, submit(self._engine, loaded, record, prompt, method, preselection)

    def _mark(self, number: int, preselection: Preselection, handle: Handle) -> Marked:
        right = self._records[number].accepts(handle.result().text)
        return Marked(number, right, tuple(ImageStats(image.tokens, image.complexity) for image in preselection.images))


@contextmanager
def examiner(loaded: LoadedModel, records: Sequence[Record]) -> Iterator[Examiner]:
    """Inside, the model answers; afterwards its engine has stopped."""
    limits = EngineLimits()
    with Engine(loaded, limits) as engine:
        yield Examiner(loaded, records, engine, at_a_time=2 * limits.max_running)
