"""One deployment for the tests that only ask; tests that kill things make their own, whose workers are forked."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.starter import STARTER
from tests.system.deployment import Deployment
from tests.system.forked import FastDeployment


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/system/" in item.path.as_posix():
            item.add_marker(pytest.mark.system)


@pytest.fixture(scope="session")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    running = Deployment(tmp_path_factory.mktemp("deployment"))
    try:
        running.start_worker()
        running.start_service()
        yield running
    finally:
        running.close()


@pytest.fixture
def make_deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Deployment]]:
    made: list[Deployment] = []

    def make(**settings: str) -> Deployment:
        fast = {"ERASE_MODEL": str(STARTER)}
        made.append(FastDeployment(tmp_path_factory.mktemp("deployment"), **fast | settings))
        return made[-1]

    yield make
    for running in made:
        running.close()
