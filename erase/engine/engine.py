"""The engine's thread: admits sequences, prefills, decodes all running ones together, delivers tokens and results."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Self, TypeVar

import torch
from torch import Tensor

from erase.engine.answers import Answers
from erase.engine.attention import choose_attention
from erase.engine.cache import CachePool
from erase.engine.images import FeatureCache
from erase.engine.limits import EngineLimits
from erase.engine.observer import EngineObserver
from erase.engine.prefill import step
from erase.engine.running import RunningSequence
from erase.engine.scheduler import PRIORITIES, Budget, Shares, admit
from erase.engine.sequence import (
    ContextLengthError,
    EngineStoppedError,
    Handle,
    Priority,
    Sequence,
)
from erase.engine.stage import PrefillStage
from erase.engine.text import TextStream
from erase.engine.threads import use_threads
from erase.errors import EngineError
from erase.methods.stage1_only import Stage1Only
from erase.models.loading import LoadedModel

log = logging.getLogger(__name__)

T = TypeVar("T")
_ALONE_SECONDS = 0.5
"""How long a prefill beside which nothing decodes goes on until the engine looks who was cancelled."""


class Engine:
    """Owns a model on one thread. Submit from any thread; results come through handles.

    A failure inside a shared step is retried sequence by sequence, so that only the culprit fails. When the device
    itself has failed, the engine ends.
    """

    def __init__(
        self, loaded: LoadedModel, limits: EngineLimits | None = None, observer: EngineObserver | None = None
    ) -> None:
        self._loaded = loaded
        self._limits = limits or EngineLimits()
        self._observer = observer or EngineObserver()
        adapter, device, dtype = loaded.adapter, loaded.device, loaded.dtype
        self._attention = choose_attention(device, dtype, self._limits.attention)
        rows = self._limits.pool_rows(loaded, self.context_length)
        self._pool = CachePool(rows, adapter.key_heads, adapter.head_dim, dtype, device)
        self._features = FeatureCache(self._limits.feature_cache_bytes)
        self._shares = Shares(self._limits.interactive_share)
        self._waiting: dict[Priority, deque[RunningSequence]] = {priority: deque() for priority in PRIORITIES}
        self._stage: PrefillStage | None = None
        self._running: list[RunningSequence] = []
        self._joining: list[RunningSequence] = []
        """Taken out of the line and perhaps nowhere else yet: whatever happens, they must hear of it."""
        self._decode_seconds = 0.0
        self._changed = threading.Condition()
        self._stopping = False
        self._progress = time.monotonic()
        # Without this engine in it: a circle would keep the pool until Python looks for circles.
        run = self._step = partial(step, adapter, self._attention, self._pool, device=device)
        self._answers = Answers(loaded, lambda rows: run([rows]), singly=self._limits.deterministic)
        self._threads: int | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)

    @property
    def context_length(self) -> int:
        """Longest unpruned prompt and answer together, in tokens."""
        return min(self._loaded.context_length, self._limits.context_length or self._loaded.context_length)

    @property
    def cache_capacity(self) -> float:
        """Tokens that all key/value caches hold together, averaged over layers."""
        return self._pool.rows / self._loaded.adapter.depth

    def waits_for(self, priority: Priority) -> float:
        """Seconds that the sequence of a priority that waits longest has waited; 0 while none does."""
        with self._changed:
            since = [entry.waits_since for entry in self._waiting[priority]]
        return time.monotonic() - min(since) if since else 0.0

    @property
    def stalled_for(self) -> float:
        """Seconds since the engine last finished a step, or a slice of a prefill, or was idle."""
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
        own = torch.get_num_threads()
        self._threads = self._limits.cpu_threads or own
        self._thread.start()
        self._started.wait()
        use_threads(own)  # which is also what other threads begin with

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
            ContextLengthError: prompt and answer do not fit into the context, or into all of the cache.
            UnsupportedError: the method needs what the model does not show.
            PolicyError: the method cannot reach its retention with this prompt.
            InputError: the method's cuts do not ascend within the decoder.
            EngineStoppedError: the engine has not been started, has stopped or has failed.
        """
        self._require_room(sequence)
        self._loaded.adapter.require_support(sequence.method)
        architecture = self._loaded.adapter.architecture
        few = sequence.preselection.tokens < self._limits.min_vision_tokens
        if few and any(cut.after_layers > 0 for cut in sequence.method.plan(sequence.preselection, architecture)):
            sequence = replace(sequence, method=Stage1Only(sequence.method))
        entry = RunningSequence(sequence, TextStream(self._loaded.tokenizer, sequence.sampling.stop), architecture)
        if entry.most_cache_rows > self._pool.rows:
            raise ContextLengthError(
                f"the pruned prompt and its answer take {entry.most_cache_rows / architecture.depth:.0f} tokens of "
                f"cache, but there are {self.cache_capacity:.0f}: prune more, or use fewer max_tokens or a larger cache"
            )
        for image in sequence.prompt.images:
            _ = image.digest  # computed here, in the caller's thread
        with self._changed:
            if not self.alive:
                raise EngineStoppedError("the engine is not running")
            if not self._busy():
                self._progress = time.monotonic()  # idle until now, so not stalled
            self._waiting[sequence.priority].append(entry)
            self._changed.notify()
        return entry.handle

    def _require_room(self, sequence: Sequence) -> None:
        tokens = len(sequence.prompt.tokens)
        if tokens + sequence.longest_answer > self.context_length:
            raise ContextLengthError(
                f"the prompt has {tokens} tokens and up to {sequence.longest_answer} more were asked for, but the "
                f"context holds {self.context_length}: use smaller images, a shorter prompt or fewer max_tokens"
            )

    def _busy(self) -> bool:
        return bool(self._running or self._stage or any(self._waiting.values()))

    def _admitted(self) -> list[RunningSequence]:
        return [*self._running, *(self._stage.entries if self._stage else ())]

    def _loop(self) -> None:
        try:
            try:
                use_threads(self._threads or 1)
            finally:
                self._started.set()
            while True:
                with self._changed:
                    while not self._busy() and not self._stopping:
                        self._changed.wait()
                    if self._stopping:
                        break
                self._drop_ended()
                self._admit()
                self._prefill()
                self._decode()
                self._report()
        except BaseException:
            log.exception("the engine failed")
            raise
        finally:
            self._end_all()

    def _end_all(self) -> None:
        with self._changed:
            self._stopping = True
            left = [*self._admitted(), *self._joining, *(entry for line in self._waiting.values() for entry in line)]
            self._running, self._stage = [], None
            for line in self._waiting.values():
                line.clear()
        for entry in left:
            if not entry.ended:
                entry.deliver(EngineStoppedError("the engine stopped before the answer was finished"))
        for entry in left:
            entry.free_cache()
        self._report()

    def _report(self) -> None:
        self._progress = time.monotonic()
        admitted = self._admitted()
        tokens = sum(entry.cached_tokens for entry in admitted)
        self._observer.load_changed(len(admitted), sum(map(len, self._waiting.values())), tokens)

    def _drop_ended(self) -> None:
        now = time.monotonic()
        with self._changed:
            waiting = [entry for line in self._waiting.values() for entry in line]
        for entry in [*self._running, *waiting]:
            if (reason := entry.reason_to_end(now)) is not None:
                entry.end(reason)
        self._forget_ended()
        with self._changed:
            for priority, line in self._waiting.items():
                self._waiting[priority] = deque(entry for entry in line if not entry.ended)
        if self._stage is not None:
            self._drop_ended_from(self._stage, now)

    def _drop_ended_from(self, stage: PrefillStage, now: float) -> None:
        """Those that ended keep their rows in the packed prefill, unless nobody needs it any more."""
        for entry in stage.entries:
            if not entry.ended and (reason := entry.reason_to_end(now)) is not None:
                entry.deliver(reason)
        if all(entry.ended for entry in stage.entries):
            self._stage = None
            for entry in stage.entries:
                entry.free_cache()

    def _admit(self) -> None:
        if self._stage is not None:
            return
        limits = self._limits
        with self._changed:
            waiting = [priority for priority, line in self._waiting.items() if line]
            if not waiting:
                return
            priority = self._shares.next(waiting)
            line = self._waiting[priority]
            most = 1 if limits.deterministic else limits.max_running
            count = admit(
                [entry.candidate for entry in islice(line, limits.max_running)],
                [entry.candidate for entry in self._running],
                Budget(
                    sequences=min(most, limits.max_running - len(self._running)),
                    prefill_tokens=limits.prefill_tokens(self._loaded.device),
                    cache_rows=self._pool.free,
                ),
            )
            batch = [line.popleft() for _ in range(count)]
            self._shares.served(priority, sum(entry.candidate.pruned_length for entry in batch))
        if batch:
            self._joining = batch
            if (failure := self._start(batch)) is not None:
                self._prefill_one_by_one(batch, failure)
            self._joining = []

    def _start(self, batch: list[RunningSequence]) -> Exception | None:
        """Begin to prefill them together; the error that made that impossible instead."""
        tokens = 1 if self._limits.deterministic else self._limits.prefill_tokens(self._loaded.device)
        try:
            self._stage = PrefillStage(self._loaded, self._attention, self._pool, self._features, batch, tokens)
        except Exception as error:
            return self._not_prefilled(batch, error)
        return None

    def _prefill(self) -> None:
        if self._stage is None:
            return
        share = self._limits.prefill_share
        entries = self._stage.entries
        sharing = bool(self._running)
        seconds = self._decode_seconds * share / (1 - share) if sharing else _ALONE_SECONDS
        failure = self._run_stage(seconds, sharing=sharing)
        if failure is not None:
            self._joining = entries
            self._prefill_one_by_one(entries, failure)
            self._joining = []

    def _prefill_one_by_one(self, entries: list[RunningSequence], failure: Exception | None) -> None:
        """After a failure of all together: only the culprit must fail."""
        for entry in entries:
            if not entry.ended:
                if len(entries) > 1:
                    failure = self._start([entry])
                    while failure is None and self._stage is not None:
                        failure = self._run_stage(_ALONE_SECONDS, sharing=False)
                        if self._stage is not None:
                            self._drop_ended_from(self._stage, time.monotonic())
                if failure is not None:
                    self._fail("prefill", entry, failure)

    def _run_stage(self, seconds: float, *, sharing: bool) -> Exception | None:
        """Go on for so long and, when it is done, begin the answers; the error that ended it instead."""
        stage = self._stage
        assert stage is not None, "nothing to run"  # noqa: S101
        try:
            done = stage.run(seconds, sharing=sharing)
            self._progress = time.monotonic()
            if not done:
                return None
            logits = stage.finish()
        except Exception as error:
            return self._not_prefilled(stage.entries, error)
        self._running += [entry for entry in stage.entries if not entry.ended]
        self._stage = None
        self._observer.stepped("prefill", len(stage.entries))
        self._observer.images_looked_up(self._features.hits, self._features.misses)
        for entry, row in zip(stage.entries, logits, strict=True):
            if entry.ended:
                entry.free_cache()
            else:
                self._guarding("prefill", entry, partial(self._answers.begin, entry, row))
        self._forget_ended()
        return None

    def _not_prefilled(self, entries: list[RunningSequence], error: Exception) -> Exception:
        log.warning("prefill of %d sequences failed", len(entries), exc_info=error)
        self._require_device()
        self._progress = time.monotonic()  # a failure is an end, too
        self._stage = None
        for entry in entries:
            entry.free_cache()
        return error.with_traceback(None)  # it would keep the tensors

    def _decode(self) -> None:
        started = time.monotonic()
        batch = self._with_room()
        if self._limits.deterministic:
            outcome = [pair for entry in batch for pair in self._isolating([entry])]
        else:
            outcome = self._isolating(batch)
        for entry, logits in outcome:
            self._guarding("decode", entry, partial(self._answers.choose, entry, logits))
        self._forget_ended()
        self._decode_seconds = time.monotonic() - started

    def _with_room(self) -> list[RunningSequence]:
        """The running sequences that have room for one more token.

        Where the pool is full, the youngest give theirs back. While those are being prefilled, who has no room pauses.
        """
        ready = []
        for entry in list(self._running):
            while entry in self._running and not entry.ended:
                if self._guarding("decode", entry, entry.grow_cache):
                    ready.append(entry)
                    break
                if self._stage is not None:
                    break
                if not entry.ended:
                    self._preempt_youngest()
        self._forget_ended()
        return [entry for entry in ready if entry in self._running]

    def _forget_ended(self) -> None:
        self._running = [entry for entry in self._running if not entry.ended]

    def _preempt_youngest(self) -> None:
        youngest = self._running.pop()
        youngest.preempted()
        with self._changed:
            self._waiting[youngest.sequence.priority].appendleft(youngest)
        self._observer.preempted()

    def _isolating(self, batch: list[RunningSequence]) -> list[tuple[RunningSequence, Tensor]]:
        """Decode one step together; when that fails, one by one, and end only those that fail again."""
        if not batch:
            return []
        try:
            logits = self._step([entry.last_token() for entry in batch])
        except Exception as error:
            if len(batch) == 1:
                self._fail("decode", batch[0], error)
                return []
            log.warning("decode of %d sequences failed, running them one by one", len(batch), exc_info=True)
            self._require_device()
        else:
            self._observer.stepped("decode", len(batch))
            return list(zip(batch, logits, strict=True))
        # Outside of `except`: the error's traceback would keep the failed step's tensors.
        return [item for entry in batch for item in self._isolating([entry])]

    def _guarding(self, phase: str, entry: RunningSequence, act: Callable[[], T]) -> T | None:
        """What `act` returns; None when it failed and the sequence ended with it."""
        try:
            return act()
        except Exception as error:
            self._fail(phase, entry, error)
            return None

    def _require_device(self) -> None:
        """After a failure. A GPU that has failed fails at everything: the engine must end, not every sequence."""
        torch.zeros(1, device=self._loaded.device).item()

    def _fail(self, phase: str, entry: RunningSequence, error: Exception) -> None:
        self._require_device()
        log.error("%s of sequence %s failed: %r", phase, entry.sequence.id, error)
        asked = f"{entry.sequence.id}, {entry.sequence.method.name}"
        entry.end(EngineError(f"{phase} failed", f"{asked}: {type(error).__name__}: {error}"))
