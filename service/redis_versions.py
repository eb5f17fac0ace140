"""Versions of Redis and Valkey with known weaknesses in scripts and blocking commands, which we use both."""

from __future__ import annotations

import re

# First release of each line without CVE-2025-49844 and its siblings (Lua), or a later fix of the same kind. Lines that
# are not named began after it. Distributions may have mended an older number.
_FIXED: dict[str, dict[tuple[int, int], int]] = {
    "redis": {(7, 2): 11, (7, 4): 6, (8, 0): 4, (8, 2): 2, (8, 6): 3},
    "valkey": {(7, 2): 11, (8, 0): 6, (8, 1): 4},
}
_NONE_BEFORE = (7, 2)
"""Older lines: see who maintains them; we do not use them where we may choose."""


def parse_version(text: str) -> tuple[int, int, int]:
    """Major, minor and patch of a version, (0, 0, 0) if it is none."""
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else (0, 0, 0)


def is_weak(server: str, version: tuple[int, int, int]) -> bool:
    """Whether a `redis` or `valkey` of this version has a known weakness."""
    line, patch = version[:2], version[2]
    return line < _NONE_BEFORE or patch < _FIXED[server].get(line, 0)
