"""Each queue's own share of a worker, by the numbers and with a real Celery worker."""

from __future__ import annotations

import statistics
import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery import Celery
from celery.contrib.testing.worker import start_worker
from celery.worker import state as celery_state
from kombu.asynchronous import Hub
from kombu.transport.redis import Channel
from redis.exceptions import ReadOnlyError

from tests.worker.helpers import until
from worker import slots
from worker.app import make_app
from worker.contract import Priority, queue_name, queue_task
from worker.settings import Settings
from worker.slots import SlotChannel, SlotCycle, _Rejoin, held_by_share

INTERACTIVE, BATCH = queue_name(Priority.INTERACTIVE), queue_name(Priority.BATCH)


class Request:
    """An unfinished request as Celery keeps it."""

    def __init__(self, queue: str | None) -> None:
        self.delivery_info = {} if queue is None else {"routing_key": queue, "exchange": ""}


@pytest.fixture
def cycle(monkeypatch: pytest.MonkeyPatch) -> SlotCycle:
    monkeypatch.setattr(SlotCycle, "slots", {"interactive": 2, "batch": 1})
    cycle = SlotCycle()
    cycle.update([INTERACTIVE, BATCH])
    return cycle


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Any:
    held: list[Request] = []
    monkeypatch.setattr(celery_state, "reserved_requests", held)
    return lambda *queues: held.extend(Request(queue) for queue in queues)


class TestOrder:
    def test_all_queues_are_served_while_slots_are_free(self, cycle: SlotCycle, hold: Any) -> None:
        hold(INTERACTIVE)
        assert cycle.consume(2) == [INTERACTIVE, BATCH]

    def test_the_queue_served_last_comes_last(self, cycle: SlotCycle, hold: Any) -> None:
        cycle.rotate(INTERACTIVE)
        assert cycle.consume(2) == [BATCH, INTERACTIVE]

    @pytest.mark.parametrize(
        ("held", "served"), [((BATCH,), [INTERACTIVE]), ((INTERACTIVE,) * 2, [BATCH]), ((INTERACTIVE,) * 5, [BATCH])]
    )
    def test_a_full_queue_is_left_out_and_the_other_still_served(
        self, cycle: SlotCycle, hold: Any, held: tuple[str, ...], served: list[str]
    ) -> None:
        hold(*held)
        assert cycle.consume(2) == served

    def test_nothing_is_fetched_when_all_are_full(self, cycle: SlotCycle, hold: Any) -> None:
        hold(INTERACTIVE, BATCH, INTERACTIVE)
        assert cycle.consume(2) == []

    def test_nothing_is_fetched_while_the_worker_is_paused(
        self, cycle: SlotCycle, hold: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(SlotCycle, "paused", staticmethod(lambda: True))
        assert cycle.consume(2) == []
        monkeypatch.undo()
        assert SlotCycle.paused() is False

    def test_requests_without_a_queue_fill_nobodys_slots(self, cycle: SlotCycle, hold: Any) -> None:
        hold(None, None, None)
        assert cycle.consume(2) == [INTERACTIVE, BATCH]

    def test_a_queue_of_unknown_size_gets_one_slot(self, cycle: SlotCycle, hold: Any) -> None:
        cycle.update(["other"])
        assert cycle.consume(1) == ["other"]
        hold("other")
        assert cycle.consume(1) == []

    def test_each_queue_is_counted_for_itself(self) -> None:
        requests = [Request(INTERACTIVE), Request(BATCH), Request(INTERACTIVE)]
        assert held_by_share(requests) == Counter({"interactive": 2, "batch": 1})

    def test_requests_that_end_during_the_count_do_not_disturb_it(self) -> None:
        class Ending:
            """A set that another thread changes during the first look at it, as `WeakSet` tells it."""

            looks = 0

            def __iter__(self) -> Iterator[Request]:
                self.looks += 1
                yield Request(BATCH)
                if self.looks == 1:
                    raise RuntimeError("Set changed size during iteration")

        assert held_by_share(Ending()) == Counter({"batch": 1})

    def test_counting_holds_up_while_threads_finish_requests(self) -> None:
        requests: weakref.WeakSet[Request] = weakref.WeakSet()
        stop = threading.Event()

        def churn() -> None:
            while not stop.is_set():
                mine = [Request(BATCH) for _ in range(20)]
                for request in mine:
                    requests.add(request)
                for request in mine:
                    requests.discard(request)

        threads = [threading.Thread(target=churn) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(300):
                held_by_share(requests)
        finally:
            stop.set()
            for thread in threads:
                thread.join()


class Floor:
    """What a task of the test does: it says that it runs, and waits until it may leave."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running: set[str] = set()
        self.done: list[str] = []
        self.most: Counter[str] = Counter()
        self.doors: dict[str, threading.Event] = {kind: threading.Event() for kind in ("interactive", "batch")}

    def run(self, job_id: str) -> None:
        kind = job_id.partition("-")[0]
        with self.lock:
            self.running.add(job_id)
            self.most[kind] = max(self.most[kind], self.count(kind))
        assert self.doors[kind].wait(20)
        with self.lock:
            self.running.discard(job_id)
            self.done.append(job_id)

    def count(self, kind: str) -> int:
        return sum(job.startswith(kind) for job in self.running)


@contextmanager
def celery_worker(app: Celery, threads: int) -> Iterator[None]:
    with start_worker(app, concurrency=threads, pool="threads", perform_ping_check=False, shutdown_timeout=20):
        yield


@pytest.fixture
def floor(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A real worker with 2 interactive slots, 1 batch slot and spare threads."""
    monkeypatch.setattr(SlotCycle, "slots", {})
    floor = Floor()
    app = make_app(Settings(redis_url=redis_url, interactive_slots=2, batch_slots=1), floor.run)
    with celery_worker(app, threads=6):
        try:
            yield SimpleNamespace(floor=floor, app=app)
        finally:
            for door in floor.doors.values():
                door.set()
            until(lambda: not floor.running and not list(celery_state.reserved_requests), "the end of all tasks")
    app.close()


def send(app: Celery, kind: str, numbers: range) -> None:
    for number in numbers:
        queue = queue_name(Priority(kind))
        app.send_task(queue_task(queue), args=[f"{kind}-{number}"], queue=queue)


class TestRealWorker:
    def test_a_replica_is_asked_now_and_then_until_it_is_the_primary(
        self, floor: SimpleNamespace, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read = Channel._brpop_read
        refused = Counter[str]()

        def counting(channel: Channel, **options: Any) -> Any:
            try:
                return read(channel, **options)
            except ReadOnlyError:
                refused["times"] += 1
                raise

        monkeypatch.setattr(Channel, "_brpop_read", counting)
        monkeypatch.setattr(slots, "READ_ONLY_PAUSE_S", 0.3)
        floor, app = floor.floor, floor.app
        redis_client.execute_command("REPLICAOF", "127.0.0.1", "1")
        try:
            until(lambda: refused["times"], "the first refusal")
            time.sleep(1.0)
        finally:
            redis_client.execute_command("REPLICAOF", "NO", "ONE")
        assert refused["times"] <= 5
        floor.doors["batch"].set()
        send(app, "batch", range(2))
        until(lambda: len(floor.done) == 2, "the jobs that came afterwards")

    @pytest.mark.parametrize(
        ("crowd", "slots", "guest"), [("batch", 1, "interactive"), ("interactive", 2, "batch")], ids=lambda v: str(v)
    )
    def test_a_crowd_never_takes_the_other_queues_slots(
        self, floor: SimpleNamespace, redis_client: redis.Redis, crowd: str, slots: int, guest: str
    ) -> None:
        floor, app = floor.floor, floor.app
        send(app, crowd, range(8))
        until(lambda: floor.count(crowd) == slots, "the crowd in its slots")
        floor.doors[guest].set()
        send(app, guest, range(5))
        until(lambda: len(floor.done) == 5, "the guests' end")
        assert all(job.startswith(guest) for job in floor.done)
        assert floor.most[crowd] == slots
        assert redis_client.llen(queue_name(Priority(crowd))) == 8 - slots
        floor.doors[crowd].set()
        until(lambda: len(floor.done) == 13, "everybody's end")
        assert floor.most[crowd] <= slots
        assert sorted(set(floor.done)) == sorted(floor.done)

    def test_full_slots_on_both_sides_leave_the_rest_in_redis(
        self, floor: SimpleNamespace, redis_client: redis.Redis
    ) -> None:
        floor, app = floor.floor, floor.app
        send(app, "batch", range(4))
        send(app, "interactive", range(4))
        until(lambda: len(floor.running) == 3, "full slots")
        assert (floor.count("interactive"), floor.count("batch")) == (2, 1)
        assert redis_client.llen(INTERACTIVE) == 2
        assert redis_client.llen(BATCH) == 3
        for door in floor.doors.values():
            door.set()
        until(lambda: len(floor.done) == 8, "everybody's end")
        assert (floor.most["interactive"], floor.most["batch"]) == (2, 1)

    def test_a_slot_that_becomes_free_is_filled_at_once(self, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also while a fetch for the batch queue, which began when the other was full, still blocks at Redis."""
        ended: list[None] = []
        unblock = SlotChannel._unblock
        monkeypatch.setattr(SlotChannel, "_may_unblock", True)
        monkeypatch.setattr(SlotChannel, "_unblock", lambda channel: ended.append(unblock(channel)))
        assert statistics.median(self.gaps(redis_url, 16, monkeypatch)) < 0.1
        assert len(ended) > 8

    @pytest.mark.parametrize("missing", ["-client|unblock", "-client|id"])
    def test_without_the_right_to_end_a_fetch_a_slot_is_filled_later(
        self, redis_url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, missing: str
    ) -> None:
        warnings: list[str] = []
        monkeypatch.setattr("worker.slots.log.warning", warnings.append)
        monkeypatch.setattr(SlotChannel, "_may_unblock", True)
        redis_client.execute_command("ACL", "SETUSER", "weak", "reset", "on", ">secret", "~*", "&*", "+@all", missing)
        gaps = self.gaps(redis_url.replace("redis://", "redis://weak:secret@"), 5, monkeypatch)
        assert len(gaps) == 4
        assert len(warnings) == 1

    def test_the_loop_keeps_nothing_of_transports_that_are_gone(self, redis_url: str) -> None:
        app = make_app(Settings(redis_url=redis_url), lambda job_id: None)
        hub = Hub()
        try:
            for _ in range(3):
                with app.connection_for_read() as connection:
                    transport = connection.transport
                    transport.register_with_event_loop(connection.connection, hub)
            assert [callback._transport for callback in hub.on_tick if isinstance(callback, _Rejoin)] == [transport]
        finally:
            hub.close()
            app.close()

    @staticmethod
    def gaps(redis_url: str, jobs: int, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """Seconds between the end of a job and the begin of the next, in the only interactive slot of a worker."""
        monkeypatch.setattr(SlotCycle, "slots", {})
        begun: list[float] = []
        ended: list[float] = []

        def run(_job_id: str) -> None:
            begun.append(time.monotonic())
            time.sleep(0.03)
            ended.append(time.monotonic())

        app = make_app(Settings(redis_url=redis_url, interactive_slots=1, batch_slots=1), run)
        send(app, "interactive", range(jobs))
        with celery_worker(app, threads=4):
            until(lambda: len(ended) == jobs, "everybody's end")
        app.close()
        return [later - earlier for earlier, later in zip(ended, begun[1:], strict=False)]
