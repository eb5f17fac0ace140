"""The Redis user of the Compose file may do all that the system does, and nothing else is ever tried."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import yaml

from service.cli import main
from tests.starter import STARTER
from tests.system.deployment import FAST_RESCUE, Deployment, bundled_number, neighbour, until
from tests.system.test_kills import ask_async, assert_answered_once

QUESTION = bundled_number(STARTER / "samples")
NEIGHBOUR = neighbour(QUESTION)


def rights() -> list[str]:
    """Rules of the user `erase`, as Redis' command line gets them."""
    compose = yaml.safe_load((Path(__file__).parents[2] / "docker-compose.yml").read_text(encoding="utf-8"))
    command = compose["services"]["redis"]["command"]
    rules = command[command.index("erase") + 1 :]
    rules = rules[: next(number for number, rule in enumerate(rules) if rule.startswith("--"))]
    return [">secret" if rule.startswith(">") else rule for rule in rules]


def test_the_system_gets_by_with_the_rights_of_compose(
    make_deployment: Callable[..., Deployment], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = make_deployment(**FAST_RESCUE)
    running.client.execute_command("ACL", "SETUSER", "erase", "reset", *rights())
    url = running.redis.url.replace("redis://", "redis://erase:secret@")
    running.settings["ERASE_REDIS_URL"] = url
    running.start_service()
    doomed = running.start_worker(ERASE_FAILPOINTS="in_decode=kill")
    rescued = ask_async(running, QUESTION)
    until(lambda: not doomed.running, what="the death of the worker")
    worker = running.start_worker()
    assert_answered_once(running, rescued, QUESTION)
    assert running.ask(NEIGHBOUR).json()["answer"] == NEIGHBOUR.answer
    with running.http() as client:
        data = {"prompt": QUESTION.prompt, "stream": "true"}
        assert "event: result" in client.post("/v1/ask", files=QUESTION.files, data=data).text
        assert client.get("/v1/jobs").json()["jobs"]
        assert client.get("/v1/status").json()["workers"]
        assert client.get("/metrics").is_success
        assert client.delete(f"/v1/jobs/{ask_async(running, QUESTION)}").is_success
    until(lambda: running.open_jobs() == 0, what="the end of all jobs")
    monkeypatch.setenv("ERASE_REDIS_URL", url)
    monkeypatch.setenv("ERASE_MODEL", str(STARTER))
    assert main(["jobs", "list"]) == 0
    assert main(["config", "check"]) == 0, capsys.readouterr().out
    assert httpx.get(worker.metrics_url, trust_env=False).is_success  # type: ignore[attr-defined]
    worker.terminate()
    until(lambda: not worker.running, what="the worker's exit")
    assert worker.exit_status == 0
    assert running.client.execute_command("ACL", "LOG") == []
