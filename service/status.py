"""Whether this process lives, whether it can accept, who works for it, and its metrics."""

from __future__ import annotations

import asyncio
import logging

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST
from redis.exceptions import RedisError

from service import __version__, openapi
from service.access import AnyCaller, MetricsReader
from service.metrics import SCRAPE_TIMEOUT_S, read_snapshot
from service.runtime import Process
from worker.contract import CONTRACT_VERSION, Frozen, WorkerInfo

logger = logging.getLogger("erase.service")

router = APIRouter(tags=["operations"])


class Health(Frozen):
    """Answer of the probes."""

    status: str = "ok"


class StatusReport(Frozen):
    """The deployment at a glance. Queue depths count wake-ups that no worker has taken."""

    version: str
    contract: int
    workers: tuple[WorkerInfo, ...]
    models: tuple[str, ...]
    queues: dict[str, int]
    jobs_open: int


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", summary="The process lives")
async def healthz() -> Health:
    """200 as long as the process answers at all."""
    return Health()


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", summary="Requests can be accepted", responses=openapi.UNAVAILABLE_RESPONSE)
async def readyz(runtime: Process) -> Health:
    """200 if Redis is reachable and keeps what it accepts; says nothing about workers."""
    await runtime.durability.check()
    return Health()


@router.get("/v1/status", summary="Workers, models and queues")
async def status(runtime: Process, caller: AnyCaller) -> StatusReport:
    """What the workers that are alive can do, and how much waits for them."""
    snapshot = await read_snapshot(runtime.redis)
    workers = snapshot.alive
    return StatusReport(
        version=__version__,
        contract=CONTRACT_VERSION,
        workers=tuple(workers),
        models=tuple(sorted({worker.model for worker in workers})),
        queues=dict(snapshot.queues),
        jobs_open=snapshot.open_jobs,
    )


@router.get("/metrics", summary="Prometheus metrics", response_class=Response)
async def metrics(runtime: Process, caller: MetricsReader) -> Response:
    """Text format; the ledger's values are left out while Redis does not answer. Keys need the scope metrics."""
    snapshot = None
    try:
        async with asyncio.timeout(SCRAPE_TIMEOUT_S):
            snapshot = await read_snapshot(runtime.redis)
    except (RedisError, OSError, TimeoutError) as error:
        logger.warning("the ledger cannot be read for metrics: %s", type(error).__name__)
    return Response(runtime.metrics.exposition(snapshot), media_type=CONTENT_TYPE_LATEST)
