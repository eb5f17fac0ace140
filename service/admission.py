"""May a question come in now? Asked before its body is read, so that a refusal costs neither time nor memory.

The ledger asks the same of open jobs once more when it accepts: two requests may have passed here at the same moment.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from redis.asyncio import Redis
from starlette.datastructures import Headers

from service.auth import Caller
from service.problems import (
    OpenJobsLimitError,
    QueueFullError,
    RateLimitError,
    StorageFullError,
    TooManyRequestsError,
)
from worker.contract import OPEN_KEY, OPEN_PIXELS_KEY, PREFIX, owner_open_key

if TYPE_CHECKING:
    from limits.aio.strategies import RateLimiter

    from worker.settings import Settings

MEMORY_GOOD_FOR_S = 0.5


class Admission:
    """The bounds of one service process and, through Redis, of the deployment."""

    def __init__(self, client: Redis, settings: Settings) -> None:
        self._client = client
        self._settings = settings
        self._requests: Counter[str] = Counter()
        self._uploads = 0
        self._memory = _Memory(client)
        self._rates: RateLimiter | None = None

    @contextmanager
    def request(self, caller: Caller) -> Iterator[None]:
        """Count a request of the caller while the block runs. Raises `TooManyRequestsError`."""
        most = caller.limits.concurrent_requests
        if most is not None and self._requests[caller.owner] >= most:
            raise TooManyRequestsError(f"As many requests of this key are being answered as it may have: {most}.")
        self._requests[caller.owner] += 1
        try:
            yield
        finally:
            self._requests[caller.owner] -= 1
            if not self._requests[caller.owner]:
                del self._requests[caller.owner]

    @asynccontextmanager
    async def question(self, caller: Caller, headers: Headers, record: str) -> AsyncIterator[None]:
        """Admit a question with this idempotency record (or none); the block reads it and has it accepted.

        Raises `RateLimitError`, `OpenJobsLimitError`, `QueueFullError` or `StorageFullError`, and `RedisError`.
        """
        await self._check_rate(caller)
        size = self._announced(headers)
        self._uploads += size
        try:
            if not await self._is_known_or_fits(caller, record):
                await self._memory.check(self._uploads, self._settings.redis_headroom)
            yield
        finally:
            self._uploads -= size

    def _announced(self, headers: Headers) -> int:
        length, most = headers.get("content-length", ""), self._settings.max_body_bytes
        return min(int(length), most) if length.isdigit() else most

    async def _check_rate(self, caller: Caller) -> None:
        most = caller.limits.requests_per_minute
        if most is None:
            return
        from limits import RateLimitItemPerMinute

        if self._rates is None:
            self._rates = _rate_limiter(self._client)
        rate = RateLimitItemPerMinute(most)
        if not await self._rates.hit(rate, caller.owner):
            window = await self._rates.get_window_stats(rate, caller.owner)
            wait = max(1, math.ceil(window.reset_time - time.time()))
            raise RateLimitError(f"This key may ask {most} questions a minute.", retry_after_s=wait)

    async def _is_known_or_fits(self, caller: Caller, record: str) -> bool:
        """True for a question that already is a job: that one may always be attached to."""
        pipeline = self._client.pipeline(transaction=False)
        pipeline.exists(record or OPEN_KEY)
        pipeline.zcard(OPEN_KEY)
        pipeline.scard(owner_open_key(caller.owner))
        pipeline.get(OPEN_PIXELS_KEY)
        known, open_jobs, own, pixels = await pipeline.execute()
        if record and known:
            return True
        if open_jobs >= self._settings.max_open_jobs:
            raise QueueFullError(JOBS_FULL)
        if caller.limits.open_jobs is not None and own >= caller.limits.open_jobs:
            raise OpenJobsLimitError(f"As many jobs of this key are open as it may have: {caller.limits.open_jobs}.")
        if self._settings.max_open_pixels is not None and int(pixels or 0) >= self._settings.max_open_pixels:
            raise QueueFullError(PIXELS_FULL)
        return False


JOBS_FULL = "As many jobs are open as this deployment allows."
PIXELS_FULL = "The images of the open jobs are as large as this deployment allows."


def _rate_limiter(client: Redis) -> RateLimiter:
    """Counts in Redis, for all service processes together, in constant memory per owner."""
    # Imported where a rate is set: it costs as much to import as the web framework.
    from limits.aio.storage import RedisStorage
    from limits.aio.strategies import SlidingWindowCounterRateLimiter

    pool = client.connection_pool
    storage = RedisStorage(
        "redis://",
        implementation="redispy",
        key_prefix=f"{PREFIX}rate",
        connection_pool=pool,  # type: ignore[arg-type]
    )
    return SlidingWindowCounterRateLimiter(storage)


class _Memory:
    """How much of Redis' memory is used, at most half a second old."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._used = self._most = 0
        self._read_at = float("-inf")

    async def check(self, uploads: int, headroom: float) -> None:
        """Raises `StorageFullError` if these bytes leave less than the headroom; without maxmemory they never do."""
        if time.monotonic() - self._read_at > MEMORY_GOOD_FOR_S:
            memory = await self._client.info("memory")
            self._used, self._most = int(memory["used_memory"]), int(memory.get("maxmemory", 0))
            self._read_at = time.monotonic()
        if self._most and self._used + uploads > self._most * (1 - headroom):
            raise StorageFullError("The store of jobs has no room for another request at the moment.")
