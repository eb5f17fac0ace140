"""Keeps the leases of this process' jobs alive while the engine makes progress."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import redis
from redis.exceptions import RedisError

from worker import ledger
from worker.failpoints import nowhere

log = logging.getLogger(__name__)


@dataclass(eq=False)
class HeldLease:
    """A lease that this process holds. `on_lost` is called once, from the keeper's thread."""

    job_id: str
    attempt: int
    on_lost: Callable[[], None]
    lost: bool = False


class LeaseKeeper:
    """Renews every third of the lease's length; stops renewing while `stalled()` says that nothing moves."""

    def __init__(
        self,
        client: redis.Redis,
        lease_s: float,
        stalled: Callable[[], bool],
        reach: Callable[[str], None] = nowhere,
    ) -> None:
        self._client = client
        self._reach = reach
        self._lease_ms = int(lease_s * 1000)
        self._every = lease_s / 3
        self._stalled = stalled
        self._held: set[HeldLease] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="leases", daemon=True)

    @property
    def held(self) -> int:
        """Jobs that this process works on."""
        with self._lock:
            return len(self._held)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(timeout=5)

    @contextmanager
    def hold(self, job_id: str, attempt: int, on_lost: Callable[[], None]) -> Iterator[HeldLease]:
        """Renew this lease until the block ends."""
        lease = HeldLease(job_id, attempt, on_lost)
        with self._lock:
            self._held.add(lease)
        try:
            yield lease
        finally:
            with self._lock:
                self._held.discard(lease)

    def _loop(self) -> None:
        while not self._stop.wait(self._every):
            if self._stalled():
                log.error("the engine makes no progress: its leases are not renewed")
                continue
            self._renew()

    def _renew(self) -> None:
        with self._lock:
            leases = list(self._held)
        if not leases:
            return
        self._reach("before_renew")
        steps = [ledger.renew(lease.job_id, lease.attempt, self._lease_ms) for lease in leases]
        try:
            replies = ledger.execute_many(self._client, steps)
        except RedisError as error:
            log.warning("cannot renew leases: %s", error)
            return
        for lease, reply in zip(leases, replies, strict=True):
            with self._lock:
                current = lease in self._held
            if current and not reply.ok and not lease.lost:
                log.info("job %s is no longer ours: it is %s", lease.job_id, reply.state)
                lease.lost = True
                lease.on_lost()
