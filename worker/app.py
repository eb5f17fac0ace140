"""The Celery application of a worker: JSON only, thread pool, late acknowledgement, no result backend.

Messages are wake-ups and the ledger is the truth: Celery's own redelivery is off, the sweeper does what is needed.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable

from celery import Celery
from kombu import Exchange, Queue

from worker.contract import OLDEST_CONTRACT, Priority, queue_name, queue_task
from worker.settings import Settings
from worker.slots import SlotCycle

SPARE_THREADS = 2


def make_app(settings: Settings, run: Callable[[str], None]) -> Celery:
    """Build the application; each wake-up calls `run(job_id)` in a thread of the pool."""
    SlotCycle.slots = {
        Priority.INTERACTIVE.value: settings.interactive_slots,
        Priority.BATCH.value: settings.batch_slots,
    }
    queues = served_queues(settings)
    app = Celery("erase-worker", broker=settings.redis_url, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_acks_late=True,
        task_ignore_result=True,
        task_queues=[Queue(name, Exchange(name), routing_key=name) for name in queues],
        task_default_queue=queue_name(Priority.INTERACTIVE),
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_channel_error_retry=True,  # Redis may refuse to write for a while: memory or disk full
        broker_transport="worker.slots:SlotTransport",
        # Not by the URL's scheme, since the transport is named here; options in the URL (ssl_ca_certs) take its place.
        broker_use_ssl={"ssl_cert_reqs": ssl.CERT_REQUIRED} if settings.redis_url.startswith("rediss:") else False,
        broker_transport_options={
            "socket_timeout": 10,
            "socket_connect_timeout": 3,
            "socket_keepalive": True,
            "health_check_interval": 25,
            "priority_steps": [0],
            "ack_emulation": False,
            # Without acknowledgements nothing of ours is redelivered; others in this Redis share the shortest of these.
            "visibility_timeout": 3600,
            "unacked_mutex_expire": 30,
            "queue_order_strategy": "worker.slots:SlotCycle",
            "polling_interval": 0.1,  # a worker that ends waits for its fetch
        },
    )

    def run_job(job_id: str) -> None:
        run(job_id)

    for name in {queue_task(queue) for queue in queues}:
        # Not shared: Celery would give the task to every other application of the process, with this one's `run`.
        app.task(run_job, name=name, shared=False)
    return app


def served_queues(settings: Settings) -> list[str]:
    """Queues that a worker reads: both priorities of every contract version that it serves."""
    versions = range(OLDEST_CONTRACT, settings.contract + 1)
    return [queue_name(priority, version) for version in versions for priority in Priority]


def consume(app: Celery, settings: Settings, name: str, log_level: str) -> int:
    """Run Celery's consumer until a signal; its exit status."""
    try:
        app.worker_main(
            [
                "worker",
                "--pool=threads",
                f"--concurrency={settings.interactive_slots + settings.batch_slots + SPARE_THREADS}",
                f"--queues={','.join(served_queues(settings))}",
                f"--hostname={name}",
                f"--loglevel={log_level}",
                "--without-gossip",
                "--without-mingle",
                "--without-heartbeat",
            ]
        )
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0
