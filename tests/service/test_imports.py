"""The service stays light, and imports of our own code go one way."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ALLOWED = {"worker.contract", "worker.failpoints", "worker.ledger", "worker.logs", "worker.settings", "worker.wakeups"}
HEAVY = ("torch", "transformers", "erase", "numpy")
MOST = 1.5
_CLOCK = "import time; start = time.process_time(); import {}; print(time.process_time() - start)"


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


def imported_at_once(path: Path) -> set[str]:
    """Modules of other packages that a file imports when it is imported itself."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    known = {*sys.stdlib_module_names, "service", "worker"}
    return {name for name in names if name.partition(".")[0] not in known}


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
    loaded = run("import sys, service.app; print(*sys.modules)").split()
    sources = [ROOT / f"{name.replace('.', '/')}.py" for name in loaded if name.startswith(("service.", "worker."))]
    packages = {name for path in sources for name in imported_at_once(path)}
    others, service = [], []
    for _ in range(6):
        others.append(float(run(_CLOCK.format(", ".join(sorted(packages))))))
        service.append(float(run(_CLOCK.format("service.app"))))
    ratio = min(service) / min(others)
    print(f"import ratio {ratio:.2f}")
    assert ratio <= MOST
