"""`constraints.txt`: everything pinned, the environment made of it, nothing older than the fix of a known weakness."""

from __future__ import annotations

import re
from importlib.metadata import distribution, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

LINES = [line for line in Path("constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
PINNED = {canonicalize_name(name): Version(number) for name, _, number in (line.partition("==") for line in LINES)}

FIXED = {
    "python-multipart": "0.0.27",
    "celery": "5.7.0",
    "kombu": "5.7.0",
}
"""First versions without a weakness, or a defect that loses requests, that we know of."""


def _installed(name: str, extras: set[str], found: set[str]) -> set[str]:
    """Names of a distribution's dependencies here, with theirs."""
    for text in distribution(name).requires or []:
        needed = Requirement(text)
        key = canonicalize_name(needed.name)
        if needed.marker is not None and not any(needed.marker.evaluate({"extra": extra}) for extra in {"", *extras}):
            continue
        if key in found:
            continue
        found.add(key)
        _installed(key, set(needed.extras), found)
    return found


def test_every_line_names_one_exact_version() -> None:
    wrong = [line for line in LINES if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.+!]*", line)]
    assert wrong == []
    assert len(PINNED) == len(LINES)


ACCELERATOR = ("nvidia-", "cuda-", "triton")
"""What torch brings along where it is built for a GPU, and pins itself."""


def test_all_that_is_installed_for_us_is_pinned_to_what_is_installed() -> None:
    names = _installed("erase-serve", {"dev"}, set()) - {"setuptools"}  # which a virtual environment may bring itself
    assert len(names) > 40
    unpinned = {name for name in names if name not in PINNED and not name.startswith(ACCELERATOR)}
    other = {name for name in names & PINNED.keys() if Version(version(name)).public != PINNED[name].public}
    assert (unpinned, other) == (set(), set())


@pytest.mark.parametrize("name", FIXED)
def test_nothing_is_older_than_a_fix(name: str) -> None:
    assert PINNED[canonicalize_name(name)] >= Version(FIXED[name])
