"""The rescue of open jobs: lost wake-ups are sent again, dead workers' jobs handed on, overdue jobs ended."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from typing import Any, cast

import redis
from redis.exceptions import RedisError, ResponseError

from worker import ledger
from worker.contract import OPEN_KEY, SWEEPER_LOCK_KEY, WORKERS_KEY
from worker.failpoints import nowhere

log = logging.getLogger(__name__)
JOBS_PER_SWEEP = 200
FORGET_WORKER_AFTER_MS = 600_000


class Sweeper:
    """Runs in every worker; a short lock lets one of them sweep at a time."""

    def __init__(
        self,
        client: redis.Redis,
        wake: Callable[[str, str], None],
        *,
        name: str,
        every_s: float,
        wake_after_s: float,
        max_attempts: int,
        reach: Callable[[str], None] = nowhere,
    ) -> None:
        self._client = client
        self._reach = reach
        self._wake = wake
        self._name = name
        self._every = every_s
        self._wake_after_ms = int(wake_after_s * 1000)
        self._max_attempts = max_attempts
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="sweeper", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(timeout=5)

    def _loop(self) -> None:
        while not self._stop.wait(self._every):
            try:
                if self._client.set(SWEEPER_LOCK_KEY, self._name, nx=True, px=max(1, int(self._every * 900))):
                    self.sweep()
            except RedisError as error:
                log.warning("cannot sweep: %s", error)
            except Exception:
                log.exception("the sweep failed")

    def sweep(self) -> int:
        """Check every job that is due; returns how many wake-ups were sent."""
        now_ms = redis_now_ms(self._client)
        self._reach("before_sweep")
        due = cast("list[Any]", self._client.zrangebyscore(OPEN_KEY, "-inf", now_ms, start=0, num=JOBS_PER_SWEEP))
        woken = 0
        for raw in due:
            job_id = raw.decode()
            try:
                swept = ledger.execute(
                    self._client, ledger.sweep(job_id, self._wake_after_ms, self._max_attempts, now_ms)
                )
            except ResponseError:
                log.exception("job %s cannot be checked; the sweep goes on", job_id)
                continue
            if swept.action == "wake":
                self._reach("before_wake")
                self._wake(job_id, swept.subject)
                woken += 1
                log.info("job %s was without a worker: woken again", job_id)
            elif swept.action == "ended":
                log.warning("job %s ended as %s", job_id, swept.subject)
        self._forget_dead_workers(now_ms)
        return woken

    def _forget_dead_workers(self, now_ms: int) -> None:
        workers = cast("dict[bytes, bytes]", self._client.hgetall(WORKERS_KEY))
        for worker, info in workers.items():
            try:
                forgotten = json.loads(info)["heartbeat_ms"] < now_ms - FORGET_WORKER_AFTER_MS
            except (ValueError, KeyError, TypeError):
                forgotten = True
            if forgotten:
                self._client.hdel(WORKERS_KEY, worker)


def redis_now_ms(client: redis.Redis) -> int:
    """Redis' clock in Unix milliseconds, the only clock that jobs know."""
    seconds, microseconds = client.time()
    return seconds * 1000 + microseconds // 1000
