"""One reader per process: notices from Redis wake the requests that wait, however many wait on one connection.

A notice only says that a job has new events; whoever waits reads them from the job's own stream. A lost or trimmed
notice is caught by `recheck`, which compares all watched jobs in one round trip.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from worker.contract import EventType, replies_key
from worker.ledger import last_events_async

logger = logging.getLogger("erase.service")

BLOCK_MS = 2_000
RECHECK_S = 2.0
_NOTICES_PER_READ = 1_000
_JOBS_PER_CHECK = 500
_LONGEST_PAUSE_S = 1.0


class Waiter:
    """One request that waits for a job: `changed` is set when there may be events after number `seen`.

    With `only_final` the notices of tokens do not wake it. `behind` tells that Redis knows fewer events than this
    request has seen, or no longer the job.
    """

    def __init__(self, seen: int, *, only_final: bool = False) -> None:
        self.changed = asyncio.Event()
        self.seen = seen
        self.behind = False
        self.only_final = only_final


class Replies:
    """Watched jobs of this process, and the two loops that wake their waiters."""

    def __init__(self, reader: Redis, client: Redis, service_id: str) -> None:
        self._reader = reader
        self._client = client
        self._key = replies_key(service_id)
        self._waiters: dict[str, set[Waiter]] = {}

    @contextmanager
    def waiter(self, job_id: str, seen: int, *, only_final: bool = False) -> Iterator[Waiter]:
        """Register a waiter while the block runs."""
        waiter = Waiter(seen, only_final=only_final)
        self._waiters.setdefault(job_id, set()).add(waiter)
        try:
            yield waiter
        finally:
            waiters = self._waiters[job_id]
            waiters.discard(waiter)
            if not waiters:
                del self._waiters[job_id]

    async def read(self) -> None:
        """Wake waiters by the notices in this process' reply stream; never returns, survives Redis' restarts."""
        last: Any = "0-0"
        pause = 0.05
        while True:
            try:
                reply: Any = await self._reader.xread({self._key: last}, count=_NOTICES_PER_READ, block=BLOCK_MS)
            except (RedisError, OSError) as error:
                logger.warning("the reply stream cannot be read (%s); trying again", type(error).__name__)
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE_S)
                continue
            pause = 0.05
            for entry_id, fields in _entries(reply):
                last = entry_id
                # Workers of contract version 1 do not say of what type the event is.
                final = fields.get(b"type", b"") != EventType.TOKEN.value.encode()
                self._wake(fields.get(b"job", b"").decode(), final=final)

    async def recheck(self) -> None:
        """Wake waiters whose job has moved without a notice; never returns."""
        while True:
            await asyncio.sleep(RECHECK_S)
            watched = list(self._waiters)
            for start in range(0, len(watched), _JOBS_PER_CHECK):
                try:
                    await self._recheck(watched[start : start + _JOBS_PER_CHECK])
                except (RedisError, OSError) as error:
                    logger.warning("watched jobs cannot be checked (%s); trying again", type(error).__name__)
                    break

    async def _recheck(self, job_ids: Sequence[str]) -> None:
        for job_id, last in zip(job_ids, await last_events_async(self._client, job_ids), strict=True):
            for waiter in self._waiters.get(job_id, ()):
                waiter.behind = last is None or last < waiter.seen
                if waiter.behind or last != waiter.seen:
                    waiter.changed.set()

    def _wake(self, job_id: str, *, final: bool) -> None:
        for waiter in self._waiters.get(job_id, ()):
            if final or not waiter.only_final:
                waiter.changed.set()


def _entries(reply: Any) -> list[Any]:
    """Entries of the only stream, in RESP2's shape (a list of streams) or RESP3's (a dict of them)."""
    if not reply:
        return []
    if isinstance(reply, dict):
        (batches,) = reply.values()
        return [entry for batch in batches for entry in batch] if batches and isinstance(batches[0], list) else batches
    return list(reply[0][1])
