"""Places at which tests let a worker die."""

from __future__ import annotations

import subprocess
import sys

import pytest

from worker.failpoints import NAMES, Failpoints


@pytest.mark.parametrize("spec", ["nowhere=kill", "in_decode", "in_decode=stop", "in_decode=kill,x", "in_decode=kill "])
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
