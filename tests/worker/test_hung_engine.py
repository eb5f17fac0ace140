"""A worker whose engine hangs ends itself, so that its supervisor starts another one."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.starter import STARTER
from worker.runtime import HUNG

HANGS = """
import threading, time
from worker.runtime import WorkerRuntime
from worker.settings import load_settings
from worker.slots import SlotCycle

runtime = WorkerRuntime(load_settings())
runtime.start()
assert not SlotCycle.paused()
runtime.engine._prefill = lambda: time.sleep(600)
threading.Thread(target=runtime._warm_up, daemon=True).start()
deadline = time.monotonic() + 30
while time.monotonic() < deadline:
    if SlotCycle.paused():
        print("paused", flush=True)
        break
    time.sleep(0.01)
time.sleep(60)
"""


def test_a_worker_whose_engine_hangs_takes_no_more_jobs_and_ends(redis_url: str) -> None:
    environment = os.environ | {
        "ERASE_REDIS_URL": redis_url,
        "ERASE_MODEL": str(STARTER),
        "ERASE_STALL_S": "3",
        "ERASE_WORKER_METRICS_PORT": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", HANGS], env=environment, capture_output=True, text=True, timeout=90, check=False
    )
    assert (done.returncode, done.stdout) == (HUNG, "paused\n"), done.stderr
