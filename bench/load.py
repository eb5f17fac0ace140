"""The load generator: questions over HTTP, a fixed number always in flight, every answer timed and checked."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from bench.models import image_size
from bench.pages import page
from bench.report import BenchmarkError
from service.sample import samples_folder

_REFUSED = {429, 503}


@dataclass(frozen=True)
class Question:
    """One question; `answer` is the right one where it is known."""

    prompt: str
    image: bytes
    answer: str | None = None


@dataclass(frozen=True)
class Reply:
    """What came of one request, seconds from its start; `problem` says what went wrong."""

    question: Question
    wall: float
    first_token: float | None = None
    answer: dict[str, Any] = field(default_factory=dict)
    refused: bool = False
    problem: str | None = None

    @property
    def required(self) -> dict[str, Any]:
        """The answer object. Raises `BenchmarkError` if there is none."""
        if not self.answer:
            raise BenchmarkError(f"{self.question.prompt!r} was not answered: {self.problem}")
        return self.answer

    @property
    def text(self) -> str:
        """The answer's text. Raises `BenchmarkError` if there is none."""
        return str(self.required["answer"])


@dataclass(frozen=True)
class Load:
    """Requests of one measured run, with its duration in seconds."""

    replies: tuple[Reply, ...]
    wall: float

    @property
    def answered(self) -> list[Reply]:
        """Those with an answer."""
        return [reply for reply in self.replies if reply.answer]

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.answered) / self.wall


def sample_questions() -> list[Question]:
    """The demo model's bundled questions with their right answers."""
    folder = samples_folder()
    samples = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
    return [
        Question(turn["question"], (folder / sample["image"]).read_bytes(), turn["answer"])
        for sample in samples
        for turn in sample["turns"]
    ]


def page_questions(vision_tokens: int, count: int = 24) -> list[Question]:
    """Questions about procedural pages; nobody knows the right answers."""
    questions = []
    for number in range(count):
        file = io.BytesIO()
        page(number, *image_size(vision_tokens)).save(file, "PNG")
        questions.append(Question("what is the total number on page ?", file.getvalue()))
    return questions


class Asker:
    """Asks over one connection pool. `options` are the request's fields besides prompt and image."""

    def __init__(self, client: httpx.AsyncClient, options: dict[str, str]) -> None:
        self._client = client
        self._options = options

    async def load(self, questions: Sequence[Question], requests: int, concurrency: int, pruning: str) -> Load:
        """Ask `requests` times, going through the questions in turn, with `concurrency` always in flight."""
        numbers = iter(range(requests))
        replies: list[Reply] = []

        async def keep_asking() -> None:
            for number in numbers:
                replies.append(await self.ask(questions[number % len(questions)], pruning, stream=True))

        start = time.perf_counter()
        await asyncio.gather(*(keep_asking() for _ in range(concurrency)))
        wall = time.perf_counter() - start
        if len(replies) != requests:
            raise BenchmarkError(f"{requests} requests, but {len(replies)} came back")
        return Load(tuple(replies), wall)

    async def ask(self, question: Question, pruning: str, *, stream: bool) -> Reply:
        """One request; failures are replies, too. `pruning` is the request's JSON field."""
        fields = {**self._options, "prompt": question.prompt, "pruning": pruning, "stream": str(stream).lower()}
        files = {"image": ("image.png", question.image, "image/png")}
        start = time.perf_counter()
        try:
            async with self._client.stream("POST", "/v1/ask", data=fields, files=files) as response:
                if not response.is_success:
                    text = (await response.aread()).decode(errors="replace")
                    refused = response.status_code in _REFUSED
                    return Reply(question, time.perf_counter() - start, refused=refused, problem=text[:300])
                if stream:
                    return await _read_events(question, response, start)
                answer = json.loads(await response.aread())
                return Reply(question, time.perf_counter() - start, answer=answer)
        except (httpx.HTTPError, ValueError) as error:
            return Reply(question, time.perf_counter() - start, problem=f"{type(error).__name__}: {error}")


async def _read_events(question: Question, response: httpx.Response, start: float) -> Reply:
    event, first = "", None
    async for line in response.aiter_lines():
        kind, _, value = line.partition(": ")
        if kind == "event":
            event = value
        elif kind == "data" and event == "token":
            first = first or time.perf_counter() - start
        elif kind == "data" and event == "result":
            return Reply(question, time.perf_counter() - start, first, json.loads(value))
        elif kind == "data" and event == "error":
            return Reply(question, time.perf_counter() - start, first, problem=value[:300])
    return Reply(question, time.perf_counter() - start, first, problem="the stream ended without a result")
