"""The Kubernetes files: valid, hardened, in agreement with Compose, the Dockerfiles, the settings and Prometheus."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from prometheus_client import CollectorRegistry, start_http_server

from tests.deploy.test_compose import COMPOSE, KNOWN_SETTINGS, SECRETS, SERVICES
from worker.metrics import WorkerMetrics
from worker.settings import PREFIX, load_settings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/kubernetes"
BASE = FOLDER / "base"
KUSTOMIZATION: dict[str, Any] = yaml.safe_load((BASE / "kustomization.yaml").read_text(encoding="utf-8"))
VERSIONS = ("1.30", "1.33", "1.37")
"""The first one that has the preStop action sleep for everybody, one between, and the newest that we know of."""
OURS = ("service", "worker")


def documents() -> list[dict[str, Any]]:
    texts = [(BASE / name).read_text(encoding="utf-8") for name in KUSTOMIZATION["resources"]]
    return [document for text in texts for document in yaml.safe_load_all(text)]


def named(kind: str, name: str) -> dict[str, Any]:
    (found,) = (one for one in documents() if (one["kind"], one["metadata"]["name"]) == (kind, name))
    return found


def pod_of(workload: dict[str, Any]) -> dict[str, Any]:
    pod: dict[str, Any] = workload["spec"]["template"]["spec"]
    return pod


def container_of(workload: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod_of(workload)["containers"]
    return dict(container)


def variables(file: Path) -> dict[str, str]:
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


WORKLOADS = [one for one in documents() if "template" in one["spec"]]
each_workload = pytest.mark.parametrize("workload", WORKLOADS, ids=lambda one: one["metadata"]["name"])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("document", documents(), ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_every_resource_is_one_that_kubernetes_knows(document: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(document, version, strict=True)


def test_a_misspelt_field_is_noticed() -> None:
    document = named("Deployment", "erase-service")
    document["spec"]["template"]["spec"]["enableServiceLink"] = False
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, VERSIONS[-1], strict=True)


def test_all_files_take_part() -> None:
    files = {path.name for path in BASE.glob("*.yaml")} - {"kustomization.yaml"}
    assert files == set(KUSTOMIZATION["resources"])
    assert {
        name for part in ("configMap", "secret") for one in KUSTOMIZATION[f"{part}Generator"] for name in one["envs"]
    } == {
        "settings.env",
        "keys.env",
        "redis.env",
    }
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert ignored[-2:] == ["/deploy/kubernetes/base/*.env", "!/deploy/kubernetes/base/settings.env"]


@each_workload
def test_pods_are_hardened(workload: dict[str, Any]) -> None:
    pod, container = pod_of(workload), container_of(workload)
    assert pod["enableServiceLinks"] is False, "a Service erase-... would become an unknown setting"
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "memory" in container["resources"]["limits"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    claimed = {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])}
    assert mounted == {volume["name"] for volume in pod["volumes"]} | claimed


@each_workload
def test_labels_and_what_selects_by_them_agree(workload: dict[str, Any]) -> None:
    labels = workload["spec"]["template"]["metadata"]["labels"]
    assert workload["spec"]["selector"]["matchLabels"] == labels
    assert labels == {"app.kubernetes.io/name": workload["metadata"]["name"]}


@pytest.mark.parametrize("kind", ["Service", "PodDisruptionBudget", "NetworkPolicy"])
def test_what_selects_pods_finds_some(kind: str) -> None:
    names = {workload["metadata"]["name"] for workload in WORKLOADS}
    found = [one for one in documents() if one["kind"] == kind]
    assert found
    for one in found:
        spec = one["spec"]
        selector = spec.get("podSelector", spec.get("selector"))
        assert selector.get("matchLabels", selector)["app.kubernetes.io/name"] in names


@pytest.mark.parametrize("part", OURS)
def test_the_containers_start_as_in_compose(part: str) -> None:
    container = container_of(named("Deployment", f"erase-{part}"))
    image, _, tag = SERVICES[part]["image"].partition(":")
    assert container["image"] == image
    assert {"name": image, "newTag": tag} in KUSTOMIZATION["images"]
    dockerfile = (ROOT / f"deploy/{part}.Dockerfile").read_text(encoding="utf-8")
    (port,) = container["ports"]
    assert f"EXPOSE {port['containerPort']}" in dockerfile
    user = named("Deployment", f"erase-{part}")["spec"]["template"]["spec"]["securityContext"]
    assert f"USER {user['runAsUser']}:{user['runAsGroup']}" in dockerfile
    for probe in ("startupProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] == port["name"]


@pytest.mark.parametrize("part", OURS)
def test_the_settings_of_a_container_are_settings(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    container = container_of(named("Deployment", f"erase-{part}"))
    secrets = {name: set(variables(BASE / f"{name}.env.example")) for name in ("keys", "redis")}
    assert secrets == {"keys": {"ERASE_API_KEYS"}, "redis": {"REDIS_PASSWORD"}}
    values = variables(BASE / "settings.env")
    for variable in container["env"]:
        if "value" in variable:
            values[variable["name"]] = variable["value"].replace("$(REDIS_PASSWORD)", SECRETS["REDIS_PASSWORD"])
        else:
            key = variable["valueFrom"]["secretKeyRef"]
            assert key["key"] == variable["name"]
            assert key["key"] in secrets[key["name"].removeprefix("erase-")]
            values[variable["name"]] = SECRETS[variable["name"]]
    assert values.keys() - {"REDIS_PASSWORD"} <= KNOWN_SETTINGS
    for name, value in values.items():
        if name.startswith(PREFIX):
            monkeypatch.setenv(name, value)
    settings = load_settings()
    assert settings.redis_url == "redis://erase:secret@redis:6379/0"
    assert (settings.host == "0.0.0.0") == bool(settings.api_keys) == (part == "service")


@pytest.mark.parametrize("part", OURS)
def test_who_drains_has_the_time_for_it(part: str) -> None:
    deployment = named("Deployment", f"erase-{part}")
    before = container_of(deployment).get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    drain = float(variables(BASE / "settings.env")["ERASE_DRAIN_S"])
    assert pod_of(deployment)["terminationGracePeriodSeconds"] >= before + drain + 15


def test_a_worker_is_ready_when_its_model_is() -> None:
    interpreter, *command = container_of(named("Deployment", "erase-worker"))["readinessProbe"]["exec"]["command"]
    metrics = WorkerMetrics(CollectorRegistry())
    server, thread = start_http_server(0, "127.0.0.1", registry=metrics.registry)
    arguments = [word.replace(":9101/", f":{server.server_port}/") for word in command]
    assert interpreter == "python"
    assert arguments != command

    def look() -> int:
        return subprocess.run([sys.executable, *arguments], check=False, stderr=subprocess.DEVNULL).returncode

    try:
        assert look() == 1
        metrics.model_info.labels("demo", "1", "cpu", "float32", "demo").set(1)
        assert look() == 0
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert look() == 1


def test_redis_runs_as_in_compose() -> None:
    container = container_of(named("StatefulSet", "redis"))
    names = {variable["valueFrom"]["secretKeyRef"]["name"] for variable in container["env"] if "valueFrom" in variable}
    assert names == {"erase-redis"}, "a new key of a client must not restart it"
    assert container["image"] == SERVICES["redis"]["image"]
    command = [
        re.sub(r"\$\{REDIS_PASSWORD:[^}]*\}", "$(REDIS_PASSWORD)", word) for word in SERVICES["redis"]["command"]
    ]
    assert container["args"] == [re.sub(r"\$\{\w+:-(\w+)\}", r"\1", word) for word in command]
    assert container["readinessProbe"]["exec"]["command"] == SERVICES["redis"]["healthcheck"]["test"][1:]
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/data", "/tmp"]


def test_only_our_pods_reach_redis_and_only_prometheus_a_workers_metrics() -> None:
    (redis,) = named("NetworkPolicy", "redis")["spec"]["ingress"]
    ours = {f"erase-{part}" for part in OURS}
    assert set(redis["from"][0]["podSelector"]["matchExpressions"][0]["values"]) == ours
    assert {name.removeprefix("erase-") for name in ours} == {
        name for name in SERVICES if "backplane" in SERVICES[name]["networks"] and name != "redis"
    }
    (worker,) = named("NetworkPolicy", "erase-worker")["spec"]["ingress"]
    assert worker["from"][0]["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "prometheus"}
    assert worker["ports"] == [{"port": container_of(named("Deployment", "erase-worker"))["ports"][0]["containerPort"]}]
    assert COMPOSE["networks"]["metrics"] == {"internal": True}


def test_the_gpu_is_given_to_the_worker() -> None:
    gpu = yaml.safe_load((FOLDER / "gpu/kustomization.yaml").read_text(encoding="utf-8"))
    assert gpu["resources"] == ["../base"]
    (change,) = gpu["patches"]
    patch = yaml.safe_load(change["patch"])
    worker = named(change["target"]["kind"], change["target"]["name"])
    assert (patch["kind"], patch["metadata"]["name"]) == (worker["kind"], worker["metadata"]["name"])
    (container,) = patch["spec"]["template"]["spec"]["containers"]
    assert container["name"] == container_of(worker)["name"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 1}
    compose = yaml.safe_load((ROOT / "deploy/compose.gpu.yml").read_text(encoding="utf-8"))["services"]["worker"]
    assert {variable["name"]: variable["value"] for variable in container["env"]} == compose["environment"]


def test_prometheus_has_the_same_jobs_and_finds_the_pods_by_their_ports() -> None:
    jobs = yaml.safe_load((FOLDER / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    compose = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    assert [job["job_name"] for job in jobs] == [job["job_name"] for job in compose]
    for job in jobs:
        (rule,) = job["relabel_configs"]
        name, _, port = rule["regex"].partition(";")
        assert name == job["job_name"]
        assert [own["name"] for own in container_of(named("Deployment", name))["ports"]] == [port]
        assert rule["action"] == "keep"
