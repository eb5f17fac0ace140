"""Turns within a worker: first tries beside each other, a later one alone, in the order in which they came."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from random import Random

import pytest

from tests.worker.helpers import until
from worker.isolation import Isolation


@dataclass
class Turns:
    """Who is inside now, and who came in, in order."""

    isolation: Isolation = field(default_factory=Isolation)
    inside: set[str] = field(default_factory=set)
    came: list[str] = field(default_factory=list)
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(16))
    ends: dict[str, threading.Event] = field(default_factory=dict)

    def take(self, name: str, *, alone: bool = False, check: object = None) -> Future[None]:
        """Ask for a turn, which lasts until `end`; return when it waits in line or is inside."""
        self.ends[name] = threading.Event()
        before = len(self.isolation._line)

        def work() -> None:
            with self.isolation.turn(check or (lambda: None), alone=alone):  # type: ignore[arg-type]
                self.came.append(name)
                self.inside.add(name)
                assert self.ends[name].wait(10)
                self.inside.discard(name)

        future = self.pool.submit(work)
        until(lambda: future.done() or name in self.came or len(self.isolation._line) > before, "a place in line")
        return future

    def end(self, *names: str) -> None:
        for name in names:
            self.ends[name].set()


@pytest.fixture
def turns() -> Iterator[Turns]:
    turns = Turns()
    yield turns
    turns.end(*turns.ends)
    turns.pool.shutdown()


def test_first_tries_share_the_worker(turns: Turns) -> None:
    for name in "abc":
        turns.take(name)
    until(lambda: turns.inside == {"a", "b", "c"}, "all inside")


def test_a_later_try_waits_for_all_and_all_wait_for_it(turns: Turns) -> None:
    turns.take("a")
    turns.take("b")
    until(lambda: turns.inside == {"a", "b"}, "both inside")
    turns.take("again", alone=True)
    turns.take("c")
    turns.end("a")
    time.sleep(0.05)
    assert turns.inside <= {"b"}
    turns.end("b")
    until(lambda: turns.inside == {"again"}, "the later try inside")
    time.sleep(0.05)
    assert turns.inside == {"again"}
    turns.end("again")
    until(lambda: turns.inside == {"c"}, "the next one inside")
    assert turns.came[2:] == ["again", "c"]


def test_later_tries_take_turns(turns: Turns) -> None:
    futures = [turns.take(name, alone=True) for name in "abc"]
    for name, future in zip("abc", futures, strict=True):
        until(lambda name=name: turns.inside == {name}, "its turn")  # type: ignore[misc]
        turns.end(name)
        future.result(10)


def test_whoever_need_not_wait_any_longer_leaves_the_line(turns: Turns) -> None:
    lost = threading.Event()

    def check() -> None:
        if lost.is_set():
            raise TimeoutError

    turns.take("a")
    until(lambda: turns.inside == {"a"}, "inside")
    gone = turns.take("again", alone=True, check=check)
    turns.take("b")
    lost.set()
    with pytest.raises(TimeoutError):
        gone.result(10)
    until(lambda: turns.inside == {"a", "b"}, "the next one inside")


def test_a_turn_that_fails_is_over(turns: Turns) -> None:
    with pytest.raises(ArithmeticError), turns.isolation.turn(lambda: None, alone=True):
        raise ArithmeticError
    turns.take("a")
    until(lambda: turns.inside == {"a"}, "inside")


def test_in_any_mixture_who_is_alone_is_alone_and_nobody_is_forgotten() -> None:
    isolation, rng = Isolation(), Random(5)
    inside: list[bool] = []
    lock = threading.Lock()

    def work(alone: bool, seconds: float) -> None:
        with isolation.turn(lambda: None, alone=alone):
            with lock:
                inside.append(alone)
                assert not any(inside) or len(inside) == 1
            time.sleep(seconds)
            with lock:
                inside.remove(alone)

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(work, rng.random() < 0.3, rng.random() / 500) for _ in range(300)]:
            future.result(30)
    assert not isolation._line
