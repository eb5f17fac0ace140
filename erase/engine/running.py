"""A sequence inside the engine: its tokens, text and times, from submission to result. No model, no thread."""

from __future__ import annotations

import time
from collections.abc import Container

from erase.engine.prefill import PackedPrompt, StepRows
from erase.engine.scheduler import Candidate
from erase.engine.sequence import Handle, PhaseTimes, Result, Sequence, TokenEvent
from erase.engine.text import TextStream


class RunningSequence:
    """State of one submitted sequence. `prefilled` gives it its prompt; then tokens are added until one is the last."""

    def __init__(self, sequence: Sequence, text: TextStream) -> None:
        self.sequence = sequence
        self.handle = Handle(sequence.id)
        self.tokens: list[int] = []
        self._text = text
        self._submitted = time.monotonic()
        self._prompt: PackedPrompt | None = None

    @property
    def candidate(self) -> Candidate:
        """What admission needs to know."""
        return Candidate(self.sequence.pruned_length, self.sequence.alone)

    @property
    def cached_tokens(self) -> float:
        """Tokens in the key/value cache, averaged over layers; 0 before prefill."""
        if self._prompt is None:
            return 0.0
        lengths = self._prompt.cache.lengths
        return sum(lengths) / len(lengths)

    def prefilled(self, prompt: PackedPrompt, *, admitted: float, encoded: float) -> None:
        """Take over the prompt after prefill; the times are `time.monotonic()` seconds."""
        self._prompt = prompt
        self._cache_lengths = prompt.cache.lengths
        self._admitted, self._encoded, self._prefilled = admitted, encoded, time.monotonic()

    def reserve(self) -> None:
        """Make room in the cache for the longest answer."""
        self._rows().cache.reserve(self.sequence.longest_answer)

    def last_token(self) -> StepRows:
        """The newest token as input of the next step."""
        position = self.sequence.prompt.next_position + len(self.tokens) - 1
        return StepRows(self._rows().cache, (self.tokens[-1],), position)

    def given_tokens(self, tokens: tuple[int, ...]) -> StepRows:
        """The first tokens of an answer that is given, as input of one step."""
        return StepRows(self._rows().cache, tokens, self.sequence.prompt.next_position)

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
        return Result(
            tokens=tuple(self.tokens),
            text=self._text.text,
            finish_reason=reason,
            times=PhaseTimes(
                queue=self._admitted - self._submitted,
                encode=self._encoded - self._admitted,
                prefill=self._prefilled - self._encoded,
                decode=time.monotonic() - self._prefilled,
                first_token=self._prefilled - self._submitted,
            ),
            cuts=prompt.cuts,
            kept=prompt.rows.survivors.cpu(),
            cache_lengths=self._cache_lengths,
            log_likelihood=log_likelihood,
        )

    def _rows(self) -> PackedPrompt:
        assert self._prompt is not None, "not prefilled yet"  # noqa: S101
        return self._prompt
