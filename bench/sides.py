"""The sides that a speed benchmark compares: our engine under a method, and stock transformers `generate`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as List
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from bench.report import BenchmarkError
from erase.engine import Engine, Result, SamplingParams, Sequence
from erase.engine.threads import use_threads
from erase.methods.base import Cut, Method, Preselection
from erase.models.loading import LoadedModel
from erase.models.prompt import PreparedPrompt

T = TypeVar("T")


@dataclass(frozen=True)
class Answered:
    """One finished request: seconds from its start, and what it cost in tokens."""

    tokens: tuple[int, ...]
    first: float
    end: float
    kept: int
    """Vision tokens left after all cuts."""
    rows: tuple[int, ...]
    """Per decoder layer, rows that the prefill ran; our engine runs most of the last layer for one row only."""
    cache: tuple[int, ...]
    """Per decoder layer, cache rows after prefill."""

    @property
    def per_token(self) -> float | None:
        """Seconds per token after the first; None for answers of one token."""
        return (self.end - self.first) / (len(self.tokens) - 1) if len(self.tokens) > 1 else None


@dataclass(frozen=True)
class Run:
    """A batch of requests that started together."""

    answers: tuple[Answered, ...]
    wall: float
    peak_bytes: int | None

    @property
    def rate(self) -> float:
        """Requests per second."""
        return len(self.answers) / self.wall


class Side(Protocol):
    """One of those compared."""

    name: str

    def run(self, prompts: List[PreparedPrompt], answer: int) -> Run:
        """Answer all prompts, started together, with exactly `answer` tokens each."""


def measured(side: Side, prompts: List[PreparedPrompt], answer: int, device: torch.device) -> Run:
    """Run a side, with its peak memory on CUDA, and hold every answer to the length asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    run = side.run(prompts, answer)
    if len(run.answers) != len(prompts):
        raise BenchmarkError(f"{side.name}: {len(prompts)} requests, but {len(run.answers)} answers")
    if wrong := sorted({len(answered.tokens) for answered in run.answers} - {answer}):
        raise BenchmarkError(f"{side.name}: answers of {wrong} tokens, expected {answer}")
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return Run(run.answers, run.wall, peak)


def in_own_thread(work: Callable[[], T], threads: int = 1) -> T:
    """What `work` returns, computed with so many OpenMP threads, which end with it (see `erase.engine.threads`)."""

    def compute() -> T:
        use_threads(threads)
        return work()

    with lent_threads(), ThreadPoolExecutor(1) as thread:
        return thread.submit(compute).result()


@contextmanager
def lent_threads() -> Iterator[int]:
    """Within, this thread has one OpenMP thread, so that who is measured has the only pool; gives its own number."""
    own = torch.get_num_threads()
    use_threads(1)
    try:
        yield own
    finally:
        use_threads(own)


class EngineSide:
    """Our engine. Stage 1 counts if the side prunes; without pruning it only reports, so it runs before the clock.

    `engine` gives the running engine for a run and takes it back.
    """

    def __init__(
        self,
        name: str,
        engine: Callable[[], AbstractContextManager[Engine]],
        loaded: LoadedModel,
        method: Method,
        *,
        prunes: bool,
    ) -> None:
        self.name = name
        self.prunes = prunes
        self._engine = engine
        self._loaded = loaded
        self._method = method

    def run(self, prompts: List[PreparedPrompt], answer: int) -> Run:
        with self._engine() as engine:
            return self._run(engine, prompts, answer)

    def _run(self, engine: Engine, prompts: List[PreparedPrompt], answer: int) -> Run:
        ready = threading.Barrier(len(prompts) + 1)
        before = [None if self.prunes else self.preselect(prompt) for prompt in prompts]

        def ask(number: int) -> Answered:
            prompt = prompts[number]
            ready.wait()
            start = time.perf_counter()
            preselection = before[number] or self.preselect(prompt)
            sampling = SamplingParams(max_tokens=answer)
            handle = engine.submit(Sequence(str(number), prompt, self._method, preselection, sampling))
            first = None
            for _ in handle.events():
                first = first or time.perf_counter()
            end = time.perf_counter()
            if first is None:
                raise BenchmarkError(f"{self.name}: an answer without tokens")
            result = handle.result()
            self._check(prompt, preselection, result)
            rows = _prefill_rows(prompt, preselection, result.cuts, self._loaded.adapter.depth)
            return Answered(
                result.tokens, first - start, end - start, len(result.kept), rows, tuple(result.cache_lengths)
            )

        with ThreadPoolExecutor(len(prompts)) as threads:
            asked = [threads.submit(ask, number) for number in range(len(prompts))]
            ready.wait()
            start = time.perf_counter()
            answers = tuple(future.result() for future in asked)
            return Run(answers, time.perf_counter() - start, None)

    def preselect(self, prompt: PreparedPrompt) -> Preselection:
        """Stage 1 of one prompt."""
        return self._method.preselect([image.pixels for image in prompt.images])

    def _check(self, prompt: PreparedPrompt, preselection: Preselection, result: Result) -> None:
        cuts = self._method.plan(preselection, self._loaded.adapter.architecture)
        expected = cuts[-1].keep if cuts else len(preselection.kept)
        if len(result.kept) != expected or not torch.isin(result.kept, preselection.kept).all():
            raise BenchmarkError(f"{self.name}: kept {len(result.kept)} vision tokens, planned were {expected}")
        text = len(prompt.tokens) - preselection.tokens
        if result.cache_lengths[-1] != text + expected:
            raise BenchmarkError(f"{self.name}: the last layer's cache has {result.cache_lengths[-1]} rows")


class StockSide:
    """Stock transformers `generate`: greedy, one batch of equal lengths, so without any padding."""

    name = "stock generate"

    def __init__(self, loaded: LoadedModel, threads: int) -> None:
        self._loaded = loaded
        self._threads = threads

    def run(self, prompts: List[PreparedPrompt], answer: int) -> Run:
        return in_own_thread(lambda: self._run(prompts, answer), self._threads)

    def _run(self, prompts: List[PreparedPrompt], answer: int) -> Run:
        inputs = self._inputs(prompts)
        clock = _Clock()
        start = time.perf_counter()
        output = self._generate(inputs, answer, streamer=clock)
        end = time.perf_counter()
        length = len(prompts[0].tokens)
        layers = (length,) * self._loaded.adapter.depth
        vision = sum(image.tokens for image in prompts[0].images)
        answers = tuple(
            Answered(tuple(row), clock.first - start, end - start, vision, layers, layers)
            for row in output[:, length:].tolist()
        )
        return Run(answers, end - start, None)

    def tokens_and_logits(self, prompts: List[PreparedPrompt], answer: int) -> tuple[list[list[int]], Tensor]:
        """Answers, and the logits [answers, tokens, vocabulary] that they were chosen from."""
        output = in_own_thread(
            lambda: self._generate(self._inputs(prompts), answer, output_logits=True, return_dict_in_generate=True),
            self._threads,
        )
        logits = torch.stack(output.logits, dim=1).float()
        return output.sequences[:, len(prompts[0].tokens) :].tolist(), logits

    def _inputs(self, prompts: List[PreparedPrompt]) -> dict[str, Tensor]:
        if len({len(prompt.tokens) for prompt in prompts}) != 1:
            raise BenchmarkError("stock generate is measured with prompts of equal length only")
        tokens = torch.stack([prompt.tokens for prompt in prompts])
        images = [image for prompt in prompts for image in prompt.images]
        inputs = {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
            "mm_token_type_ids": (tokens == self._loaded.adapter.image_token_id).int(),
            "pixel_values": torch.cat([image.pixel_values for image in images]),
            "image_grid_thw": torch.tensor([image.grid_thw for image in images]),
        }
        return {name: tensor.to(self._loaded.device) for name, tensor in inputs.items()}

    def _generate(self, inputs: dict[str, Tensor], answer: int, **options: Any) -> Any:
        with torch.inference_mode():
            return self._loaded.model.generate(**inputs, max_new_tokens=answer, do_sample=False, **options)


class _Clock(BaseStreamer):  # type: ignore[misc]
    """Notes when the first token is there; `generate` first shows the prompt itself."""

    def __init__(self) -> None:
        self._puts = 0
        self.first = float("nan")

    def put(self, value: Tensor) -> None:
        self._puts += 1
        if self._puts == 2:
            self.first = time.perf_counter()

    def end(self) -> None:
        pass


def agreement(
    unpruned: EngineSide, stock: StockSide, prompts: List[PreparedPrompt], answer: int, tolerance: float | None
) -> float:
    """Share of tokens on which engine and `generate` agree, an answer counting up to its first difference.

    Raises:
        BenchmarkError: they differ where the best two logits are more than `tolerance` apart (None: never).
    """
    theirs, logits = stock.tokens_and_logits(prompts, answer)
    ours = [list(answered.tokens) for answered in unpruned.run(prompts, answer).answers]
    same = 0
    for number, (left, right) in enumerate(zip(ours, theirs, strict=True)):
        at = next((index for index, pair in enumerate(zip(left, right, strict=True)) if pair[0] != pair[1]), answer)
        same += at
        if at == answer or tolerance is None:
            continue
        best, second = logits[number, at].topk(2).values.tolist()
        if best - second > tolerance:
            raise BenchmarkError(
                f"answer {number} of {unpruned.name} differs from stock generate at token {at}, "
                f"where the best two logits are {best - second:.2g} apart"
            )
    return same / (answer * len(prompts))


def _prefill_rows(prompt: PreparedPrompt, preselection: Preselection, cuts: List[Cut], depth: int) -> tuple[int, ...]:
    text = len(prompt.tokens) - preselection.tokens
    rows = [text + len(preselection.kept)] * depth
    for cut in cuts:
        rows[cut.after_layers :] = [text + cut.keep] * (depth - cut.after_layers)
    return tuple(rows)
