"""API keys: owners, scopes, several at once, and new ones without a restart."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from service.auth import KeyRing, OwnerLimits
from service.problems import ForbiddenError, UnauthorizedError
from tests.service.conftest import FakeWorker, Service, make_settings, running_service
from worker.settings import Scope, Settings

PUBLIC = {"/healthz", "/readyz"}
HIDDEN = {"/", "/docs", "/docs/assets", "/openapi.json"}
"""Routes that the API's document leaves out: its own pages."""


def every_path(routes: Iterable[Any]) -> Iterator[str]:
    """Addresses of all routes and mounts, those of included routers too."""
    for route in routes:
        if (included := getattr(route, "original_router", None)) is not None:
            yield from every_path(included.routes)
        else:
            yield re.sub(r":\w+}", "}", route.path)


def sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def ring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[KeyRing, Path]:
    """Keys from a file that is looked at with every request."""
    monkeypatch.setattr("service.auth.LOOK_EVERY_S", 0.0)
    path = tmp_path / "keys.toml"
    path.write_text(f'[ada]\nkeys = ["{sha256("old")}"]\n')
    return KeyRing(Settings(api_keys_file=str(path), key_open_jobs=7)), path


class TestFile:
    def test_keys_are_rotated_without_a_restart(self, ring: tuple[KeyRing, Path]) -> None:
        keys, path = ring
        path.write_text(f'[ada]\nkeys = ["{sha256("old")}", "{sha256("new")}"]\n')
        assert keys.caller("old").owner == keys.caller("new").owner == "ada"
        path.write_text(f'[ada]\nkeys = ["{sha256("new")}"]\n')
        assert keys.caller("new").owner == "ada"
        with pytest.raises(UnauthorizedError):
            keys.caller("old")

    def test_a_file_that_cannot_be_read_again_changes_nothing(
        self, ring: tuple[KeyRing, Path], caplog: pytest.LogCaptureFixture
    ) -> None:
        keys, path = ring
        path.write_text("[ada\n")
        assert keys.caller("old").owner == "ada"
        assert "the keys stay as they were" in caplog.text
        path.unlink()
        assert keys.caller("old").owner == "ada"

    def test_an_owner_has_its_own_limits_or_the_deployments(self, ring: tuple[KeyRing, Path]) -> None:
        keys, path = ring
        assert keys.caller("old").limits == OwnerLimits(open_jobs=7)
        path.write_text(
            f'[ada]\nkeys = ["{sha256("old")}"]\nrequests_per_minute = 5\nconcurrent_requests = 6\nopen_jobs = 8\n'
            f'[bob]\nkeys = ["{sha256("bob")}"]\nscopes = ["metrics", "admin"]\n'
        )
        assert keys.caller("old").limits == OwnerLimits(5, 6, 8)
        assert keys.caller("bob").scopes == {Scope.METRICS, Scope.ADMIN}

    @pytest.mark.parametrize(
        ("text", "what"),
        [
            ("ada = 1", "table"),
            ('[ada]\nkeys = ["secret"]', "SHA-256"),
            ("[ada]", "SHA-256"),
            ("[ada]\nkeys = []\nkey = 1", "unknown key"),
            ("[ada]\nkeys = []\nopen_jobs = 0", "open_jobs"),
            ("[ada]\nkeys = []\nopen_jobs = true", "open_jobs"),
            (f'[ada]\nkeys = ["{"ab" * 32}"]\nscopes = ["root"]', "scopes"),
            (f'[ada]\nkeys = ["{"ab" * 32}"]\nscopes = "ask"', "scopes"),
            (f'[ada]\nkeys = ["{"ab" * 32}"]\n[bob]\nkeys = ["{"ab" * 32}"]', "same key"),
            ('["a:b"]\nkeys = []', "owner"),
            ("[anonymous]\nkeys = []", "owner"),
            ("", "no owner"),
            ("[ada]\nkeys = [", "keys.toml"),
        ],
    )
    def test_a_wrong_file_stops_the_start_and_says_why(self, tmp_path: Path, text: str, what: str) -> None:
        path = tmp_path / "keys.toml"
        path.write_text(text)
        with pytest.raises(ValueError, match=what):
            KeyRing(Settings(api_keys_file=str(path)))

    def test_a_file_without_keys_admits_nobody(self, tmp_path: Path) -> None:
        path = tmp_path / "keys.toml"
        path.write_text("[ada]\nkeys = []\n")
        with pytest.raises(UnauthorizedError):
            KeyRing(Settings(api_keys_file=str(path))).caller(None)

    def test_a_file_that_could_not_be_read_for_a_while_is_read_later(self, ring: tuple[KeyRing, Path]) -> None:
        keys, path = ring
        path.write_text("")
        assert keys.caller("old").owner == "ada"
        path.write_text(f'[ada]\nkeys = ["{sha256("new")}"]\n')
        assert keys.caller("new").owner == "ada"

    def test_a_missing_file_stops_the_start(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            KeyRing(Settings(api_keys_file=str(tmp_path / "none.toml")))


def test_a_scope_that_is_missing_is_named() -> None:
    caller = KeyRing(Settings(api_keys=f"ops:{sha256('k')}:metrics")).caller("k")
    with pytest.raises(ForbiddenError, match="needs the scope ask"):
        caller.need(frozenset({Scope.ASK}))


class TestRoutes:
    KEYS: ClassVar = {"ada": "ask", "bob": "ask", "root": "admin", "prom": "metrics"}

    @pytest.fixture
    def closed(self, redis_url: str) -> Iterator[Service]:
        entries = ",".join(f"{name}:{sha256(name)}:{scope}" for name, scope in self.KEYS.items())
        with running_service(make_settings(redis_url, api_keys=entries)) as service:
            yield service

    def test_no_route_but_the_probes_answers_without_a_key(self, closed: Service) -> None:
        asked = 0
        for template, methods in closed.app.openapi()["paths"].items():
            path = template.format(job_id="job_" + "0" * 32, name="x")
            for method in methods if template not in PUBLIC else ():
                for headers in ({}, bearer("wrong"), {"Authorization": "Basic ada"}):
                    assert closed.http.request(method, path, headers=headers).status_code == 401, (method, path)
                asked += 1
        assert asked >= 9
        for path in PUBLIC:
            assert closed.http.get(path).status_code == closed.http.head(path).status_code == 200

    def test_nothing_is_served_but_what_the_document_names_and_its_own_pages(self, closed: Service) -> None:
        assert set(every_path(closed.app.routes)) == set(closed.app.openapi()["paths"]) | HIDDEN

    def test_each_scope_opens_its_routes_only(self, closed: Service) -> None:
        allowed = {
            name: {
                path
                for path in ("/v1/jobs", "/v1/models", "/v1/status", "/metrics")
                if closed.http.get(path, headers=bearer(name)).status_code == 200
            }
            for name in self.KEYS
        }
        assert allowed["ada"] == {"/v1/jobs", "/v1/models", "/v1/status"}
        assert allowed["root"] == {"/v1/jobs", "/v1/models", "/v1/status", "/metrics"}
        assert allowed["prom"] == {"/v1/status", "/metrics"}
        for name in ("root", "prom"):
            for path in ("/v1/ask", "/v1/chat/completions"):
                reply = closed.http.post(path, json={"prompt": "?"}, headers=bearer(name))
                assert reply.status_code == 403, path

    def test_an_admin_sees_and_ends_everybodys_jobs_and_others_only_their_own(
        self, closed: Service, worker: FakeWorker
    ) -> None:
        later = {**bearer("ada"), "Prefer": "respond-async"}
        job_id = closed.ask(headers=later).json()["id"]
        path = f"/v1/jobs/{job_id}"
        assert closed.http.get(path, headers=bearer("bob")).status_code == 404
        assert closed.http.get("/v1/jobs?owner=ada", headers=bearer("bob")).status_code == 403
        assert closed.http.get("/v1/jobs", headers=bearer("bob")).json()["jobs"] == []
        listed = closed.http.get("/v1/jobs?owner=ada", headers=bearer("root")).json()["jobs"]
        assert [job["id"] for job in listed] == [job_id]
        assert closed.http.get(path, headers=bearer("root")).json()["state"] == "accepted"
        assert closed.http.delete(path, headers=bearer("root")).json()["state"] == "cancelled"
