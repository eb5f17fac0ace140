"""The examples of README and docs run as printed, and print what their comments say."""

import multiprocessing
import os
import re
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Examples run in processes of their own, forked from one that has imported what takes long, but nothing of ours.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch", "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl"])


def examples() -> list:
    return [
        pytest.param(code, id=f"{page}-{number}")
        for page in ("README.md", "docs/library.md")
        for number, code in enumerate(re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL))
    ]


def _run(code: str, folder: Path) -> None:
    os.chdir(ROOT)
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), stream)
    exec(compile(code, "example", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("code", examples())
def test_an_example_prints_what_its_comments_say(code, tmp_path):
    run = _context.Process(target=_run, args=(code, tmp_path))
    run.start()
    run.join(120)
    run.kill()
    assert run.exitcode == 0, (tmp_path / "err").read_text()
    lines = code.splitlines()
    promised = [text for line in lines if line.startswith("print(") for text in line.split("  # ")[1:]]
    promised += [
        after.removeprefix("# ")
        for line, after in pairwise(lines)
        if line.startswith("print(") and after.startswith("# ")
    ]
    printed = (tmp_path / "out").read_text().splitlines()
    assert promised
    assert set(promised) <= set(printed)
