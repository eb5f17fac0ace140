"""The environment of a deployment: what is refused, and that the message says which variable to change."""

from __future__ import annotations

import os

import pytest

from worker.contract import CONTRACT_VERSION, OLDEST_CONTRACT
from worker.settings import ApiKey, Scope, Settings, SettingsError, load_settings, parse_api_keys

DIGEST = "ab" * 32

WRONG = [
    ("ERASE_DURABILITY", "maybe"),
    ("ERASE_PORT", "0"),
    ("ERASE_PORT", "65536"),
    ("ERASE_PORT", "http"),
    ("ERASE_API_KEYS", "ada"),
    ("ERASE_API_KEYS", "ada:1234"),
    ("ERASE_API_KEYS", f"ada:{DIGEST.upper()}"),
    ("ERASE_API_KEYS", f":{DIGEST}"),
    ("ERASE_API_KEYS", f"ada:{DIGEST},bob:{DIGEST}"),
    ("ERASE_MAX_BODY_BYTES", "10"),
    ("ERASE_MAX_IMAGES", "0"),
    ("ERASE_MAX_IMAGES", "65"),
    ("ERASE_MAX_IMAGE_BYTES", "1"),
    ("ERASE_MAX_IMAGE_PIXELS", "783"),
    ("ERASE_MIN_IMAGE_SIDE", "0"),
    ("ERASE_MAX_IMAGE_ASPECT", "0.5"),
    ("ERASE_MAX_PROMPT_CHARS", "0"),
    ("ERASE_TIMEOUT_S", "0"),
    ("ERASE_TIMEOUT_S", "nan"),
    ("ERASE_MAX_TIMEOUT_S", "inf"),
    ("ERASE_RESULT_TTL_S", "9"),
    ("ERASE_MAX_OPEN_JOBS", "0"),
    ("ERASE_DTYPE", "int8"),
    ("ERASE_RETENTION", "0"),
    ("ERASE_RETENTION", "1.1"),
    ("ERASE_RETENTION", "nan"),
    ("ERASE_INTERACTIVE_SLOTS", "0"),
    ("ERASE_BATCH_SLOTS", "0"),
    ("ERASE_MAX_RUNNING", "0"),
    ("ERASE_MAX_PREFILL_TOKENS", "0"),
    ("ERASE_MAX_CONTEXT", "63"),
    ("ERASE_CPU_THREADS", "0"),
    ("ERASE_LEASE_S", "0.5"),
    ("ERASE_LEASE_S", "inf"),
    ("ERASE_WAKE_AFTER_S", "0"),
    ("ERASE_SWEEP_EVERY_S", "0"),
    ("ERASE_MAX_ATTEMPTS", "0"),
    ("ERASE_STALL_S", "0"),
    ("ERASE_DRAIN_S", "-1"),
    ("ERASE_WORKER_METRICS_PORT", "-1"),
    ("ERASE_LOG_LEVEL", "loud"),
]


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ERASE_")]:
        monkeypatch.delenv(name)


def refusal() -> str:
    with pytest.raises(SettingsError) as refused:
        load_settings()
    return str(refused.value)


def test_an_empty_environment_gives_the_defaults() -> None:
    assert load_settings() == Settings()


@pytest.mark.parametrize(("name", "value"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_value_is_refused_with_the_name_of_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert refusal().startswith(f"{name}: ")


def test_every_wrong_variable_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERASE_PORT", "0")
    monkeypatch.setenv("ERASE_LEASE_S", "x")
    message = refusal()
    assert "ERASE_PORT: " in message
    assert "ERASE_LEASE_S: " in message


def test_unknown_variables_are_refused_by_name_even_when_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERASE_PROT", "8000")
    monkeypatch.setenv("ERASE_ZZZ", "")
    assert "ERASE_PROT, ERASE_ZZZ" in refusal()


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"ERASE_HOST": "0.0.0.0"}, ("ERASE_HOST", "ERASE_API_KEYS")),
        ({"ERASE_TIMEOUT_S": "700"}, ("ERASE_TIMEOUT_S", "ERASE_MAX_TIMEOUT_S")),
        ({"ERASE_MAX_TIMEOUT_S": "5"}, ("ERASE_TIMEOUT_S", "ERASE_MAX_TIMEOUT_S")),
        ({"ERASE_POLICY": "none", "ERASE_RETENTION": "0.2"}, ("ERASE_POLICY", "ERASE_RETENTION")),
    ],
    ids=lambda value: "+".join(value),
)
def test_contradictions_are_refused_with_both_names(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], named: tuple[str, ...]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    message = refusal()
    assert all(name in message for name in named)


@pytest.mark.parametrize("name", sorted(f"ERASE_{name.upper()}" for name in Settings.model_fields))
def test_an_empty_value_counts_as_not_set(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "")
    assert load_settings() == Settings()


def test_keys_open_the_service_to_other_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERASE_HOST", "0.0.0.0")
    monkeypatch.setenv("ERASE_API_KEYS", f"ada:{DIGEST}")
    assert load_settings().host == "0.0.0.0"


def test_a_refused_key_does_not_appear_in_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERASE_API_KEYS", "ada:not-a-digest-but-the-secret-key-itself")
    assert "secret" not in refusal()


@pytest.mark.parametrize(
    "url",
    [
        "unix:///run/redis.sock",
        "amqp://host",
        "host:6379",
        "REDIS://h",
        " redis://h",
        "redis://h:0",
        "redis://host:99999",
        "redis://h/db",
        "redis://:pa/ss@host",
        "sentinel://h;h2",
    ],
)
def test_only_one_redis_server_will_do_and_its_password_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("ERASE_REDIS_URL", url.replace("//", "//:hunter2@", 1))
    assert refusal().startswith("ERASE_REDIS_URL: expected redis://")
    assert "hunter2" not in refusal()


@pytest.mark.parametrize(
    "url",
    ["redis://h?db=1", "redis://h?ssl_ca_certs=x", "rediss://h?socket_timeout=5", "rediss://h?ssl_cert_reqs=none"],
)
def test_options_that_not_all_parts_understand_are_refused(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("ERASE_REDIS_URL", url)
    assert "of options only ssl_ca_certs" in refusal()


@pytest.mark.parametrize(
    "url",
    ["redis://h", "redis:///0", "redis://[::1]:6379/3", "rediss://u:p%40@h:1/0?ssl_ca_certs=/ca.pem", "redis://:p@h/"],
)
def test_usual_addresses_of_redis_are_taken(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("ERASE_REDIS_URL", url)
    assert load_settings().redis_url == url


def test_api_keys_are_pairs_with_spaces_and_empty_parts_allowed() -> None:
    keys = parse_api_keys(f" ada:{DIGEST} ,, bob:{'cd' * 32}:metrics+admin,")
    assert keys == (ApiKey("ada", DIGEST), ApiKey("bob", "cd" * 32, frozenset({Scope.ADMIN, Scope.METRICS})))
    assert parse_api_keys("") == ()


def test_a_name_may_have_two_keys_while_one_replaces_the_other() -> None:
    assert [key.owner for key in parse_api_keys(f"ada:{DIGEST},ada:{'cd' * 32}")] == ["ada", "ada"]


@pytest.mark.parametrize("version", [OLDEST_CONTRACT - 1, CONTRACT_VERSION + 1])
def test_only_a_contract_that_is_served_can_be_asked_for(version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for known in range(OLDEST_CONTRACT, CONTRACT_VERSION + 1):
        monkeypatch.setenv("ERASE_CONTRACT", str(known))
        assert load_settings().contract == known
    monkeypatch.setenv("ERASE_CONTRACT", str(version))
    with pytest.raises(SettingsError, match="ERASE_CONTRACT"):
        load_settings()
