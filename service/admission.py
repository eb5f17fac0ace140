"""May a question come in now? Asked before its body is read, so that a refusal costs neither time nor memory.

The ledger asks the same of open jobs once more when it accepts: two requests may have passed here at the same moment.
"""

from __future__ import annotations

import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Self

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError
from starlette.datastructures import Headers

from service.auth import Caller
from service.limits import announced_size, body_too_large
from service.problems import (
    OpenJobsLimitError,
    QueueFullError,
    RateLimitError,
    ServiceError,
    StorageFullError,
    TooManyRequestsError,
    UnavailableError,
)
from worker.contract import OPEN_KEY, OPEN_PIXELS_KEY, PREFIX, owner_open_key
from worker.ledger import execute_async, recount

if TYPE_CHECKING:
    from limits.aio.strategies import RateLimiter

    from worker.settings import Settings

MEMORY_GOOD_FOR_S = 0.5
COUNTS_GOOD_FOR_S = 0.05
"""How long counts are believed that leave plenty of room."""
REFUSALS_GOOD_FOR_S = 0.01
"""How long counts are believed that leave none."""
COMING_S = 1.0
"""How long a question that was let in counts as good as open: whoever sends its body slowly keeps no place."""
_MOST_SEEN = 1000
RECOUNT_EVERY_S = 5.0
"""Between two looks whether counts that refuse somebody are right."""


class Admission:
    """The bounds of one service process and, through Redis, of the deployment."""

    def __init__(self, client: Redis, settings: Settings) -> None:
        self._client = client
        self._settings = settings
        self._requests: Counter[str] = Counter()
        self._memory = _Memory(client)
        self._rates: RateLimiter | None = None
        self._recounted: dict[str, float] = {}
        self._seen: dict[str, _Seen] = {}
        self._coming = _Coming()
        self._held = _Held(settings.max_held_bytes)

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

    async def question(self, caller: Caller, headers: Headers, record: str) -> Place:
        """Admit a question with this idempotency record (or none), before its body is read.

        Raises `RateLimitError`, `OpenJobsLimitError`, `QueueFullError`, `TooLargeError` or `StorageFullError`, and
        `RedisError`.
        """
        await self._check_rate(caller)
        if await self._is_known_or_fits(caller, record):
            return Place(self._held)
        size = announced_size(headers)
        if size > self._settings.max_body_bytes:
            raise body_too_large(self._settings.max_body_bytes)
        try:
            await self._memory.check(size + self._coming.size(), self._settings.redis_headroom)
        except StorageFullError:
            if not record or not (await self._look(caller, record))[1]:
                raise
        return Place(self._held, self._coming.add(caller.owner, size))

    async def take_memory(self, size: int) -> None:
        """These bytes will be stored in Redis. Raises `StorageFullError` unless they leave the headroom free."""
        await self._memory.check(size, self._settings.redis_headroom)
        self._memory.taken += size

    async def check_pixels(self, owner: str, pixels: int) -> None:
        """Before images are stored, which would stay for a while. Raises `QueueFullError` where `accept` would."""
        most = self._settings.max_open_pixels
        if most is None or await self._open_pixels() + pixels <= most:
            return
        if not await self.recount(owner) or await self._open_pixels() + pixels > most:
            raise QueueFullError(PIXELS_FULL)

    async def _open_pixels(self) -> int:
        return int(await self._client.get(OPEN_PIXELS_KEY) or 0)

    async def recount(self, owner: str) -> bool:
        """Count open jobs anew, now and then, before somebody is refused; whether it was done."""
        now = time.monotonic()
        if now - self._recounted.get(owner, float("-inf")) < RECOUNT_EVERY_S:
            return False
        self._recounted[owner] = now
        await execute_async(self._client, recount(owner))
        return True

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
        if (seen := self._seen.get(caller.owner)) is not None:
            age = time.monotonic() - seen.at
            if age < COUNTS_GOOD_FOR_S and self._problem(caller, seen.doubled) is None:
                # With twice as much there was room a moment ago: `accept`, which counts exactly, need not be spared.
                return False
            if age < REFUSALS_GOOD_FOR_S and not record and (full := self._problem(caller, seen)):
                raise full
        seen, known = await self._look(caller, record)
        if known:
            return True
        by_counts_alone = self._problem(caller, seen, coming=False)
        may_be_wrong = by_counts_alone is not None and seen.open_jobs < self._settings.max_open_jobs
        if may_be_wrong and await self.recount(caller.owner):
            return False
        if problem := by_counts_alone or self._problem(caller, seen):
            raise problem
        return False

    async def _look(self, caller: Caller, record: str) -> tuple[_Seen, bool]:
        pipeline = self._client.pipeline(transaction=False)
        pipeline.exists(record or OPEN_KEY)
        pipeline.zcard(OPEN_KEY)
        pipeline.scard(owner_open_key(caller.owner))
        pipeline.get(OPEN_PIXELS_KEY)
        known, open_jobs, own, pixels = await pipeline.execute()
        seen = _Seen(time.monotonic(), open_jobs, own, int(pixels or 0))
        if len(self._seen) >= _MOST_SEEN:
            self._seen.clear()
        self._seen[caller.owner] = seen
        return seen, bool(record and known)

    def _problem(self, caller: Caller, seen: _Seen, *, coming: bool = True) -> ServiceError | None:
        settings, limit = self._settings, caller.limits.open_jobs
        if seen.open_jobs + (self._coming.all() if coming else 0) >= settings.max_open_jobs:
            return QueueFullError(JOBS_FULL)
        if limit is not None and seen.own + (self._coming.of(caller.owner) if coming else 0) >= limit:
            return OpenJobsLimitError(f"As many jobs of this key are open as it may have: {limit}.")
        if settings.max_open_pixels is not None and seen.pixels >= settings.max_open_pixels:
            return QueueFullError(PIXELS_FULL)
        return None


@dataclass(frozen=True)
class _Seen:
    """Counts of open jobs, their owner's and their pixels, as they were a moment ago."""

    at: float
    open_jobs: int
    own: int
    pixels: int

    @property
    def doubled(self) -> _Seen:
        """As if twice as much were open."""
        return _Seen(self.at, 2 * self.open_jobs, 2 * self.own, 2 * self.pixels)


@dataclass
class _Held:
    """Bytes of all bodies that this process holds, and how many it may."""

    most: int
    now: int = 0


class Place:
    """What a question takes up until it is a job or refused: a place among those that come, and its body's bytes."""

    def __init__(self, held: _Held, leave: Callable[[], None] = lambda: None) -> None:
        self.leave = leave
        """Gives the place up, at the latest before the ledger counts the question; harmless when repeated."""
        self._held = held
        self._taken = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()
        self._held.now -= self._taken

    def take(self, size: int) -> None:
        """A part of the body has come. Raises `UnavailableError` if all together are more than may be held."""
        self._taken += size
        self._held.now += size
        if self._held.now > self._held.most:
            raise UnavailableError("As many bytes are being uploaded as this process takes at a time.")


class _Coming:
    """Questions that were let in and are not jobs yet: not counted, a rush would be refused after its bodies only."""

    def __init__(self) -> None:
        self._since: dict[str, OrderedDict[object, tuple[float, int]]] = {}
        self._size = 0

    def add(self, owner: str, size: int) -> Callable[[], None]:
        """Count a question of so many bytes until what is returned is called, but no longer than `COMING_S`."""
        question = object()
        self._since.setdefault(owner, OrderedDict())[question] = time.monotonic(), size
        self._size += size
        return partial(self._remove, owner, question)

    def _remove(self, owner: str, question: object) -> None:
        own = self._since.get(owner, OrderedDict())
        _, size = own.pop(question, (0.0, 0))
        self._size -= size
        self._tidy(owner, own)

    def of(self, owner: str) -> int:
        """How many are the owner's."""
        own = self._since.get(owner, OrderedDict())
        oldest = time.monotonic() - COMING_S
        while own and next(iter(own.values()))[0] < oldest:
            _, (_, size) = own.popitem(last=False)
            self._size -= size
        self._tidy(owner, own)
        return len(own)

    def all(self) -> int:
        """How many there are."""
        return sum(self.of(owner) for owner in list(self._since))

    def size(self) -> int:
        """Bytes that are announced for all of them."""
        self.all()  # forgets the old ones
        return self._size

    def _tidy(self, owner: str, own: Mapping[object, object]) -> None:
        if not own:
            self._since.pop(owner, None)


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
        self.taken = 0
        """Bytes stored since `used` was read."""

    async def check(self, size: int, headroom: float) -> None:
        """Raises `StorageFullError` if these bytes leave less than the headroom; without maxmemory they never do."""
        if time.monotonic() - self._read_at > MEMORY_GOOD_FOR_S:
            self._read_at = time.monotonic()
            await self._read()
        if self._most and self._used + self.taken + size > self._most * (1 - headroom):
            raise StorageFullError

    async def _read(self) -> None:
        try:
            memory = await self._client.info("memory")
        except NoPermissionError:
            return  # then Redis itself refuses what does not fit
        self._used, self._most = int(memory.get("used_memory", 0)), int(memory.get("maxmemory", 0))
        self.taken = 0
