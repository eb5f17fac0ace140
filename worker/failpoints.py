"""Places at which a test can make a process kill or stop itself: `ERASE_FAILPOINTS=in_decode=kill,after_lease=stop`.

A kill is a crash. A stop is a process that hangs (SIGSTOP) until somebody continues it; it happens once.
"""

from __future__ import annotations

import os
import signal

IN_SERVICE = ("before_store", "after_accept", "before_answer")
IN_WORKER = (
    "before_lease",
    "after_lease",
    "after_begin",
    "before_freeze",
    "after_freeze",
    "after_preprocess",
    "after_submit",
    "in_prefill",
    "in_decode",
    "before_write",
    "after_write",
    "after_emit",
    "before_flush",
    "before_finish",
    "after_finish",
    "before_acknowledge",
    "before_renew",
    "before_heartbeat",
    "before_sweep",
    "before_wake",
    "before_release",
)
NAMES = IN_SERVICE + IN_WORKER
ACTIONS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


def nowhere(name: str) -> None:
    """`Failpoints.reach` where nothing is armed."""


class Failpoints:
    """The armed places. With none armed, `reach` does nothing."""

    def __init__(self, spec: str = "") -> None:
        """Raises ValueError for a place or an action that is not known."""
        self.armed: dict[str, str] = {}
        for pair in filter(None, spec.split(",")):
            name, _, action = pair.partition("=")
            if name not in NAMES or action not in ACTIONS:
                known = f"NAME=kill or NAME=stop with NAME one of {', '.join(NAMES)}"
                raise ValueError(f"ERASE_FAILPOINTS: unknown {pair!r}; expected {known}")
            self.armed[name] = action

    def reach(self, name: str) -> None:
        """The process got to this place."""
        if name in self.armed and (action := self.armed.pop(name, None)):
            os.kill(os.getpid(), ACTIONS[action])
