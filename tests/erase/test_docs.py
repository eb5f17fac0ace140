"""The examples of README and docs run as printed, and print what their comments say."""

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def examples() -> list:
    return [
        pytest.param(code, id=f"{page}-{number}")
        for page in ("README.md", "docs/library.md")
        for number, code in enumerate(re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL))
    ]


@pytest.mark.parametrize("code", examples())
def test_an_example_prints_what_its_comments_say(code):
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    lines = code.splitlines()
    promised = [text for line in lines if line.startswith("print(") for text in line.split("  # ")[1:]]
    promised += [
        after.removeprefix("# ")
        for line, after in pairwise(lines)
        if line.startswith("print(") and after.startswith("# ")
    ]
    printed = run.stdout.splitlines()
    assert promised
    assert set(promised) <= set(printed)
