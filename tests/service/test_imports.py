"""The service stays light, and imports of our own code go one way."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ALLOWED = {"worker.contract", "worker.failpoints", "worker.ledger", "worker.logs", "worker.settings", "worker.wakeups"}
HEAVY = ("torch", "transformers", "erase", "numpy")
MOST = 0.5
"""Time in our own modules, which also build the models of requests and routes, over that in everything they import."""


def run(code: str) -> str:
    reply = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return reply.stdout.strip()


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names if node.module in ("worker", "service")}
    return names


def ours(names: set[str], *packages: str) -> set[str]:
    return {name for name in names if name.partition(".")[0] in packages and name not in packages}


def test_the_service_imports_only_what_it_shares_with_the_worker() -> None:
    for path in (ROOT / "service").rglob("*.py"):
        assert ours(imported(path), "worker", "erase") <= ALLOWED, path.name


def test_those_import_nothing_else_of_ours() -> None:
    for name in ("contract", "failpoints", "ledger", "logs", "settings", "wakeups"):
        names = imported(ROOT / "worker" / f"{name}.py")
        assert ours(names, "worker", "service", "erase") <= ALLOWED, name


def test_the_library_imports_nothing_of_ours() -> None:
    for path in (ROOT / "erase").rglob("*.py"):
        names = imported(path)
        assert not {name for name in names if name.partition(".")[0] in ("worker", "service")}, path.name


def test_the_worker_does_not_import_the_service() -> None:
    for path in (ROOT / "worker").rglob("*.py"):
        assert not {name for name in imported(path) if name.partition(".")[0] == "service"}, path.name


def test_importing_the_service_pulls_in_nothing_heavy() -> None:
    loaded = run("import sys, service.app; print(*sorted(sys.modules))").split()
    assert not set(HEAVY) & set(loaded)


def test_importing_the_service_takes_little_more_than_the_packages_it_uses() -> None:
    shares = []
    for _ in range(3):
        command = [sys.executable, "-X", "importtime", "-c", "import service.app"]
        reply = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        own = others = 0
        for line in reply.stderr.splitlines():
            microseconds, _, name = line.removeprefix("import time:").split("|")
            if not microseconds.strip().isdigit():
                continue  # the heading
            if name.strip().partition(".")[0] in ("service", "worker"):
                own += int(microseconds)
            else:
                others += int(microseconds)
        shares.append(own / others)
    print(f"our own modules take {min(shares):.2f} of what the packages take")
    assert min(shares) <= MOST
