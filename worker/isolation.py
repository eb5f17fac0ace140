"""Whose turn it is within a worker: first tries of jobs work beside each other, a later try works alone."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LOOK_EVERY_S = 0.2


class Isolation:
    """Turns in the order in which they are asked for. Whatever kills the process during a turn alone, that job did."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._line: deque[object] = deque()
        self._inside = 0
        self._alone = False

    @contextmanager
    def turn(self, check: Callable[[], None], *, alone: bool) -> Iterator[None]:
        """Wait for a turn and hold it. `check` is called now and then while waiting; what it raises ends that."""
        place = object()
        with self._changed:
            self._line.append(place)
            try:
                while self._line[0] is not place or self._alone or (alone and self._inside):
                    self._changed.wait(_LOOK_EVERY_S)
                    check()
                self._inside += 1
                self._alone = alone
            finally:
                self._line.remove(place)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._alone = False
                self._changed.notify_all()
