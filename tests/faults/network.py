"""A network that can be cut: a TCP proxy on loopback between a part of the system and Redis."""

from __future__ import annotations

import selectors
import socket
import threading
from typing import Literal

Line = Literal["open", "refused", "silent"]
_AT_ONCE = 65536
_SEND_S = 5.0


class Network:
    """Forwards what connects to its port.

    `line` says how: `open` forwards, `refused` ends every connection at once as a Redis that restarts does, and
    `silent` keeps them and swallows what is sent, as a cable that was pulled does.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._other: dict[socket.socket, socket.socket] = {}
        self.line: Line = "open"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Where to connect."""
        return int(self._listener.getsockname()[1])

    @property
    def url(self) -> str:
        """Redis behind this network."""
        return f"redis://127.0.0.1:{self.port}/0"

    def close(self) -> None:
        """Cut everything for good."""
        self._ended.set()
        self._thread.join()
        for one in [*self._other, self._listener]:
            one.close()
        self._selector.close()

    def _run(self) -> None:
        line: Line = "open"
        while not self._ended.is_set():
            now = self.line
            # What a cut swallowed is lost: connections that lived through it are broken, and must be made anew.
            if now == "refused" or (line == "silent" and now == "open"):
                for end in list(self._other):
                    self._drop(end)
            line = now
            for key, _ in self._selector.select(timeout=0.02):
                end = key.fileobj
                assert isinstance(end, socket.socket)
                if end is self._listener:
                    self._connect(now)
                elif end in self._other:
                    self._forward(end, now)

    def _connect(self, line: Line) -> None:
        near, _ = self._listener.accept()
        if line == "refused":
            near.close()
            return
        far = socket.create_connection(("127.0.0.1", self._target))
        for end, other in ((near, far), (far, near)):
            end.settimeout(_SEND_S)
            self._other[end] = other
            self._selector.register(end, selectors.EVENT_READ)

    def _forward(self, end: socket.socket, line: Line) -> None:
        try:
            data = end.recv(_AT_ONCE)
            if data and line == "open":
                self._other[end].sendall(data)
        except OSError:
            data = b""
        if not data:
            self._drop(end)

    def _drop(self, end: socket.socket) -> None:
        other = self._other.pop(end, None)
        if other is None:
            return
        del self._other[other]
        for one in (end, other):
            self._selector.unregister(one)
            one.close()
