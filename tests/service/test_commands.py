"""`erase-serve jobs` and `erase-serve config check`, as an operator types them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import redis

from service.cli import main
from tests.worker.helpers import accept, encoded, lease, lose_lease, state
from worker import ledger
from worker.contract import JobState
from worker.ledger import execute

PROMPT = "what is the secret ?"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, redis_url: str, redis_client: redis.Redis) -> None:
    monkeypatch.setenv("ERASE_REDIS_URL", redis_url)


def bury(client: redis.Redis, job_id: str) -> None:
    accept(client, job_id, prompt=PROMPT)
    for _ in range(3):
        lease(client, job_id)
        lose_lease(client, job_id)
    assert execute(client, ledger.sweep(job_id, 1000, 3)).subject == "dead"


class TestJobs:
    def test_dead_letters_and_open_jobs_are_listed(
        self, redis_client: redis.Redis, capsys: pytest.CaptureFixture[str]
    ) -> None:
        bury(redis_client, "job_1")
        accept(redis_client, "job_2")
        assert main(["jobs", "list"]) == 0
        table = capsys.readouterr().out
        assert "dead-letter" in table
        assert [line.split()[0] for line in table.splitlines()] == ["id", "job_1", "job_2"]
        for state_name, job_id in (("dead", "job_1"), ("open", "job_2")):
            assert main(["jobs", "list", "--state", state_name, "--json"]) == 0
            assert [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()] == [job_id]
        assert main(["jobs", "list", "--owner", "ada", "--limit", "1", "--json"]) == 0
        assert [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()] == ["job_2"]

    def test_a_state_without_an_index_needs_an_owner(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["jobs", "list", "--state", "failed"]) == 2
        assert "--owner" in capsys.readouterr().err

    def test_a_job_is_shown_without_what_was_asked(
        self, redis_client: redis.Redis, capsys: pytest.CaptureFixture[str]
    ) -> None:
        bury(redis_client, "job_1")
        assert main(["jobs", "show", "job_1"]) == 0
        shown = capsys.readouterr().out
        assert "secret" not in shown
        assert json.loads(shown)["state"] == "dead"
        assert json.loads(shown)["problem"]["type"].endswith("dead-letter")
        assert main(["jobs", "show", "job_1", "--text"]) == 0
        assert "secret" in capsys.readouterr().out
        assert main(["jobs", "show", "job_9"]) == 1

    def test_dead_letters_are_asked_again(self, redis_client: redis.Redis, capsys: pytest.CaptureFixture[str]) -> None:
        for job_id in ("job_1", "job_2", "job_3"):
            bury(redis_client, job_id)
        assert main(["jobs", "requeue", "job_1", "job_9"]) == 1
        assert "job_9: no such job" in capsys.readouterr().err
        assert state(redis_client, "job_1") is JobState.ACCEPTED
        assert state(redis_client, "job_2") is JobState.DEAD
        assert main(["jobs", "requeue", "--all", "--timeout-s", "30"]) == 0
        assert state(redis_client, "job_2") is state(redis_client, "job_3") is JobState.ACCEPTED
        assert main(["jobs", "requeue", "job_1"]) == 1
        assert main(["jobs", "requeue"]) == main(["jobs", "requeue", "x", "--all"]) == 2
        assert main(["jobs", "requeue", "--all", "--timeout-s", "0"]) == 2

    def test_a_dead_letter_whose_image_has_expired_is_not_asked_again(
        self, redis_client: redis.Redis, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from PIL import Image

        data = encoded(Image.new("RGB", (64, 64)))
        accept(redis_client, "job_1", images=(data,))
        for _ in range(3):
            lease(redis_client, "job_1")
            lose_lease(redis_client, "job_1")
        execute(redis_client, ledger.sweep("job_1", 1000, 3))
        redis_client.delete(f"erase:image:{hashlib.sha256(data).hexdigest()}")
        assert main(["jobs", "requeue", "job_1"]) == 1
        assert "expired" in capsys.readouterr().err

    def test_jobs_are_forgotten(self, redis_client: redis.Redis, capsys: pytest.CaptureFixture[str]) -> None:
        bury(redis_client, "job_1")
        accept(redis_client, "job_2")
        assert main(["jobs", "drop", "job_1", "job_2", "job_9"]) == 1
        assert capsys.readouterr().out.count("forgotten") == 2
        for job_id in ("job_1", "job_2"):
            assert 0 < redis_client.pttl(f"erase:job:{job_id}") <= 60_000
        assert main(["jobs", "list"]) == 0
        assert "no jobs" in capsys.readouterr().out

    def test_the_redis_of_a_running_stack_is_found(
        self, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.delenv("ERASE_REDIS_URL")
        (tmp_path / "redis-url").write_text(redis_url)
        assert main(["jobs", "--stack", str(tmp_path), "list"]) == 0
        monkeypatch.setenv("ERASE_REDIS_URL", "redis://127.0.0.1:1/0")
        assert main(["jobs", "--stack", str(tmp_path), "list"]) == 0
        assert main(["jobs", "--stack", str(tmp_path / "typo"), "list"]) == 2
        assert "no stack runs" in capsys.readouterr().err

    def test_an_unreachable_redis_is_said(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("ERASE_REDIS_URL", "redis://127.0.0.1:1/0")
        assert main(["jobs", "list"]) == 1
        assert "cannot be used" in capsys.readouterr().err


class TestConfigCheck:
    def check(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, **settings: str) -> Any:
        for name, value in settings.items():
            monkeypatch.setenv(f"ERASE_{name.upper()}", value)
        status = main(["config", "check"])
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    def test_a_working_configuration_is_said_to_work(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        key = f"ada:{'ab' * 32}"
        status, report = self.check(capsys, monkeypatch, api_keys=key, max_images="3")
        assert status == 0, report
        assert "ERASE_MAX_IMAGES = 3" in report
        assert "accepted jobs are kept (waitaof)" in report
        assert "ab" * 32 not in report

    def test_redis_memory_is_set_against_open_jobs(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, redis_client: redis.Redis
    ) -> None:
        redis_client.config_set("maxmemory", 2 * 2**30)
        try:
            status, report = self.check(capsys, monkeypatch)
        finally:
            redis_client.config_set("maxmemory", 0)
        assert status == 0
        # 2 GiB x 0.9 / 1.25, by (60 + 600 s) x 500 kB + (60 + 3600 s) x 8 KiB + 173,400 s x 256 bytes
        assert "Redis has 2048 MiB: enough for 3.8 jobs a second" in report

    @pytest.mark.parametrize(
        ("setting", "value", "what"),
        [
            ("redis_url", "redis://127.0.0.1:1/0", "Redis cannot be reached"),
            ("api_keys_file", "/no/such/file", "No such file"),
            ("image_hosts", "http://x", "ERASE_IMAGE_HOSTS"),
            ("model", "/no/such/folder", "ERASE_MODEL"),
            ("model", "someone/model", "ERASE_MODEL_REVISION"),
            ("failpoints", "nowhere=kill", "ERASE_FAILPOINTS"),
        ],
    )
    def test_what_cannot_start_is_named(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, setting: str, value: str, what: str
    ) -> None:
        status, report = self.check(capsys, monkeypatch, **{setting: value})
        assert status == 1
        assert what in report

    def test_a_setting_that_nobody_knows_is_named(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        status, report = self.check(capsys, monkeypatch, prot="1")
        assert (status, "ERASE_PROT" in report) == (2, True)
