"""How many parts an image file is made of, bounded before anything reads them.

Pillow walks the segments of a JPEG and the chunks of a PNG one by one, in Python; and a JPEG may be sent in any number
of scans, each of which a decoder works through for the whole picture: 60 kB can be minutes of work. No camera or
program writes files that come near these bounds.
"""

from __future__ import annotations

import re

MOST_SEGMENTS = 2_000
"""Of a JPEG before its first scan; bytes that belong to none count as well."""
MOST_SCANS = 100
MOST_CHUNKS = 1_000
"""Of a PNG, those with pixels left out, of which there may be one for each `LEAST_DATA` bytes."""
LEAST_DATA = 256
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_START_OF_SCAN, _END = 0xDA, 0xD9
_WITH_LENGTH = frozenset({*range(0xC0, 0xC8), *range(0xC9, 0xD0), *range(0xDA, 0xF0), 0xFE})
"""Markers whose segments decoders skip. Behind any other one they look for the next marker, and so does this."""


def too_many_parts(data: bytes) -> bool:
    """Whether a JPEG or PNG file has more parts than a picture has. What else is wrong with it is not said."""
    if data.startswith(b"\xff\xd8"):
        return _too_many_segments(data)
    return data.startswith(b"\x89PNG") and _too_many_chunks(data)


def _too_many_segments(data: bytes) -> bool:
    """Follows the markers as decoders do (ITU-T T.81, annex B): by their lengths, from a scan on to the next one."""
    segments = scans = 0
    at = 2
    while found := _MARKER.search(data, at):
        kind = data[found.start() + 1]
        if kind == _END:
            break
        if not scans:
            segments += 1 + found.start() - at
        if kind == _START_OF_SCAN:
            scans += 1
        elif scans:
            segments += 1
        if segments > MOST_SEGMENTS or scans > MOST_SCANS:
            return True
        at = found.end()
        if kind in _WITH_LENGTH:
            at += int.from_bytes(data[at : at + 2], "big")
    return not scans and segments + len(data) - at > MOST_SEGMENTS


def _too_many_chunks(data: bytes) -> bool:
    """Follows the chunks by their lengths, up to the one that says that it is the last."""
    others = pixels = 0
    at = 8
    while at + 8 <= len(data) and (name := data[at + 4 : at + 8]) != b"IEND":
        if name == b"IDAT":
            pixels += 1
        else:
            others += 1
        if others > MOST_CHUNKS or pixels > MOST_CHUNKS + len(data) / LEAST_DATA:
            return True
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return False
