"""One thread that writes the token events of all running jobs, as many as are ready in one round trip."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import redis
from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError, ResponseError

from worker import ledger
from worker.contract import EventType, TokenPayload
from worker.errors import EmitStalledError
from worker.failpoints import nowhere

log = logging.getLogger(__name__)
MOST_PER_ROUND = 256
RETRY_S = 0.2
PASSING_REFUSALS = (OutOfMemoryError, ReadOnlyError)


@dataclass(eq=False)
class EventWriter:
    """One attempt's end of the emitter. `fenced` becomes true when the ledger refuses the attempt."""

    job_id: str
    attempt: int
    number: int
    """Number of the last event of the job."""
    on_fenced: Callable[[], None]
    fenced: bool = False
    pending: int = 0


class Emitter:
    """Writes events in the order in which they were given. Retries while Redis is away: events are numbered."""

    def __init__(self, client: redis.Redis, reach: Callable[[str], None] = nowhere) -> None:
        self._client = client
        self._reach = reach
        self._inbox: queue.SimpleQueue[tuple[EventWriter, ledger.Transition[ledger.Written]] | None] = (
            queue.SimpleQueue()
        )
        self._written = threading.Condition()
        self._thread = threading.Thread(target=self._loop, name="emitter", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Write what is left and end the thread."""
        self._inbox.put(None)
        self._thread.join(timeout=5)

    def emit(self, writer: EventWriter, payload: TokenPayload) -> None:
        """Queue a token event."""
        writer.number += 1
        with self._written:
            writer.pending += 1
        step = ledger.emit(writer.job_id, writer.attempt, writer.number, EventType.TOKEN, payload.model_dump_json())
        self._inbox.put((writer, step))

    def flush(self, writer: EventWriter, timeout: float) -> None:
        """Wait until every event of the writer is written. Raises `EmitStalledError` after `timeout` seconds."""
        with self._written:
            if not self._written.wait_for(lambda: writer.pending == 0 or writer.fenced, timeout):
                raise EmitStalledError(f"{writer.pending} events of job {writer.job_id} are not written yet")

    def _loop(self) -> None:
        ending = False
        while not ending:
            batch = [self._inbox.get()]
            while len(batch) < MOST_PER_ROUND and not self._inbox.empty():
                batch.append(self._inbox.get())
            ending = None in batch
            items = [item for item in batch if item is not None and not item[0].fenced]
            if items:
                self._write(items)

    def _write(self, items: list[tuple[EventWriter, ledger.Transition[ledger.Written]]]) -> None:
        steps = [step for _, step in items]
        self._reach("before_write")
        replies = self._execute(steps)
        self._reach("after_write")
        if any(reply.state == ledger.GAP for reply in replies):
            # Redis took a later event of a round and not an earlier one. A gap that stays means that it lost events
            # which it had confirmed: the attempt is over, the next one goes on behind what is left.
            replies = self._execute(steps)
        refused = []
        with self._written:
            for (writer, _), reply in zip(items, replies, strict=True):
                writer.pending -= 1
                if not reply.ok and not writer.fenced:
                    writer.fenced = True
                    refused.append(writer)
            self._written.notify_all()
        for writer in refused:
            writer.on_fenced()

    def _execute(self, steps: list[ledger.Transition[ledger.Written]]) -> list[ledger.Written]:
        while True:
            try:
                return ledger.execute_many(self._client, steps)
            except RedisError as error:
                if isinstance(error, ResponseError) and not isinstance(error, PASSING_REFUSALS):
                    return self._isolate(steps, error)
                log.warning("cannot write events, trying again: %s", error)
                time.sleep(RETRY_S)

    def _isolate(self, steps: list[ledger.Transition[ledger.Written]], error: ResponseError) -> list[ledger.Written]:
        """Redis refuses something in this round for good: only its own attempt may end by that."""
        if len(steps) > 1:
            return [reply for step in steps for reply in self._execute([step])]
        log.error("an event cannot be written: %s", error)
        return [ledger.Written(False, "refused")]
