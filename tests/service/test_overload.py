"""Ten times as many requests as can be answered: the answers keep coming, and refusals come at once.

`python -m bench.front --only overload --overload-seconds 300` is the long form.
"""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from bench.front import measure_overload, measure_waiters, picture
from bench.raw_http import json_request, multipart_request

LEAST_GOODPUT = 0.9
SLOWEST_REFUSAL_S = 0.5
"""Of the median refusal, also on a machine that does something else beside; the benchmark's figures are what counts."""


def test_under_ten_times_the_peak_goodput_stays_and_refusals_are_fast(tmp_path: Path) -> None:
    overload = measure_overload(tmp_path, seconds=12, times=10, image=picture(100_000))
    print(overload)
    assert overload.refused > 0
    assert overload.others == {"not sent in time": 0, "connection failed": 0}
    assert overload.share >= LEAST_GOODPUT
    assert overload.refusal_p50 < SLOWEST_REFUSAL_S


def requests() -> dict[str, bytes]:
    """The same question about one image by all ways that it can come."""
    image = picture(300_000)
    data = base64.b64encode(image).decode()
    shown = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    chat = {"model": "instant", "messages": [{"role": "user", "content": [{"type": "text", "text": "?"}, shown]}]}
    return {
        "form": multipart_request("/v1/ask", image, "?"),
        "json": json_request("/v1/ask", {"prompt": "?", "images": [{"data": data}]}),
        "chat": json_request("/v1/chat/completions", chat),
    }


@pytest.mark.parametrize("kind", ["form", "json", "chat"])
def test_waiting_requests_take_no_connections_hold_no_images_and_are_all_answered(tmp_path: Path, kind: str) -> None:
    count = 400
    waiters = measure_waiters(tmp_path, count, requests()[kind])
    print(waiters)
    assert waiters.answered == count
    assert (waiters.memory - waiters.memory_before) / count < 150_000
    assert waiters.connections <= 24  # the pool, the readers, and the benchmark's own
