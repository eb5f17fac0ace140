"""How far a long job is, on standard error: a bar in a terminal, a line every half minute in a file or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

LINE_EVERY_S = 30.0
_LINE = "{desc}: {n_fmt} of {total_fmt} [{elapsed}, {remaining} left, {rate_fmt}{postfix}]"


class _Lines:
    """Standard error for tqdm: the states that it draws over one another become lines."""

    def __init__(self) -> None:
        self._last = ""

    def write(self, text: str) -> None:
        line = text.strip()
        if line and line != self._last:
            print(line, file=sys.stderr, flush=True)
            self._last = line

    def flush(self) -> None:
        sys.stderr.flush()


def progress_bar(iterable: Iterable[Any] | None = None, **options: Any) -> tqdm[Any]:
    """tqdm's bar, with its arguments; outside of a terminal lines, none for what ends within half a minute."""
    if not sys.stderr.isatty():
        times = {"mininterval": LINE_EVERY_S, "delay": LINE_EVERY_S, "miniters": 1}
        options |= {"file": _Lines(), "bar_format": _LINE, **times}
    return tqdm(iterable, **options)
