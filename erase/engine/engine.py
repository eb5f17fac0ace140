"""The engine's thread: admits sequences, prefills, decodes all running ones together, delivers tokens and results."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

from erase.engine.prefill import encode_images, prefill, step
from erase.engine.running import RunningSequence
from erase.engine.sampling import next_token
from erase.engine.scheduler import admit
from erase.engine.sequence import (
    CancelledError,
    ContextLengthError,
    DeadlineError,
    EngineError,
    EngineStoppedError,
    Handle,
    Sequence,
)
from erase.engine.text import TextStream
from erase.errors import InputError
from erase.models.loading import LoadedModel

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class EngineLimits:
    """How much runs at once: sequences in decode, and pruned prompt tokens per prefill."""

    max_running: int = 8
    max_prefill_tokens: int = 16_384
    context_length: int | None = None
    """Cap below the model's own."""

    def __post_init__(self) -> None:
        if self.max_running < 1:
            raise InputError(f"max_running must be at least 1, or nothing ever runs, got {self.max_running}")


class EngineObserver(Protocol):
    """Hears of every step, from the engine's thread; must return quickly."""

    def stepped(self, phase: str, batch: int) -> None:
        """A step ended: `phase` is prefill or decode, with `batch` sequences in it."""

    def load_changed(self, running: int, waiting: int, cache_tokens: float) -> None:
        """Sequences running and waiting now, and tokens in the key/value caches, averaged over layers."""


class _Silent:
    def stepped(self, phase: str, batch: int) -> None: ...

    def load_changed(self, running: int, waiting: int, cache_tokens: float) -> None: ...


class Engine:
    """Owns a model on one thread. Submit from any thread; results come through handles.

    A failure inside a shared step is retried sequence by sequence, so that only the culprit fails.
    """

    def __init__(
        self, loaded: LoadedModel, limits: EngineLimits | None = None, observer: EngineObserver | None = None
    ) -> None:
        self._loaded = loaded
        self._limits = limits or EngineLimits()
        self._observer: EngineObserver = observer or _Silent()
        self._waiting: deque[RunningSequence] = deque()
        self._running: list[RunningSequence] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._progress = time.monotonic()
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)

    @property
    def context_length(self) -> int:
        """Longest unpruned prompt and answer together, in tokens."""
        return min(self._loaded.context_length, self._limits.context_length or self._loaded.context_length)

    @property
    def stalled_for(self) -> float:
        """Seconds since the engine last finished a step or was idle; small while it makes progress."""
        return time.monotonic() - self._progress if self._busy() else 0.0

    @property
    def alive(self) -> bool:
        """Whether sequences can be submitted."""
        return self._thread.is_alive() and not self._stopping

    def __enter__(self) -> Self:
        """Starts it; leaving the block stops it."""
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its current step; unfinished sequences end with `EngineStoppedError`."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def submit(self, sequence: Sequence) -> Handle:
        """Queue a sequence.

        Raises:
            ContextLengthError: prompt and answer do not fit into the context.
            EngineStoppedError: the engine has not been started, has stopped or has failed.
        """
        if len(sequence.prompt.tokens) + sequence.longest_answer > self.context_length:
            raise ContextLengthError(
                f"the prompt has {len(sequence.prompt.tokens)} tokens and up to {sequence.longest_answer} more "
                f"were asked for, but the context holds {self.context_length}: use smaller images, a shorter prompt "
                "or fewer max_tokens"
            )
        entry = RunningSequence(sequence, TextStream(self._loaded.tokenizer, sequence.sampling.stop))
        with self._changed:
            if not self.alive:
                raise EngineStoppedError("the engine is not running")
            if not self._busy():
                self._progress = time.monotonic()  # idle until now, so not stalled
            self._waiting.append(entry)
            self._changed.notify()
        return entry.handle

    def _busy(self) -> bool:
        return bool(self._running or self._waiting)

    def _loop(self) -> None:
        try:
            while True:
                with self._changed:
                    while not self._busy() and not self._stopping:
                        self._changed.wait()
                    if self._stopping:
                        break
                self._drop_ended()
                self._prefill_next()
                self._decode()
                self._report()
        except BaseException:
            log.exception("the engine failed")
            raise
        finally:
            with self._changed:
                self._stopping = True
                left = [*self._running, *self._waiting]
                self._running.clear()
                self._waiting.clear()
            for entry in left:
                entry.handle.put(EngineStoppedError("the engine stopped before the answer was finished"))
            self._report()

    def _report(self) -> None:
        self._progress = time.monotonic()
        tokens = sum(entry.cached_tokens for entry in self._running)
        self._observer.load_changed(len(self._running), len(self._waiting), tokens)

    def _drop_ended(self) -> None:
        now = time.monotonic()

        def ended(entry: RunningSequence) -> EngineError | None:
            if entry.handle.cancelled:
                return CancelledError("the sequence was cancelled")
            if entry.sequence.deadline is not None and now >= entry.sequence.deadline:
                return DeadlineError("the deadline passed before the answer was finished")
            return None

        with self._changed:
            entries = [*self._running, *self._waiting]
            errors = {id(entry): error for entry in entries if (error := ended(entry))}
            self._running = [entry for entry in self._running if id(entry) not in errors]
            self._waiting = deque(entry for entry in self._waiting if id(entry) not in errors)
        for entry in entries:
            if id(entry) in errors:
                entry.handle.put(errors[id(entry)])

    def _prefill_next(self) -> None:
        with self._changed:
            count = admit(
                [entry.candidate for entry in self._waiting],
                [entry.candidate for entry in self._running],
                self._limits.max_running,
                self._limits.max_prefill_tokens,
            )
            batch = [self._waiting.popleft() for _ in range(count)]
            self._running += batch
        for entry, logits in self._isolating("prefill", batch, self._prefill):
            self._guarding("prefill", entry, partial(self._begin, entry, logits))

    def _decode(self) -> None:
        for entry, logits in self._isolating("decode", list(self._running), self._decode_step):
            self._guarding("decode", entry, partial(self._choose, entry, logits))

    def _isolating(
        self, phase: str, batch: list[RunningSequence], run: Callable[[list[RunningSequence]], list[T]]
    ) -> list[T]:
        """Run a shared step; when it fails, run it sequence by sequence and end only those that fail again."""
        if not batch:
            return []
        try:
            outcome = run(batch)
        except Exception as error:
            if len(batch) == 1:
                self._fail(phase, batch[0], error)
                return []
            log.warning("%s of %d sequences failed, running them one by one: %r", phase, len(batch), error)
        else:
            self._observer.stepped(phase, len(batch))
            return outcome
        # Outside of `except`: the error's traceback would keep the failed step's tensors.
        return [item for entry in batch for item in self._isolating(phase, [entry], run)]

    def _guarding(self, phase: str, entry: RunningSequence, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:
            self._fail(phase, entry, error)

    def _fail(self, phase: str, entry: RunningSequence, error: Exception) -> None:
        log.error("%s of sequence %s failed", phase, entry.sequence.id, exc_info=error)
        if entry in self._running:
            self._running.remove(entry)
        entry.handle.put(EngineError(f"{phase} failed: {type(error).__name__}"))

    def _prefill(self, batch: list[RunningSequence]) -> list[tuple[RunningSequence, Tensor]]:
        adapter, device = self._loaded.adapter, self._loaded.device
        start = time.monotonic()
        sequences = [entry.sequence for entry in batch]
        features = encode_images(adapter, sequences, device)
        self._synchronize()
        encoded = time.monotonic()
        prompts, logits = prefill(adapter, sequences, features, device)
        self._synchronize()
        for entry, prompt in zip(batch, prompts, strict=True):
            entry.prefilled(prompt, admitted=start, encoded=encoded)
        return list(zip(batch, logits, strict=True))

    def _begin(self, entry: RunningSequence, logits: Tensor) -> None:
        """After prefill: take the first token, repeat a forced prefix, or score a given answer."""
        sequence = entry.sequence
        entry.reserve()
        if sequence.score_only:
            self._finish(entry, "stop", self._log_likelihood(entry, logits))
        elif sequence.forced_prefix:
            self._replay(entry)
        else:
            self._choose(entry, logits)

    def _decode_step(self, batch: list[RunningSequence]) -> list[tuple[RunningSequence, Tensor]]:
        logits = step(self._loaded.adapter, [entry.last_token() for entry in batch], self._loaded.device)
        return list(zip(batch, logits, strict=True))

    def _choose(self, entry: RunningSequence, logits: Tensor) -> None:
        self._advance(entry, next_token(logits, entry.sequence.sampling, len(entry.tokens)))

    def _replay(self, entry: RunningSequence) -> None:
        """Take over what an earlier attempt emitted, without emitting it again, and go on behind it."""
        prefix = entry.sequence.forced_prefix
        for token in prefix:
            self._advance(entry, token, emit=False)
            if entry not in self._running:
                return
        if len(prefix) > 1:
            step(self._loaded.adapter, [entry.given_tokens(prefix[:-1])], self._loaded.device)

    def _log_likelihood(self, entry: RunningSequence, first_logits: Tensor) -> float:
        answer = entry.sequence.score_only
        rows = [first_logits.unsqueeze(0)]
        if len(answer) > 1:
            rows.append(step(self._loaded.adapter, [entry.given_tokens(answer[:-1])], self._loaded.device))
        scores = torch.log_softmax(torch.cat(rows).float(), dim=-1)
        return float(scores[torch.arange(len(answer)), torch.tensor(answer)].sum())

    def _advance(self, entry: RunningSequence, token: int, *, emit: bool = True) -> None:
        """Add a token; deliver what it completes; end the sequence when it is the last."""
        event, reason = entry.advance(token, self._loaded.eos_tokens)
        if emit:
            entry.handle.put(event)
        if reason:
            self._finish(entry, reason)

    def _finish(self, entry: RunningSequence, reason: str, log_likelihood: float | None = None) -> None:
        self._running.remove(entry)
        entry.handle.put(entry.result(reason, log_likelihood))

    def _synchronize(self) -> None:
        """Wait for the GPU, so that phase times are true."""
        if self._loaded.device.type == "cuda":
            torch.cuda.synchronize(self._loaded.device)
