"""The FastAPI application: routes, middleware, and the process' connections for as long as it runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI

from service import __version__, ask, chat, docs, jobs, problems, status
from service.auth import KeyRing
from service.fetching import ImageFetcher
from service.limits import BodyLimit
from service.metrics import RequestMetrics, ServiceMetrics
from service.openapi import ServiceAPI
from service.request_log import RequestLog
from service.runtime import open_runtime
from worker.failpoints import Failpoints

if TYPE_CHECKING:
    from worker.settings import Settings


def create_app(settings: Settings) -> FastAPI:
    """Build the application of one service process.

    Raises ValueError or OSError for a keys file, image hosts, networks or failpoints that cannot be used.
    """
    Failpoints(settings.failpoints)
    metrics = ServiceMetrics()
    fetcher = ImageFetcher(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_runtime(settings, metrics, fetcher) as runtime:
            app.state.runtime = runtime
            yield

    app = ServiceAPI(title="ERASE Serve", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.keys = KeyRing(settings)
    problems.install(app)
    # The last one added is the outermost: refusals of the body limit are counted, too.
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(RequestMetrics, metrics=metrics)
    app.add_middleware(RequestLog)
    app.include_router(ask.router)
    app.include_router(chat.router)
    app.include_router(jobs.router)
    app.include_router(status.router)
    docs.install(app)
    return app
