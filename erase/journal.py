"""JSON lines that grow with everything a long job finds out, so that it can stop at any time and go on later."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from erase.errors import EraseError


class Journal:
    """A file of JSON lines, for one process at a time. `lines` are those that it held; `begin` it, then `append`.

    Nothing is written before `begin`, and then a last line that a killed process left half-written is cut off, or, to
    `restart`, all of them.

    Raises:
        EraseError: another process has it open, where the system can tell.
        ValueError: a whole line is no JSON.
    """

    def __init__(self, path: Path, *, restart: bool = False) -> None:
        self.path = path
        self._file = _opened(path)
        try:
            content = b"" if restart else self._file.read()
            self._whole = content.rfind(b"\n") + 1
            self.lines = _parsed(content)
        except BaseException:
            self.close()
            raise

    def begin(self, header: Mapping[str, Any]) -> None:
        """Make it ready for more; an empty one begins with the header."""
        self._file.truncate(self._whole)
        if not self._whole:
            self.append(header)

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a line; it is in the file on return."""
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()

    def remove(self) -> None:
        """Delete the file, which no other process is writing."""
        self.path.unlink()
        self.close()

    def close(self) -> None:
        """Close the file; it stays where it is."""
        self._file.close()


def whole_lines(path: Path) -> list[Any]:
    """What a journal holds that another process may be writing.

    Raises:
        ValueError: a whole line is no JSON.
    """
    return _parsed(path.read_bytes())


def _parsed(content: bytes) -> list[Any]:
    return [json.loads(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]


def _opened(path: Path) -> IO[bytes]:
    """The file, locked and at its beginning; whatever is written goes to its end."""
    while True:
        file = path.open("a+b")
        with contextlib.suppress(ImportError):
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                raise EraseError(f"another process is writing {path}") from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.seek(0)
                return file
        file.close()  # its last owner deleted it between our opening and our locking
