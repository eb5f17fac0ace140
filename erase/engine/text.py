"""Text from tokens as they come: no broken characters, no part of a stop string."""

from __future__ import annotations

from typing import Any

_UNFINISHED = "\ufffd"


class TextStream:
    """Turns one sequence's tokens into text deltas and notices stop strings."""

    def __init__(self, tokenizer: Any, stop: tuple[str, ...] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._ids: list[int] = []
        self._window = 0
        self._decoded = 0
        self._complete = ""
        self._sent = 0
        self.stopped = False

    @property
    def text(self) -> str:
        """All text so far, cut before a stop string."""
        return self._complete

    def push(self, token: int) -> str:
        """Add a token; returns the text that can be shown now."""
        self._ids.append(token)
        before = self._decode(self._ids[self._window : self._decoded])
        after = self._decode(self._ids[self._window :])
        # A token that shows nothing must not become the window: some tokenizers drop the space before its first token.
        if len(after) > len(before) and not after.endswith(_UNFINISHED):
            self._complete += after[len(before) :]
            self._window, self._decoded = self._decoded, len(self._ids)
        return self._release(final=False)

    def finish(self) -> str:
        """The sequence has ended: release what was held back."""
        before = self._decode(self._ids[self._window : self._decoded])
        self._complete += self._decode(self._ids[self._window :])[len(before) :]
        self._decoded = self._window = len(self._ids)
        return self._release(final=True)

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _release(self, *, final: bool) -> str:
        hits = [at for stop in self._stop if (at := self._complete.find(stop)) >= 0]
        if hits:
            self._complete = self._complete[: min(hits)]
            self.stopped = True
        held = 0 if final or self.stopped else self._possible_stop()
        ready = self._complete[self._sent : len(self._complete) - held]
        self._sent += len(ready)
        return ready

    def _possible_stop(self) -> int:
        """Characters at the end that may turn out to begin a stop string."""
        return max(
            (n for stop in self._stop for n in range(1, len(stop)) if self._complete.endswith(stop[:n])), default=0
        )
