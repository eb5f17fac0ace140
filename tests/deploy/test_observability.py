"""Dashboard and Prometheus files: they parse, and name only metrics and labels of docs/metrics.md."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from worker.metrics import SECONDS

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARD = json.loads((ROOT / "deploy/grafana/dashboards/erase.json").read_text(encoding="utf-8"))
RULES: list[dict[str, Any]] = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text(encoding="utf-8"))["groups"][0][
    "rules"
]
TARGET_LABELS = {"instance", "job"}


@dataclass(frozen=True)
class Metric:
    """One row of docs/metrics.md."""

    kind: str
    labels: frozenset[str]
    ledger: bool


def documented_metrics() -> dict[str, Metric]:
    """Series name -> metric: a histogram has three series."""
    series = {"up": Metric("gauge", frozenset(TARGET_LABELS), ledger=False)}
    row = re.compile(r"^\| `(erase_\w+)` \| (\w+)( \(ledger\))? \|([^|]*)\|")
    for line in (ROOT / "docs/metrics.md").read_text(encoding="utf-8").splitlines():
        if not (match := row.match(line)):
            continue
        name, kind, ledger, labels = match.groups()
        names = frozenset(label.strip() for label in labels.split(",") if label.strip())
        metric = Metric(kind, names | TARGET_LABELS, ledger is not None)
        if kind == "histogram":
            series |= {f"{name}_sum": metric, f"{name}_count": metric}
            series[f"{name}_bucket"] = Metric(kind, metric.labels | {"le"}, metric.ledger)
        else:
            series[name] = metric
    return series


METRICS = documented_metrics()


def complaints(expr: str, legend_labels: set[str]) -> Iterator[str]:
    """What is wrong with a PromQL expression and the labels that its legend or annotation shows."""
    bare = re.sub(r'"[^"]*"', '""', expr)
    for name, matcher in re.findall(r"\b(\w+)\{([^}]*)\}", bare):
        for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matcher):
            if name in METRICS and label not in METRICS[name].labels:
                yield f"{name} has no label {label}"
    grouped = {label.strip() for group in re.findall(r"\bby \(([^)]*)\)", bare) for label in group.split(",")}
    plain = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\bby \([^)]*\)", "", bare)
    names = set(re.findall(r"\b([a-zA-Z_]\w*)\b(?!\s*\()", plain)) - {"and", "or", "unless"}
    for name in names - METRICS.keys():
        yield f"{name} is not in docs/metrics.md"
    known = set().union(*(METRICS[name].labels for name in names & METRICS.keys()))
    for label in grouped - known:
        yield f"no metric of the expression has the label {label}"
    shown = known if not re.search(r"\b(max|min|sum|avg|count)\b", plain) else grouped
    for label in legend_labels - shown:
        yield f"the legend shows {label}, which the expression aggregates away"
    for function, name in re.findall(r"\b(rate|increase|deriv)\((\w+)", bare):
        if name in METRICS and (METRICS[name].kind == "gauge") != (function == "deriv"):
            yield f"{function} of {name}, a {METRICS[name].kind}"
    for name in re.findall(r"\b(?:sum|avg|count)\s*(?:by \([^)]*\))?\s*\((?:\w+\()?(\w+)", bare):
        if name in METRICS and METRICS[name].ledger:
            yield f"{name} is the same in every service process: aggregate it with max"


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def targets() -> list[Any]:
    return [
        pytest.param(target["expr"], target["legendFormat"], id=f"{panel['title']}-{target['refId']}")
        for panel in panels()
        for target in panel["targets"]
    ]


@pytest.mark.parametrize(("expr", "legend"), targets())
def test_a_panel_uses_only_documented_metrics_and_labels(expr: str, legend: str) -> None:
    assert list(complaints(expr, set(re.findall(r"\{\{(\w+)\}\}", legend)))) == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_uses_only_documented_metrics_and_labels(rule: dict[str, Any]) -> None:
    text = " ".join(rule["annotations"].values())
    assert list(complaints(rule["expr"], set(re.findall(r"\$labels\.(\w+)", text)))) == []


@pytest.mark.parametrize(
    ("expr", "legend_labels"),
    [
        ("sum(rate(erase_prompt_token_total[5m]))", set()),
        ("max(erase_workers_alive)", set()),
        ("erase_time_to_first_token_seconds", set()),
        ("sum(rate(prompt_tokens_total[5m]))", set()),
        ('sum(rate(erase_vision_tokens_total{phase="input"}[5m]))', set()),
        ("sum by (queue) (rate(erase_vision_tokens_total[5m]))", set()),
        ("sum by (stage) (rate(erase_vision_tokens_total[5m]))", {"phase"}),
        ("max(rate(erase_jobs_open[5m]))", set()),
        ("sum(rate(erase_jobs_accepted_total[5m]))", set()),
        ("sum(erase_jobs_open)", set()),
    ],
)
def test_the_check_itself_notices_a_wrong_name_label_or_aggregation(expr: str, legend_labels: set[str]) -> None:
    assert list(complaints(expr, legend_labels))


def test_every_row_of_the_table_is_read() -> None:
    rows = re.findall(r"^\| `erase_", (ROOT / "docs/metrics.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    histograms = sum(name.endswith("_bucket") for name in METRICS)
    build_info_is_listed_twice = 1
    assert len(METRICS) - 1 + build_info_is_listed_twice == len(rows) + 2 * histograms


def test_the_committed_dashboard_is_what_the_script_writes() -> None:
    script = ROOT / "deploy/grafana/build_dashboard.py"
    result = subprocess.run([sys.executable, str(script), "--check"], check=False)
    assert result.returncode == 0, "run python deploy/grafana/build_dashboard.py"


def test_the_dashboard_has_the_four_rows() -> None:
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == ["Overview", "Pruning", "Queue and workers", "Reliability"]


def test_every_panel_says_what_it_shows_in_which_unit_from_the_chosen_data_source() -> None:
    for panel in panels():
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}


def test_panels_do_not_overlap_and_stay_within_the_grid() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_goodput_limits_are_bounds_of_the_latency_histogram() -> None:
    limits = next(item for item in DASHBOARD["templating"]["list"] if item["name"] == "goodput_limit")
    assert set(limits["query"].split(",")) <= {str(float(bound)) for bound in SECONDS}


def test_every_alert_has_a_severity_and_a_section_of_the_runbook() -> None:
    headings = re.findall(
        r"^## (Erase\w+)$", (ROOT / "docs/runbook.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert headings == [rule["alert"] for rule in RULES]
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary", "description", "runbook"}
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"


def test_every_alert_is_tested_both_firing_and_silent() -> None:
    tests = yaml.safe_load((PROMETHEUS / "alerts.test.yml").read_text(encoding="utf-8"))["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    names = {rule["alert"] for rule in RULES}
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == names
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == names


@pytest.fixture(scope="module")
def promtool() -> str:
    path = shutil.which("promtool")
    if path is None:
        pytest.skip("promtool is not on PATH (Debian: package prometheus): Prometheus files are NOT checked")
    return path


def run_promtool(promtool: str, *arguments: str) -> None:
    result = subprocess.run([promtool, *arguments], capture_output=True, text=True, check=False, cwd=PROMETHEUS)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("file", [PROMETHEUS / "prometheus.yml", ROOT / "deploy/kubernetes/prometheus.yml"])
def test_promtool_accepts_configuration_and_rules(promtool: str, tmp_path: Path, file: Path) -> None:
    key, config = tmp_path / "metrics_key", tmp_path / "prometheus.yml"
    key.write_text("key")
    # Debian builds promtool without the discovery of Kubernetes' pods.
    text = file.read_text("utf-8").replace("kubernetes_sd_configs:\n      - role: pod", "static_configs: []")
    config.write_text(
        text.replace("/run/secrets/metrics_key", str(key)).replace("alerts.yml", f"{PROMETHEUS}/alerts.yml")
    )
    run_promtool(promtool, "check", "config", str(config))


def test_alerts_fire_and_stay_silent_as_their_unit_tests_say(promtool: str) -> None:
    run_promtool(promtool, "test", "rules", "alerts.test.yml")


def test_every_expression_of_the_dashboard_parses(promtool: str, tmp_path: Path) -> None:
    values = {"$__rate_interval": "5m", "$__range": "1h", "$goodput_limit": "10.0"}
    rules = []
    for panel in panels():
        for target in panel["targets"]:
            expr = target["expr"]
            for name, value in values.items():
                expr = expr.replace(name, value)
            assert "$" not in expr, f"unknown variable in {expr}"
            rules.append({"record": f"panel:{panel['id']}:{target['refId']}", "expr": expr})
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}), encoding="utf-8")
    run_promtool(promtool, "check", "rules", str(file))
