"""Workers that start in a fraction of a second: forked from a process that has imported everything already."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from service.processes import Child
from tests.system.deployment import Deployment

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["worker.runtime", "worker.main"])


def _serve(environment: Mapping[str, str], log: str) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: end with the server that forked us
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["worker"]
    from worker.main import run_worker
    from worker.settings import load_settings

    sys.exit(run_worker(load_settings()))


class ForkedWorker(Child):
    """A worker with the interface of a child that was started from its command."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        super().__init__(name, command, environment, log)
        self._fork = _context.Process(target=_serve, args=(dict(environment), str(log)))
        self._started = False

    @property
    def pid(self) -> int | None:
        return self._fork.pid if self.running else None

    @property
    def running(self) -> bool:
        return self._started and self._fork.exitcode is None

    @property
    def exit_status(self) -> int | None:
        return self._fork.exitcode

    def start(self) -> None:
        self._fork.start()
        self._started = True

    def terminate(self) -> None:
        self.send(signal.SIGTERM)

    def stop(self, timeout_s: float) -> None:
        self.send(signal.SIGCONT)
        self.terminate()
        self._fork.join(timeout_s)
        self.send(signal.SIGKILL)
        self._fork.join()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it lives."""
        if self.running and self._fork.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._fork.pid, number)


def is_stopped(child: Child) -> bool:
    """Whether the process hangs in a stop signal."""
    if child.pid is None:
        return False
    with contextlib.suppress(OSError):
        return Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    return False


class FastDeployment(Deployment):
    """A deployment whose workers are forked."""

    @staticmethod
    def make_child(name: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> Child:  # type: ignore[override]
        kind = ForkedWorker if name == "worker" else Child
        return kind(name, command, environment, log)
