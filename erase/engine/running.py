"""A sequence inside the engine: its tokens, text and times, from submission to result. No model, no thread."""

from __future__ import annotations

import time
from collections.abc import Container
from dataclasses import dataclass, replace

from erase.engine.cache import CachePool, SequenceCache, planned_lengths
from erase.engine.prefill import PackedPrompt, StepRows
from erase.engine.scheduler import Candidate
from erase.engine.sequence import (
    CancelledError,
    DeadlineError,
    Handle,
    PhaseTimes,
    Result,
    Sequence,
    TokenEvent,
)
from erase.engine.text import TextStream
from erase.errors import EngineError
from erase.methods.base import Architecture, entering
from erase.methods.stage1_only import Stage1Only

FIRST_ROOM = 64
"""Tokens of an answer that a sequence has room for in its cache at first; doubled when they are used up."""


@dataclass(frozen=True)
class PromptPlan:
    """What a sequence's prompt will cost: rows that enter the decoder, and rows per layer cached after prefill."""

    entering: int
    cached: tuple[int, ...]

    @classmethod
    def of(cls, sequence: Sequence, architecture: Architecture) -> PromptPlan:
        preselection = sequence.preselection
        text = len(sequence.prompt.tokens) - preselection.tokens
        cuts = sequence.method.plan(preselection, architecture)
        vision = len(preselection.kept)
        return cls(
            entering=text + entering(vision, cuts),
            cached=planned_lengths(text=text, vision=vision, cuts=cuts, depth=architecture.depth),
        )


class RunningSequence:
    """State of one submitted sequence. `prefilled` gives it its prompt; then tokens are added until one is the last.

    When its cache is needed by others it is `preempted`, and prefilled again later; what it has answered stays.
    """

    def __init__(self, sequence: Sequence, text: TextStream, architecture: Architecture) -> None:
        self.sequence = sequence
        self.handle = Handle(sequence.id)
        self.tokens: list[int] = []
        self._text = text
        self.submitted = self.waits_since = time.monotonic()
        self.ended = False
        self._times: tuple[float, float, float] | None = None
        self._cache: SequenceCache | None = None
        self._prompt: PackedPrompt | None = None
        self.plan = PromptPlan.of(sequence, architecture)

    @property
    def candidate(self) -> Candidate:
        """What admission needs to know."""
        return Candidate(
            pruned_length=self.plan.entering,
            cache_rows=self._rows_with(self._first_room),
            alone=self.sequence.alone,
        )

    @property
    def most_cache_rows(self) -> int:
        """Rows of the pool that it takes at most."""
        return self._rows_with(self.sequence.longest_answer)

    @property
    def cached_tokens(self) -> float:
        """Tokens in the key/value cache, averaged over layers; 0 before prefill."""
        if self._prompt is None:
            return 0.0
        lengths = self._prompt.cache.lengths
        return sum(lengths) / len(lengths)

    def take_cache(self, pool: CachePool) -> SequenceCache:
        """Take rows of the pool for the prompt and the first tokens of the answer.

        Raises:
            MemoryError: the pool has too few; admission must not let that happen.
        """
        self._cache = SequenceCache.create(pool, self.plan.cached, self._first_room)
        if self._cache is None:
            raise MemoryError(f"the pool of caches has {pool.free} rows left, {self.candidate.cache_rows} are needed")
        return self._cache

    def reason_to_end(self, now: float) -> EngineError | None:
        """Why it must not go on, if so: cancelled, or past its deadline; `now` is `time.monotonic()` seconds."""
        if self.handle.cancelled:
            return CancelledError("the sequence was cancelled")
        if self.sequence.deadline is not None and now >= self.sequence.deadline:
            return DeadlineError("the deadline passed before the answer was finished")
        return None

    def deliver(self, outcome: Result | EngineError) -> None:
        """Its end, told to whoever waits."""
        self.ended = True
        self.handle.put(outcome)

    def end(self, outcome: Result | EngineError) -> None:
        """Its end: told, and all that it holds given back."""
        try:
            self.free_cache()
        finally:
            self.deliver(outcome)

    def free_cache(self) -> None:
        """Give back all that it holds; may be called again."""
        if self._cache is not None:
            self._cache.free()
        self._cache = self._prompt = None

    def grow_cache(self) -> bool:
        """Make room for one more token; False if the pool is full."""
        cache = self._rows().cache
        if cache.room > 0:
            return True
        left = self.sequence.longest_answer - len(self.tokens) + 1
        return cache.grow(min(left, max(FIRST_ROOM, len(self.tokens)))) or cache.grow(1)

    def preempted(self) -> None:
        """Its cache goes to others. It waits again and will keep the vision tokens that it kept."""
        self.sequence = replace(self.sequence, frozen_cuts=self._rows().done)
        self.waits_since = time.monotonic()
        self.free_cache()

    def prefilled(self, prompt: PackedPrompt, *, admitted: float, encoded: float) -> None:
        """Take over the prompt after prefill; the times are `time.monotonic()` seconds."""
        self._prompt = prompt
        prompt.rows.encoded = None  # the unpruned features have done their work
        if self._times is None:  # else it was preempted: the first prefill counts
            self._cache_lengths = prompt.cache.lengths
            self._times = admitted, encoded, time.monotonic()

    def last_token(self) -> StepRows:
        """The newest token as input of the next step."""
        position = self.sequence.prompt.next_position + len(self.tokens) - 1
        return StepRows(self._rows().cache, (self.tokens[-1],), position)

    def given_tokens(self, tokens: tuple[int, ...], first: int = 0) -> StepRows:
        """Tokens of an answer that is given, from number `first` on, as input of one step."""
        return StepRows(self._rows().cache, tokens[first:], self.sequence.prompt.next_position + first)

    def advance(self, token: int, end_tokens: Container[int]) -> tuple[TokenEvent, str | None]:
        """Add a token: the event that shows what it completes, and why the sequence ends with it, if it does."""
        self.tokens.append(token)
        at_end = token in end_tokens
        delta = "" if at_end else self._text.push(token)
        reason = None
        if at_end or self._text.stopped:
            reason = "stop"
        elif len(self.tokens) >= self.sequence.sampling.max_tokens:
            reason = "length"
        if reason:
            delta += self._text.finish()
            if self._text.stopped:
                reason = "stop"
        return TokenEvent((token,), delta), reason

    def result(self, reason: str, log_likelihood: float | None = None) -> Result:
        """The finished sequence."""
        prompt = self._rows()
        assert self._times is not None, "not prefilled yet"  # noqa: S101
        admitted, encoded, prefilled = self._times
        first = prompt.rows.done[0] if prompt.rows.done else None
        entered = self.sequence.preselection.kept if first is None or first.layer > 0 else first.kept
        return Result(
            tokens=tuple(self.tokens),
            text=self._text.text,
            finish_reason=reason,
            times=PhaseTimes(
                queue=admitted - self.submitted,
                encode=encoded - admitted,
                prefill=prefilled - encoded,
                decode=time.monotonic() - prefilled,
                first_token=prefilled - self.submitted,
            ),
            cuts=prompt.cuts,
            entered=entered,
            kept=prompt.rows.survivors.cpu(),
            cache_lengths=self._cache_lengths,
            stage2_skipped=isinstance(self.sequence.method, Stage1Only),
            log_likelihood=log_likelihood,
        )

    @property
    def _first_room(self) -> int:
        """Room for what is answered at once: a given answer, what was emitted before, or the first tokens."""
        given = max(len(self.sequence.score_only), len(self.sequence.forced_prefix), len(self.tokens))
        return min(self.sequence.longest_answer, max(FIRST_ROOM, given + 1))

    def _rows_with(self, room: int) -> int:
        return sum(self.plan.cached) + room * len(self.plan.cached)

    def _rows(self) -> PackedPrompt:
        assert self._prompt is not None, "not prefilled yet"  # noqa: S101
        return self._prompt
