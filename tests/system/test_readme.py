"""What the README and the HTTP reference print is what happens."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.deployment import Deployment, bundled_questions

ROOT = Path(__file__).parents[2]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


def curl_commands(page: str) -> list[str]:
    """Commands of the page, continued lines joined; those on a made-up job id are left out."""
    lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("curl") and "/JOB" not in line]


def right_answer(command: str) -> str:
    """Of the bundled question that the command asks."""
    asked = [one for one in bundled_questions() if f"/{one.image.name}" in command and one.prompt in command]
    assert asked, f"no bundled question: {command}"
    return max(asked, key=lambda question: len(question.prompt)).answer


@pytest.mark.parametrize("page", ["README.md", "docs/http.md"])
def test_the_curl_examples_work_as_printed(deployment: Deployment, page: str) -> None:
    commands = curl_commands(page)
    assert len(commands) >= 3
    for command in commands:
        here = command.replace("http://127.0.0.1:8000", deployment.url).replace(
            "curl ", "curl --silent --show-error ", 1
        )
        reply = subprocess.run(["bash", "-c", here], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
        if "respond-async" in command:
            expected = '"state": ?"(accepted|running)"'
        else:
            expected = f'"answer": ?{re.escape(json.dumps(right_answer(command), ensure_ascii=False))}'
        assert re.search(expected, reply.stdout), f"{command}\n{reply.stdout}"


def test_the_example_with_openais_client_works_as_printed(deployment: Deployment) -> None:
    (example,) = blocks("docs/http.md", "python")
    program = example.replace("http://127.0.0.1:8000", deployment.url)
    reply = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    answer, saved = reply.stdout.split()
    assert answer == right_answer(example)
    assert 0 < float(saved) < 1


def test_the_printed_answer_is_the_real_one(deployment: Deployment) -> None:
    command = curl_commands("README.md")[0].replace("http://127.0.0.1:8000", deployment.url)
    reply = subprocess.run(["bash", "-c", f"{command} -s"], cwd=ROOT, capture_output=True, check=True, timeout=60)
    real, printed = json.loads(reply.stdout), json.loads(blocks("README.md", "json")[0])
    for name in ("answer", "finish_reason", "model", "usage", "pruning"):
        assert real[name] == printed[name]
