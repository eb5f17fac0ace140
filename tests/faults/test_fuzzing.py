"""The HTTP interface against requests made from its own OpenAPI document, valid ones and broken ones.

`ERASE_FUZZ_EXAMPLES=1000` in the environment of the tests makes more of each kind.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from service.app import create_app
from tests.system.deployment import bundled_questions, until
from tests.system.forked import FastDeployment
from worker.settings import Settings

EXAMPLES = int(os.environ.get("ERASE_FUZZ_EXAMPLES", "15"))
SLOWEST_S = 30
OVERLOADED = {"unavailable", "queue-full", "storage-full", "deadline"}

load_all_checks()
HELD = CHECKS.get_by_names(["status_code_conformance", "content_type_conformance", "response_schema_conformance"])
SCHEMA = schemathesis.openapi.from_dict(create_app(Settings()).openapi())
OPERATIONS = {f"{o.method.upper()} {o.path}": o for o in (found.ok() for found in SCHEMA.get_all_operations())}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastDeployment]:
    running = FastDeployment(tmp_path_factory.mktemp("fuzzing"), ERASE_TIMEOUT_S="8", ERASE_MAX_TIMEOUT_S="10")
    running.start_worker()
    running.start_service()
    yield running
    running.close()


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as opened:
        opened.trust_env = False
        yield opened


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_whatever_is_sent_the_answer_is_one_that_the_document_knows(
    stack: FastDeployment, session: requests.Session, name: str, mode: GenerationMode
) -> None:
    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(OPERATIONS[name].as_strategy(generation_mode=mode))
    def hold(case: schemathesis.Case) -> None:
        # No redirects of the client's own, no hang: every call has its time.
        reply = case.call(base_url=stack.url, session=session, timeout=SLOWEST_S)
        assert reply.status_code not in (500, 502), reply.text
        if reply.status_code in (503, 504):
            assert problem(reply) in OVERLOADED, reply.text
        case.validate_response(reply, checks=list(HELD))

    try:
        hold()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE
        pytest.skip("there is nothing about this request that could be wrong")
    assert all(child.running for child in stack.children)


def problem(reply: Any) -> str:
    """Type of a refusal, in either shape."""
    body = reply.json()
    return str(body["error"]["code"].replace("_", "-") if "error" in body else body["type"].rpartition(":")[2])


def test_afterwards_everything_works_as_before(stack: FastDeployment) -> None:
    until(lambda: stack.open_jobs() == 0, what="the end of all jobs")
    question = bundled_questions()[0]
    assert stack.ask(question).json()["answer"] == question.answer
