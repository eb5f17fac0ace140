"""Places at which tests let a worker die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from worker.failpoints import NAMES, Failpoints


@pytest.mark.parametrize("spec", ["nowhere=kill", "in_decode", "in_decode=hang", "in_decode=kill,x", "in_decode=kill "])
def test_what_is_not_known_is_refused_by_name(spec: str) -> None:
    with pytest.raises(ValueError, match="ERASE_FAILPOINTS") as refusal:
        Failpoints(spec)
    assert "after_finish" in str(refusal.value)


@pytest.mark.parametrize("name", NAMES)
def test_an_unarmed_place_does_nothing(name: str) -> None:
    Failpoints().reach(name)
    Failpoints(",".join(f"{other}=kill" for other in NAMES if other != name)).reach(name)


def test_an_armed_place_kills_the_process_at_once() -> None:
    program = (
        "from worker.failpoints import Failpoints; Failpoints('in_decode=kill').reach('in_decode'); print('alive')"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, timeout=30)
    assert ended.returncode == -9
    assert ended.stdout == b""


def test_a_stop_happens_once_and_the_process_goes_on_when_it_is_continued() -> None:
    program = (
        "from worker.failpoints import Failpoints; f = Failpoints('in_decode=stop'); " + 2 * "f.reach('in_decode');"
    )
    with subprocess.Popen([sys.executable, "-c", program + "print('on')"], stdout=subprocess.PIPE) as process:
        assert os.waitpid(process.pid, os.WUNTRACED)[1] == (signal.SIGSTOP << 8 | 0x7F)
        process.send_signal(signal.SIGCONT)
        assert process.communicate(timeout=30)[0] == b"on\n"
