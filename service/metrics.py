"""The service's Prometheus metrics; docs/metrics.md explains each."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from heapq import nsmallest
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import __version__
from service.problems import CLIENT_LEFT
from service.workers import alive, milliseconds, parse
from worker.contract import (
    CONTRACT_VERSION,
    DEAD_KEY,
    OPEN_KEY,
    OPEN_PIXELS_KEY,
    SERVED_CONTRACTS,
    WORKERS_KEY,
    JobState,
    Priority,
    WorkerInfo,
    job_key,
    queue_name,
)
from worker.ledger import read_counters_async

SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120)
SCRAPE_TIMEOUT_S = 2.0
FORGOTTEN_S = 600.0
"""A worker silent for longer than this no longer has a heartbeat age."""
_OPEN_SAMPLE = 200
"""Of the open jobs, how many of the oldest ids are looked at: ids sort by time, but for dead letters asked again."""
_ASKING = frozenset({"/v1/ask", "/v1/chat/completions"})
_METHODS = frozenset({"GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS"})


@dataclass(frozen=True)
class Snapshot:
    """What Redis says of the whole deployment at one moment. Ages in seconds."""

    counters: Mapping[str, int] = field(default_factory=dict)
    open_jobs: int = 0
    oldest_age_s: float = 0.0
    queues: Mapping[str, int] = field(default_factory=dict)
    workers: tuple[WorkerInfo, ...] = ()
    now_ms: int = 0
    dead_letters: int = 0
    open_pixels: int = 0
    memory: Mapping[str, Any] = field(default_factory=dict)
    disk: Mapping[str, Any] = field(default_factory=dict)

    @property
    def alive(self) -> list[WorkerInfo]:
        """Workers with a recent heartbeat."""
        return alive(self.workers, self.now_ms)


async def read_snapshot(client: Redis) -> Snapshot:
    """Read everything in two round trips. Raises `RedisError`."""
    pipeline = client.pipeline(transaction=False)
    pipeline.time()
    pipeline.zrange(OPEN_KEY, 0, -1)
    pipeline.hgetall(WORKERS_KEY)
    pipeline.info("memory")
    pipeline.info("persistence")
    pipeline.get(OPEN_PIXELS_KEY)
    for version in SERVED_CONTRACTS:
        for priority in Priority:
            pipeline.llen(queue_name(priority, version))
    replies = await pipeline.execute(raise_on_error=False)
    # A Redis may forbid INFO: then only its own state is unknown.
    memory, disk = ({} if isinstance(reply, NoPermissionError) else reply for reply in replies[3:5])
    for reply in replies[:3] + replies[5:] + [memory, disk]:
        if isinstance(reply, Exception):
            raise reply
    now, open_ids, workers = replies[:3]
    pixels, *depths = replies[5:]
    now_ms = milliseconds(*now)
    pipeline.zcount(DEAD_KEY, now_ms, "+inf")
    for job_id in nsmallest(_OPEN_SAMPLE, open_ids):
        pipeline.hget(job_key(job_id.decode()), "queued_ms")
    dead_letters, *times = await pipeline.execute()
    accepted = [int(value) for value in times if value is not None]
    return Snapshot(
        counters=await read_counters_async(client),
        open_jobs=len(open_ids),
        oldest_age_s=max(0.0, (now_ms - min(accepted)) / 1000) if accepted else 0.0,
        queues={priority.value: sum(depths[at :: len(Priority)]) for at, priority in enumerate(Priority)},
        workers=tuple(parse(workers)),
        now_ms=now_ms,
        dead_letters=dead_letters,
        open_pixels=int(pixels or 0),
        memory=memory,
        disk=disk,
    )


class _LedgerCollector(Collector):
    """Writes the snapshot of the current scrape; without one only `erase_redis_up 0`."""

    def __init__(self) -> None:
        self.snapshot: Snapshot | None = None

    def collect(self) -> Iterator[Metric]:
        snapshot = self.snapshot
        yield GaugeMetricFamily("erase_redis_up", "1 if Redis answered this scrape", float(snapshot is not None))
        if snapshot is None:
            return
        finished = CounterMetricFamily("erase_jobs_finished", "Jobs ended", labels=["state"])
        for state in JobState:
            if state.final:
                finished.add_metric([state.value], snapshot.counters.get(f"finished:{state.value}", 0))
        yield finished
        for name, metric, meaning in (
            ("accepted", "erase_jobs_accepted", "Jobs accepted"),
            ("wakeups_resent", "erase_wakeups_resent", "Wake-ups that the sweeper sent again"),
            ("leases_lost", "erase_leases_lost", "Jobs taken over from a silent worker"),
            ("fenced_writes", "erase_fenced_writes", "Writes refused for a stale attempt"),
            ("requeued", "erase_jobs_requeued", "Dead letters asked again"),
            ("faulty", "erase_jobs_faulty", "Failed jobs whose request was at fault"),
        ):
            yield CounterMetricFamily(metric, meaning, snapshot.counters.get(name, 0))
        depth = GaugeMetricFamily("erase_queue_depth", "Wake-ups in the queue", labels=["queue"])
        for queue, length in snapshot.queues.items():
            depth.add_metric([queue], length)
        yield depth
        present = snapshot.alive
        yield GaugeMetricFamily("erase_jobs_open", "Jobs accepted and not ended", snapshot.open_jobs)
        yield GaugeMetricFamily("erase_jobs_open_pixels", "Pixels of their images", snapshot.open_pixels)
        yield GaugeMetricFamily("erase_dead_letters", "Jobs given up and not dealt with", snapshot.dead_letters)
        yield from _redis_state(snapshot)
        yield GaugeMetricFamily("erase_oldest_open_job_age_seconds", "Oldest open job", snapshot.oldest_age_s)
        yield GaugeMetricFamily("erase_workers", "Workers with a recent heartbeat", len(present))
        yield GaugeMetricFamily("erase_worker_slots", "Jobs they can hold", sum(worker.slots for worker in present))
        yield GaugeMetricFamily("erase_worker_running", "Jobs they hold", sum(worker.running for worker in present))
        age = GaugeMetricFamily("erase_worker_heartbeat_age_seconds", "Age of the last heartbeat", labels=["worker"])
        for worker in snapshot.workers:
            seconds = max(0.0, (snapshot.now_ms - worker.heartbeat_ms) / 1000)
            if seconds < FORGOTTEN_S:
                age.add_metric([worker.worker], seconds)
        yield age


def _redis_state(snapshot: Snapshot) -> Iterator[Metric]:
    memory, disk = snapshot.memory, snapshot.disk
    if "used_memory" in memory:
        yield GaugeMetricFamily("erase_redis_memory_bytes", "Memory that Redis uses", memory["used_memory"])
        yield GaugeMetricFamily("erase_redis_memory_max_bytes", "Its maxmemory; 0: none", memory.get("maxmemory", 0))
    if "aof_enabled" in disk:
        written = disk.get("aof_last_write_status", "ok") == "ok"
        yield GaugeMetricFamily("erase_redis_aof_enabled", "1 if it keeps an append-only file", disk["aof_enabled"])
        yield GaugeMetricFamily("erase_redis_aof_write_ok", "1 if its last write went well", written)


class ServiceMetrics:
    """All metrics of one service process on a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._ledger = _LedgerCollector()
        registry.register(self._ledger)
        self.requests = Counter(
            "erase_http_requests", "HTTP requests answered", ["route", "method", "status"], registry=registry
        )
        self.duration = Histogram(
            "erase_http_request_duration_seconds", "To the last byte", ["route"], buckets=SECONDS, registry=registry
        )
        self.rejections = Counter(
            "erase_rejections", "Requests refused before they became a job", ["reason"], registry=registry
        )
        self.image_bytes = Counter("erase_image_bytes", "Bytes of accepted image files", registry=registry)
        self.waiting = Gauge("erase_http_requests_waiting", "Requests that wait for a job", registry=registry)
        build = Gauge("erase_build_info", "Version", ["version", "contract", "component"], registry=registry)
        build.labels(__version__, str(CONTRACT_VERSION), "service").set(1)

    def exposition(self, snapshot: Snapshot | None) -> bytes:
        """Prometheus' text format, with the ledger's values if Redis answered."""
        self._ledger.snapshot = snapshot
        return generate_latest(self.registry)


class RequestMetrics:
    """Middleware that counts and times every request by its route, refusals of `/v1/ask` by their reason."""

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status = CLIENT_LEFT

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, counted)
        except Exception:
            status = 500
            raise
        finally:
            route = str(getattr(scope.get("route"), "path", "unmatched"))
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self.metrics.requests.labels(route, method, str(status)).inc()
            self.metrics.duration.labels(route).observe(time.perf_counter() - started)
            if route in _ASKING and "erase.problem" in scope:
                self.metrics.rejections.labels(scope["erase.problem"]).inc()
