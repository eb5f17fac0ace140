"""JSON lines that grow with everything a long job finds out, so that it can stop at any time and go on later."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any


class Journal:
    """A file of JSON lines. `lines` are those that it held; `begin` it, then `append`.

    A last line that a killed process left half-written does not count and is cut off.

    Raises:
        ValueError: a whole line is no JSON.
    """

    def __init__(self, path: Path, *, restart: bool = False) -> None:
        self.path = path
        if restart:
            path.unlink(missing_ok=True)
        content = path.read_bytes() if path.exists() else b""
        self._whole = content.rfind(b"\n") + 1
        self.lines: list[Any] = [json.loads(line) for line in content[: self._whole].splitlines()]
        self._file: IO[str] | None = None

    def begin(self, header: Mapping[str, Any]) -> None:
        """Open it for more; an empty one begins with the header.

        Raises:
            BlockingIOError: another process has it open, where the system can tell.
        """
        self._file = self.path.open("r+" if self._whole else "a", encoding="utf-8")
        try:
            _lock(self._file)
        except BlockingIOError:
            self.close()
            raise
        self._file.truncate(self._whole)
        self._file.seek(self._whole)
        if not self._whole:
            self.append(header)

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a line; it is in the file on return."""
        assert self._file is not None, "not begun yet"  # noqa: S101
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; it stays where it is."""
        if self._file is not None:
            self._file.close()


def _lock(file: IO[str]) -> None:
    with contextlib.suppress(ImportError):
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
