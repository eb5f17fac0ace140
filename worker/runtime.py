"""The worker process: loads the model once, then owns engine, leases, events, sweeper and heartbeat."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
import time
from dataclasses import replace
from functools import partial
from importlib.metadata import version

import redis
import torch
from celery import Celery
from PIL import Image
from prometheus_client import CollectorRegistry, start_http_server
from redis.backoff import ExponentialBackoff
from redis.exceptions import ReadOnlyError, RedisError
from redis.retry import Retry

from erase.engine import Engine, EngineLimits, EngineObserver, SamplingParams, Sequence
from erase.engine.threads import use_threads
from erase.methods import method_for
from erase.models.loading import load_model
from erase.models.prompt import prepare_images, prepare_prompt
from worker.app import make_app
from worker.contract import CONTRACT_VERSION, WORKERS_KEY, JobRequest, WorkerInfo
from worker.emitter import Emitter
from worker.errors import GiveBackError
from worker.failpoints import Failpoints
from worker.jobs import JobRunner
from worker.leases import LeaseKeeper
from worker.metrics import WorkerMetrics
from worker.policies import method_of, policy_book
from worker.settings import Settings
from worker.slots import SlotCycle
from worker.sweeper import Sweeper, redis_now_ms
from worker.wakeups import send_wakeup

log = logging.getLogger(__name__)
HEARTBEAT_S = 2.0
HUNG = 3
"""Exit status of a worker whose engine, or one of its jobs, makes no progress any more."""
_HUNG_AFTER = 2
"""Times `ERASE_STALL_S`: first the leases are lost, then the process."""
_LOOKS = 2
"""In how many heartbeats in a row it must be so: a process that was frozen and goes on is not hung."""


class _Observer(EngineObserver):
    """Passes the engine's steps on to metrics and failpoints."""

    def __init__(self, metrics: WorkerMetrics, failpoints: Failpoints, device: torch.device) -> None:
        self._metrics = metrics
        self._failpoints = failpoints
        self._cuda = device if device.type == "cuda" else None
        self._looked_up = (0, 0)
        self.warm = False

    def stepped(self, phase: str, batch: int) -> None:
        if self.warm:
            self._metrics.batch_size.labels(phase).observe(batch)
            self._failpoints.reach(f"in_{phase}")

    def load_changed(self, running: int, waiting: int, cache_tokens: float) -> None:
        self._metrics.running.set(running)
        self._metrics.waiting.set(waiting)
        self._metrics.cache_tokens.set(cache_tokens)
        if self._cuda is not None:
            self._metrics.gpu_memory.labels("allocated").set(torch.cuda.memory_allocated(self._cuda))
            self._metrics.gpu_memory.labels("reserved").set(torch.cuda.memory_reserved(self._cuda))

    def preempted(self) -> None:
        self._metrics.preemptions.inc()

    def images_looked_up(self, found: int, missing: int) -> None:
        before, self._looked_up = self._looked_up, (found, missing)
        for source, old, new in zip(("cache", "encoder"), before, self._looked_up, strict=True):
            self._metrics.image_features.labels(source).inc(new - old)


def engine_limits(settings: Settings) -> EngineLimits:
    """The engine's limits as the deployment wants them."""
    return EngineLimits(
        max_running=settings.max_running,
        max_prefill_tokens=settings.max_prefill_tokens,
        min_vision_tokens=settings.min_vision_tokens,
        context_length=settings.max_context,
        cache_tokens=settings.cache_tokens,
        feature_cache_bytes=settings.feature_cache_bytes,
        prefill_share=settings.prefill_share,
        interactive_share=settings.interactive_share,
        deterministic=settings.deterministic,
        attention=settings.attention,
    )


class WorkerRuntime:
    """Everything of a worker but Celery's consumer. `start` blocks until the model is loaded and warmed up."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self.app: Celery = make_app(settings, self._run)
        self.metrics = WorkerMetrics(CollectorRegistry())
        self._client = redis.Redis.from_url(
            settings.redis_url,
            socket_timeout=10,
            socket_connect_timeout=3,
            health_check_interval=25,
            retry=Retry(ExponentialBackoff(cap=1.0, base=0.05), 5),
        )
        self._stop = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Load, warm up, and announce the worker.

        Raises:
            erase.EraseError: the model or a policy cannot be used.
            ValueError: an unknown failpoint.
            OSError: the metrics port is taken.
        """
        settings = self.settings
        failpoints = Failpoints(settings.failpoints)
        threads = settings.cpu_threads or torch.get_num_threads()
        use_threads(1)  # the engine's thread gets them all
        server, _ = start_http_server(
            settings.worker_metrics_port, settings.worker_metrics_host, registry=self.metrics.registry
        )
        log.info("metrics on http://%s:%d/metrics", settings.worker_metrics_host, server.server_port)
        begun = time.monotonic()
        log.info("loading model %s", settings.model)
        self.loaded = load_model(
            settings.model, revision=settings.model_revision, device=settings.device, dtype=settings.dtype
        )
        self.book = policy_book(settings, self.loaded)
        observer = _Observer(self.metrics, failpoints, self.loaded.device)
        self.engine = Engine(self.loaded, replace(engine_limits(settings), cpu_threads=threads), observer)
        self.metrics.cache_capacity.set(self.engine.cache_capacity)
        self.engine.start()
        self._warm_up()
        observer.warm = True
        self.metrics.load_seconds.set(time.monotonic() - begun)
        log.info("model ready after %.1f s on %s", time.monotonic() - begun, self.loaded.device)
        self._set_info()

        self._reach = failpoints.reach
        self._keeper = LeaseKeeper(self._client, settings.lease_s, self._stalled, failpoints.reach)
        SlotCycle.paused = lambda: self.runner.stalled or self.runner.draining
        self._emitter = Emitter(self._client, failpoints.reach)
        self._sweeper = Sweeper(
            self._client,
            partial(send_wakeup, self._client),
            name=self.name,
            every_s=settings.sweep_every_s,
            wake_after_s=settings.wake_after_s,
            max_attempts=settings.max_attempts,
            reach=failpoints.reach,
        )
        self.runner = JobRunner(
            settings=settings,
            client=self._client,
            loaded=self.loaded,
            engine=self.engine,
            book=self.book,
            keeper=self._keeper,
            emitter=self._emitter,
            metrics=self.metrics,
            failpoints=failpoints,
            name=self.name,
        )
        self._started_ms = int(time.time() * 1000)
        for part in (self._keeper, self._emitter, self._sweeper, self._heart):
            part.start()

    def stop(self) -> None:
        """Take leave: no heartbeat, no leases, no engine. Jobs must have ended or been given back."""
        self._stop.set()
        self._heart.join(timeout=5)
        self._sweeper.stop()
        self._keeper.stop()
        self._emitter.stop()
        self.engine.stop()
        try:
            self._client.hdel(WORKERS_KEY, self.name)
        except RedisError as error:
            log.warning("cannot sign off: %s", error)
        self._client.close()

    def _stalled(self) -> bool:
        return self.runner.stalled

    @property
    def _hangs(self) -> bool:
        """Whether the engine, or a job's thread, long past its deadline, will not come back."""
        return max(self.engine.stalled_for, self.runner.overdue) > _HUNG_AFTER * self.settings.stall_s

    def _run(self, job_id: str) -> None:
        try:
            self.runner.run(job_id)
        except GiveBackError:
            log.info("job %s was given back: the next sweep wakes another worker", job_id)

    def _warm_up(self) -> None:
        """Answer one small question, so that the first client does not pay for lazy initialisation."""
        request = JobRequest(prompt="?", images=())
        method = method_of(self.book.plan(request, self.loaded))
        side = 4 * self.loaded.adapter.cell
        images = prepare_images(self.loaded, [Image.linear_gradient("L").resize((side, side))])
        prompt = prepare_prompt(self.loaded, "?", images)
        pixels = [image.pixels for image in images]
        for policy in self.book.policies.values():
            method_for(policy).preselect(pixels)  # compiles the loops of each kind of policy
        preselection = method.preselect(pixels)
        self.engine.submit(Sequence("warm-up", prompt, method, preselection, SamplingParams(max_tokens=4))).result()

    def _set_info(self) -> None:
        loaded = self.loaded
        self.metrics.model_info.labels(
            loaded.name,
            loaded.revision,
            str(loaded.device),
            str(loaded.dtype).removeprefix("torch."),
            self.book.default,
        ).set(1)
        self.metrics.build_info.labels(version("erase-serve"), str(CONTRACT_VERSION), "worker").set(1)

    def _info(self) -> WorkerInfo:
        loaded, settings = self.loaded, self.settings
        return WorkerInfo(
            worker=self.name,
            contract=settings.contract,
            model=loaded.name,
            model_revision=loaded.revision,
            device=str(loaded.device),
            dtype=str(loaded.dtype).removeprefix("torch."),
            context_length=self.engine.context_length,
            cell=loaded.adapter.cell,
            max_image_pixels=settings.max_image_pixels,
            policies=self.book.names,
            default_policy=self.book.default,
            slots=settings.interactive_slots + settings.batch_slots,
            running=self._keeper.held,
            started_ms=self._started_ms,
            heartbeat_ms=redis_now_ms(self._client),
        )

    def _beat(self) -> None:
        hung = 0
        while True:
            if not self.engine.alive and not self._stop.is_set():
                log.critical("the engine has died: this worker stops so that its supervisor starts a new one")
                os.kill(os.getpid(), signal.SIGTERM)
                return
            hung = hung + 1 if self._hangs else 0
            if hung == _LOOKS:
                log.critical("the engine or a job has hung: this worker ends so that its supervisor starts a new one")
                if not self.runner.stalled:
                    # One job that takes for ever must not cost the others a try.
                    self.runner.give_back(self.settings.lease_s)
                os._exit(HUNG)  # nothing that waits for that thread would ever return
            self._reach("before_heartbeat")
            try:
                self._client.hset(WORKERS_KEY, self.name, self._info().model_dump_json())
            except RedisError as error:
                log.warning("cannot send the heartbeat: %s", error)
                if isinstance(error, ReadOnlyError):
                    # After a failover another Redis may have the name; idle connections would stay with this one.
                    self._client.connection_pool.disconnect(inuse_connections=False)
            if self._stop.wait(HEARTBEAT_S):
                return
