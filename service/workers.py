"""The workers that are alive, as they describe themselves in Redis. All model facts of the service come from here."""

from __future__ import annotations

import time
from collections.abc import Iterable

from pydantic import ValidationError
from redis.asyncio import Redis

from worker.contract import WORKERS_KEY, WorkerInfo

ALIVE_S = 30.0
GOOD_FOR_S = 1.0


def alive(workers: Iterable[WorkerInfo], now_ms: int) -> list[WorkerInfo]:
    """Those with a heartbeat in the last 30 s, by name."""
    fresh = [worker for worker in workers if now_ms - worker.heartbeat_ms < ALIVE_S * 1000]
    return sorted(fresh, key=lambda worker: worker.worker)


def parse(fields: dict[bytes, bytes]) -> list[WorkerInfo]:
    """Read the hash of workers; what another contract version wrote is left out."""
    workers = []
    for value in fields.values():
        try:
            workers.append(WorkerInfo.model_validate_json(value))
        except ValidationError:
            continue
    return workers


async def redis_now_ms(client: Redis) -> int:
    """Redis' clock in Unix milliseconds, the only clock that jobs know. Raises `RedisError`."""
    return milliseconds(*await client.time())


def milliseconds(seconds: int, microseconds: int) -> int:
    """What Redis' TIME says, as Unix milliseconds."""
    return seconds * 1000 + microseconds // 1000


class Workers:
    """The workers alive, at most a second old."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._known: list[WorkerInfo] = []
        self._read_at = float("-inf")

    async def alive(self) -> list[WorkerInfo]:
        """Workers with a recent heartbeat by Redis' clock. Raises `RedisError`."""
        if time.monotonic() - self._read_at > GOOD_FOR_S:
            pipeline = self._client.pipeline(transaction=False)
            pipeline.time()
            pipeline.hgetall(WORKERS_KEY)
            now, fields = await pipeline.execute()
            self._known = alive(parse(fields), milliseconds(*now))
            self._read_at = time.monotonic()
        return self._known
