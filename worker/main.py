"""Entry of a worker process: settings, model, then Celery's consumer until SIGTERM."""

from __future__ import annotations

import logging
import threading

from celery.signals import worker_shutting_down

from erase import EraseError
from worker.app import served_queues
from worker.logs import configure_logging
from worker.runtime import WorkerRuntime
from worker.settings import Settings

log = logging.getLogger("worker")
SPARE_THREADS = 2
ENGINE_DIED = 1


def run_worker(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; running jobs get `ERASE_DRAIN_S` to finish, the rest are given back.

    Returns the exit status: 0 after a stop, 1 when the engine died, 2 when the worker cannot start.
    """
    configure_logging(settings)
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
    status = _consume(runtime)
    died = not runtime.engine.alive
    runtime.stop()
    return ENGINE_DIED if died else status


def _consume(runtime: WorkerRuntime) -> int:
    """Run Celery's consumer until a signal; its exit status."""
    settings = runtime.settings
    try:
        runtime.app.worker_main(
            [
                "worker",
                "--pool=threads",
                f"--concurrency={settings.interactive_slots + settings.batch_slots + SPARE_THREADS}",
                f"--queues={','.join(served_queues(settings))}",
                f"--hostname={runtime.name}",
                f"--loglevel={settings.log_level}",
                "--without-gossip",
                "--without-mingle",
                "--without-heartbeat",
            ]
        )
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0
