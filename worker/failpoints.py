"""Places at which a test can make this process kill itself, as a crash would: `ERASE_FAILPOINTS=in_decode=kill`."""

from __future__ import annotations

import os
import signal

NAMES = (
    "before_lease",
    "after_lease",
    "after_preprocess",
    "in_prefill",
    "in_decode",
    "after_emit",
    "before_finish",
    "after_finish",
)


class Failpoints:
    """The armed places. With none armed, `reach` does nothing."""

    def __init__(self, spec: str = "") -> None:
        self.armed: dict[str, str] = {}
        for pair in filter(None, spec.split(",")):
            name, _, action = pair.partition("=")
            if name not in NAMES or action != "kill":
                raise ValueError(
                    f"ERASE_FAILPOINTS: unknown {pair!r}; expected NAME=kill with NAME one of {', '.join(NAMES)}"
                )
            self.armed[name] = action

    def reach(self, name: str) -> None:
        """The process got to this place."""
        if name in self.armed:
            os.kill(os.getpid(), signal.SIGKILL)
