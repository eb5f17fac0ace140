"""Links between our own pages: the file is there, and so is the heading that the link names."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
PAGES = sorted(
    Path(name)
    for name in subprocess.run(["git", "ls-files", "*.md"], capture_output=True, text=True, check=True).stdout.split()
)


def without_code(text: str) -> str:
    """The page without its fenced blocks: a comment in one is no heading."""
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


@cache
def anchors(page: Path) -> frozenset[str]:
    """What the headings of a page are called in links: lower case, hyphens for spaces, no other punctuation."""
    headings = re.findall(r"^#+ +(.*?) *$", without_code(page.read_text()), re.MULTILINE)
    return frozenset(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for target in LINK.findall(without_code(page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_the_pages_are_found() -> None:
    assert {Path("README.md"), Path("docs/http.md"), Path("bench/RESULTS.md")} <= set(PAGES)
