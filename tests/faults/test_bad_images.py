"""A few hundred damaged images; `python -m tests.faults.bad_images` asks about ten thousand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.bad_images import ask_all
from tests.faults.corpus import MUTATIONS, mutated, seeds
from tests.system.deployment import bundled_questions
from tests.system.forked import FastDeployment


@pytest.fixture
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastDeployment]:
    running = FastDeployment(tmp_path_factory.mktemp("images"))
    yield running
    running.close()


def test_every_damaged_image_gets_an_answer_or_a_clear_refusal(stack: FastDeployment) -> None:
    children = {"worker": stack.start_worker(), "service": stack.start_service()}
    report = ask_all(stack, children, count=150, warm_up=10)
    assert report.wrong == []
    assert {"answered", "invalid-image", "unsupported-image-format", "too-large"} <= report.kinds.keys()
    question = bundled_questions()[0]
    assert stack.ask(question).json()["answer"] == question.answer
    assert stack.open_jobs() == 0


def test_the_corpus_is_the_same_every_time_and_varied() -> None:
    files = list(mutated(300))
    assert files == list(mutated(300))
    assert len(set(files)) > 290
    assert files != list(mutated(300, seed=1))
    assert len(seeds()) == 13
    assert len(MUTATIONS) == 11
