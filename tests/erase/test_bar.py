"""What a long job says about its progress."""

from __future__ import annotations

import io
import sys
import time

import pytest

from erase import bar
from erase.bar import progress_bar


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_outside_of_a_terminal_a_long_job_says_how_far_it_is_line_by_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bar, "LINE_EVERY_S", 0.05)
    with progress_bar(desc="asking", unit="answer") as shown:
        for number in range(1, 11):
            time.sleep(0.02)
            shown.total = 10
            shown.update()
            shown.set_postfix_str(f"best {number}", refresh=False)
    first, *_, last = lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) < 10
    assert first.startswith("asking: ")
    assert not first.startswith("asking: 10 ")
    assert last.startswith("asking: 10 of 10 [00:00, 00:00 left, ")
    assert last.endswith("answer/s, best 10]")


def test_outside_of_a_terminal_a_short_job_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress_bar(range(100), desc="drawing", unit="image")) == list(range(100))
    assert capsys.readouterr().err == ""


def test_in_a_terminal_one_line_is_drawn_over_and_over(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for _ in progress_bar(range(3), desc="drawing", unit="image", mininterval=0):
        time.sleep(0.01)
    assert terminal.getvalue().count("\r") > 2
    assert terminal.getvalue().count("\n") == 1
    assert "3/3" in terminal.getvalue()
