"""Each priority's own share of a worker: batch never starves, interactive never waits behind batch.

kombu asks a *queue order strategy* which queues to fetch from next. Ours leaves out a queue whose jobs already fill its
slots, counted from Celery's own set of unfinished requests, so that nothing can leak over a reconnect.

A fetch blocks at Redis on the queues that it began with. One that left out a full queue is ended when the queue has a
free slot again.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from celery.worker import state
from kombu.transport.redis import Channel, Transport
from kombu.utils.scheduling import round_robin_cycle
from redis.exceptions import NoPermissionError, ReadOnlyError, ResponseError

from worker.contract import queue_share

log = logging.getLogger(__name__)
READ_ONLY_PAUSE_S = 1.0


class SlotCycle(round_robin_cycle):  # type: ignore[misc]
    """Round robin over the queues whose priority has a free slot.

    kombu makes the instance, so the slots, by priority, and what pauses the worker are set on the class.
    """

    slots: ClassVar[Mapping[str, int]] = {}
    paused: ClassVar[Callable[[], bool]] = staticmethod(lambda: False)

    def consume(self, n: int) -> list[str]:
        """The queues to fetch one message from, in order; none while the worker is `paused`."""
        if type(self).paused():
            return []
        busy = held_by_share(state.reserved_requests)
        return [queue for queue in self.items[:n] if busy[queue_share(queue)] < self.slots.get(queue_share(queue), 1)]


class SlotChannel(Channel):  # type: ignore[misc]
    """kombu's channel, whose fetches can be ended."""

    # kombu must neither keep nor put back wake-ups: the sweeper does what is needed, and 5.7.0 ends the whole worker
    # when it acknowledges or restores a message of a connection that was lost (seen with Redis restarted under load).
    do_restore = False

    _fetched = 0
    """How many queues the running fetch waits for; all of them once it is being ended."""
    _connection_id: tuple[Any, int] | None = None
    """The socket of the fetches, and what Redis calls it."""
    _may_unblock = True
    """Of all channels of the process: a new one is made after each lost connection."""

    def _brpop_start(self, timeout: float | None = None) -> None:
        self._fetched = len(self._queue_cycle.consume(len(self.active_queues)))
        if 0 < self._fetched < len(self.active_queues):
            self._if_allowed(self._learn_connection_id)
        super()._brpop_start(timeout)

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except ReadOnlyError:
            # A replica, until a failover is through. Celery connects anew at once, hundreds of times a second.
            time.sleep(READ_ONLY_PAUSE_S)
            raise

    def rejoin(self) -> None:
        """End the running fetch if it left out a queue that has a free slot by now."""
        if not (self._in_poll and self._fetched < len(self.active_queues) and self._connection_id):
            return
        if self._connection_id[0] is not self._in_poll._sock:  # an older one's, and by now perhaps somebody else's
            return
        if len(self._queue_cycle.consume(len(self.active_queues))) <= self._fetched:
            return
        self._fetched = len(self.active_queues)
        self._if_allowed(self._unblock)

    def _unblock(self) -> None:
        assert self._connection_id is not None  # noqa: S101
        with self.conn_or_acquire() as client:
            client.client_unblock(self._connection_id[1])

    @staticmethod
    def _if_allowed(command: Callable[[], None]) -> None:
        """Run it unless Redis has refused it: without the right, or because it does not know it."""
        if not SlotChannel._may_unblock:
            return
        try:
            command()
        except ResponseError as error:
            if isinstance(error, NoPermissionError) or "unknown" in str(error).lower():
                SlotChannel._may_unblock = False
                log.warning("without CLIENT ID and CLIENT UNBLOCK a free slot waits for the end of a fetch")

    def _learn_connection_id(self) -> None:
        connection = self.client.connection
        if self._connection_id is None or self._connection_id[0] is not connection._sock:
            connection.send_command("CLIENT", "ID")
            self._connection_id = connection._sock, int(connection.read_response())


class SlotTransport(Transport):  # type: ignore[misc]
    """kombu's transport over Redis, with `SlotChannel`s."""

    Channel = SlotChannel

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Also look, whenever the loop turns, whether a fetch is to be ended."""
        super().register_with_event_loop(connection, loop)
        # The loop outlives a transport, which is made anew after each lost connection.
        loop.on_tick -= {callback for callback in loop.on_tick if isinstance(callback, _Rejoin)}
        loop.on_tick.add(_Rejoin(self))


class _Rejoin:
    """What the loop calls when it turns."""

    def __init__(self, transport: SlotTransport) -> None:
        self._transport = transport

    def __call__(self) -> None:
        for channel in self._transport.cycle._channels:
            channel.rejoin()


def held_by_share(requests: Any) -> Counter[str]:
    """How many unfinished requests came from the queues of each priority."""
    while True:
        try:
            return Counter(queue_share(request.delivery_info.get("routing_key", "")) for request in list(requests))
        except RuntimeError:
            # A thread of the pool finished a request while the set was being read.
            continue
