"""Each priority's own share of a worker: batch never starves, interactive never waits behind batch.

kombu asks a *queue order strategy* which queues to fetch from next. Ours leaves out a queue whose jobs already fill its
slots, counted from Celery's own set of unfinished requests, so that nothing can leak over a reconnect.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

from celery.worker import state
from kombu.utils.scheduling import round_robin_cycle

from worker.contract import queue_share


class SlotCycle(round_robin_cycle):  # type: ignore[misc]
    """Round robin over the queues whose priority has a free slot.

    kombu makes the instance, so the slots, by priority, are set on the class.
    """

    slots: ClassVar[Mapping[str, int]] = {}

    def consume(self, n: int) -> list[str]:
        """The queues to fetch one message from, in order."""
        busy = held_by_share(state.reserved_requests)
        return [queue for queue in self.items[:n] if busy[queue_share(queue)] < self.slots.get(queue_share(queue), 1)]


def held_by_share(requests: Any) -> Counter[str]:
    """How many unfinished requests came from the queues of each priority."""
    while True:
        try:
            return Counter(queue_share(request.delivery_info.get("routing_key", "")) for request in list(requests))
        except RuntimeError:
            # A thread of the pool finished a request while the set was being read.
            continue
