"""Entry of a worker process: settings, model, then Celery's consumer until SIGTERM."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType

from celery.signals import worker_shutting_down

from erase import EraseError
from worker.app import consume
from worker.logs import configure_logging
from worker.runtime import WorkerRuntime
from worker.settings import Settings

log = logging.getLogger("worker")
ENGINE_DIED = 1


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


def run_worker(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; running jobs get `ERASE_DRAIN_S` to finish, the rest are given back.

    Returns the exit status: 0 after a stop, 1 when the engine died, 2 when the worker cannot start. When the engine
    or a job hangs, the process ends with 3 from within.
    """
    configure_logging(settings)
    # Until Celery installs its own handlers the worker holds no job and may leave at once. The first process of a
    # container needs one to be stopped at all: a signal that it does not handle is ignored.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    runtime = WorkerRuntime(settings)
    try:
        runtime.start()
    except (EraseError, ValueError, OSError) as error:
        log.error("the worker cannot start: %s", error)
        return 2

    def on_shutting_down(**_: object) -> None:
        log.info("stopping: running jobs have %.0f s to finish", settings.drain_s)
        timer = threading.Timer(settings.drain_s, runtime.runner.drain)
        timer.daemon = True
        timer.start()

    worker_shutting_down.connect(on_shutting_down)
    status = consume(runtime.app, settings, runtime.name, settings.log_level)
    died = not runtime.engine.alive
    runtime.stop()
    return ENGINE_DIED if died else status
