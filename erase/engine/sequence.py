"""What goes into the engine and what comes out: sequences, handles, token events, results, errors."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from erase.errors import EngineError, InputError
from erase.methods.base import Cut, Method, Preselection
from erase.models.prompt import PreparedPrompt
from erase.trace import CutTrace

Priority = Literal["interactive", "batch"]


class ContextLengthError(InputError):
    """Prompt and answer together do not fit into the model's context."""


class CancelledError(EngineError):
    """The sequence was cancelled through its handle."""


class DeadlineError(EngineError):
    """The sequence's deadline passed."""


class EngineStoppedError(EngineError):
    """The engine stopped or failed before the sequence was finished."""


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens. `temperature` 0 is greedy; `seed` fixes every draw whatever else runs in the batch.

    Raises:
        InputError: a value is out of its range.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise InputError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if not 0.0 <= self.temperature < math.inf:
            raise InputError(f"temperature must be finite and not negative, got {self.temperature}")
        if not 0.0 < self.top_p <= 1.0:
            raise InputError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if "" in self.stop:
            raise InputError("a stop string must not be empty")


@dataclass(frozen=True, eq=False)
class Sequence:
    """One question for the engine, with stage 1 already done (`preselection`: it needs only pixels)."""

    id: str
    prompt: PreparedPrompt
    method: Method
    preselection: Preselection
    sampling: SamplingParams = SamplingParams()
    deadline: float | None = None
    """`time.monotonic()` seconds."""
    attempt: int = 1
    """From the second attempt on the sequence runs alone."""
    forced_prefix: tuple[int, ...] = ()
    """Tokens that an earlier attempt already emitted: repeated, not emitted again."""
    score_only: tuple[int, ...] = ()
    """Tokens of a given answer whose log-likelihood is wanted instead of a generated one."""
    priority: Priority = "interactive"
    frozen_cuts: tuple[CutTrace, ...] = ()
    """The cuts of an earlier prefill of the same prompt: made again as they were."""

    @property
    def alone(self) -> bool:
        """Whether the sequence shares the engine with nobody."""
        return self.attempt > 1

    @property
    def longest_answer(self) -> int:
        """Tokens that may follow the prompt."""
        return len(self.score_only) or self.sampling.max_tokens


@dataclass(frozen=True)
class TokenEvent:
    """New tokens and the text that they complete (may be empty while a character or stop string is unfinished)."""

    ids: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class PhaseTimes:
    """Seconds spent in each phase; `first_token` counts from submission."""

    queue: float
    encode: float
    prefill: float
    decode: float
    first_token: float


@dataclass(frozen=True, eq=False)
class Result:
    """A finished sequence."""

    tokens: tuple[int, ...]
    text: str
    finish_reason: str
    """`stop` (end token or stop string) or `length`."""
    times: PhaseTimes
    cuts: tuple[Cut, ...]
    entered: Tensor
    """Vision tokens that entered the decoder: sorted indices into the unpruned vision tokens."""
    kept: Tensor
    """Vision tokens that survived all cuts: sorted indices into the unpruned vision tokens."""
    cache_lengths: tuple[int, ...]
    """Valid tokens per layer right after prefill."""
    stage2_skipped: bool = False
    """Whether the method's cuts were left out because the prompt has few vision tokens."""
    log_likelihood: float | None = None
    """Sum of the log-probabilities of `score_only`, nats."""


class Handle:
    """The caller's end of a submitted sequence; safe to use from any thread."""

    def __init__(self, sequence_id: str) -> None:
        self.sequence_id = sequence_id
        self._outbox: queue.SimpleQueue[TokenEvent | Result | EngineError] = queue.SimpleQueue()
        self._cancelled = threading.Event()
        self._outcome: Result | EngineError | None = None

    def events(self) -> Iterator[TokenEvent]:
        """Token events as they come, until the sequence ends; then `result` returns at once."""
        while self._outcome is None:
            item = self._outbox.get()
            if isinstance(item, TokenEvent):
                yield item
            else:
                self._outcome = item
                self._outbox.put(item)  # wakes every other thread that waits

    def result(self) -> Result:
        """Wait for the end. Raises the `EngineError` that ended the sequence instead of a result."""
        for _ in self.events():
            pass
        if isinstance(self._outcome, Result):
            return self._outcome
        assert self._outcome is not None  # noqa: S101
        raise self._outcome

    def cancel(self) -> None:
        """Ask the engine to stop the sequence at its next step; harmless when it has ended."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled.is_set()

    def put(self, item: TokenEvent | Result | EngineError) -> None:
        """The engine's side: deliver an event or the outcome."""
        self._outbox.put(item)
