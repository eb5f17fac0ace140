"""The served stack against other servers of the same model on the same machine, under the same load, by turns.

The others run in an environment of their own (`--rivals-python`), as bench/README.md says.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from bench.load import Question, page_questions
from bench.models import save_random_model
from bench.report import (
    BenchmarkError,
    by_turns,
    counts,
    fraction,
    interval,
    output_file,
    percentile,
    positive,
    progress,
    run_main,
    show_interval,
    table,
    this_machine,
    write_json,
)
from bench.served import free_port, own_stack
from service.processes import Child

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 30.0
UNPRUNED = "ours, unpruned"

Ask = Callable[[httpx.AsyncClient, Question, int], Awaitable[int]]
"""Asks one question for so many tokens; returns how many came."""


@dataclass(frozen=True)
class Side:
    """A server to ask."""

    name: str
    url: str
    ask: Ask


@dataclass(frozen=True)
class Run:
    """One measured run; seconds."""

    walls: tuple[float, ...]
    wall: float

    @property
    def rate(self) -> float:
        """Requests per second."""
        return len(self.walls) / self.wall


@dataclass(frozen=True)
class Row:
    """Figures of one side at one concurrency; seconds."""

    concurrency: int
    side: str
    requests_per_s: float
    latency_p50: float
    latency_p95: float
    over_unpruned: dict[str, float]


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table, write the JSON."""
    return run_main(lambda options: asyncio.run(bench(options)), _parser().parse_args(arguments), httpx.HTTPError)


async def bench(options: argparse.Namespace) -> None:
    """One whole run."""
    questions = page_questions(options.vision_tokens)
    machine = this_machine()
    with tempfile.TemporaryDirectory(prefix="erase-rivals-") as folder, ExitStack() as servers:
        model = Path(folder) / "model"
        progress(f"writing a model with random weights in the shape {options.shape}")
        save_random_model(options.shape, model)
        sides = _start(servers, model, options, Path(folder))
        runs: dict[int, dict[str, list[Run]]] = {}
        async with httpx.AsyncClient(timeout=600, trust_env=False, limits=httpx.Limits(max_connections=None)) as client:
            for side in sides:
                progress(f"warming up {side.name}")
                await _run(client, side, questions, 2, 1, options.output_tokens)
            for concurrency in options.concurrency:
                runs[concurrency] = {side.name: [] for side in sides}
                for repetition in range(options.repetitions):
                    for side in by_turns(sides, repetition):
                        requests = options.requests or 2 * concurrency
                        run = await _run(client, side, questions, requests, concurrency, options.output_tokens)
                        progress(
                            f"concurrency {concurrency}, {repetition + 1} of {options.repetitions}, {side.name}: "
                            f"{run.rate:.3g} requests/s"
                        )
                        runs[concurrency][side.name].append(run)
    rows = [row for concurrency, own in runs.items() for row in _rows(concurrency, own)]
    print(f"{machine}\nmodel     random weights, {options.shape}, {options.vision_tokens} vision tokens")
    print(f"load      {options.output_tokens} output tokens, {options.repetitions} repetitions\n\n{_table(rows)}")
    write_json(options.json, machine, options, {"benchmark": "rivals", "rows": [asdict(row) for row in rows]})


def _start(servers: ExitStack, model: Path, options: argparse.Namespace, folder: Path) -> list[Side]:
    os.environ["ERASE_MODEL"] = str(model)
    os.environ["ERASE_POLICY"] = "qwen2.5-vl-7b-budget"
    os.environ["ERASE_FEATURE_CACHE_BYTES"] = "0"  # questions come again, and no other server remembers images
    ours = servers.enter_context(own_stack())
    pruned = {"method": "erase", "retention": options.retention}
    sides = [
        Side(UNPRUNED, ours, _ask_ours({"method": "none"})),
        Side(f"ours, pruned {options.retention:g}", ours, _ask_ours(pruned)),
    ]
    python = options.rivals_python
    port = free_port()
    serve = [str(Path(python).parent / "transformers"), "serve", str(model), "--device", "cpu", "--dtype", "float32"]
    serve += ["--host", "127.0.0.1", "--port", str(port)]
    url = servers.enter_context(_server("transformers serve", serve, port, "/health", folder))
    sides.append(Side("transformers serve", url, _ask_openai(str(model))))
    port = free_port()
    app = [python, str(Path(__file__).with_name("litserve_app.py")), str(model), str(port)]
    url = servers.enter_context(_server("LitServe", app, port, "/health", folder))
    sides.append(Side("LitServe", url, _ask_litserve))
    return sides


@contextmanager
def _server(name: str, command: list[str], port: int, path: str, folder: Path) -> Iterator[str]:
    """Another server in its own process; yields its address once it answers."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    child = Child(name, command, environment, folder / f"{name.split()[0]}.log")
    progress(f"starting {name}")
    child.start()
    group = child.pid
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + START_TIMEOUT_S
    try:
        with httpx.Client(base_url=url, timeout=2.0, trust_env=False) as client:
            while True:
                if not child.running or time.monotonic() > deadline:
                    raise BenchmarkError(f"{name} does not start:\n{child.last_lines()}")
                try:
                    if client.get(path).is_success:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.2)
        yield url
    finally:
        child.stop(STOP_TIMEOUT_S)
        if group is not None:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)  # LitServe leaves its workers behind


async def _run(
    client: httpx.AsyncClient, side: Side, questions: Sequence[Question], requests: int, concurrency: int, answer: int
) -> Run:
    """`requests` questions with `concurrency` always in flight; every answer must have the length asked for."""
    numbers = iter(range(requests))
    walls: list[float] = []

    async def keep_asking() -> None:
        for number in numbers:
            start = time.perf_counter()
            tokens = await side.ask(client, questions[number % len(questions)], answer)
            walls.append(time.perf_counter() - start)
            if tokens != answer:
                raise BenchmarkError(f"{side.name} answered with {tokens} tokens instead of {answer}")

    client.base_url = httpx.URL(side.url)
    start = time.perf_counter()
    await asyncio.gather(*(keep_asking() for _ in range(concurrency)))
    return Run(tuple(walls), time.perf_counter() - start)


def _ask_ours(pruning: dict[str, object]) -> Ask:
    async def ask(client: httpx.AsyncClient, question: Question, answer: int) -> int:
        fields = {
            "prompt": question.prompt,
            "max_tokens": str(answer),
            "timeout_s": "600",
            "pruning": json.dumps(pruning),
        }
        files = {"image": ("image.png", question.image, "image/png")}
        response = await client.post("/v1/ask", data=fields, files=files)
        return int(response.raise_for_status().json()["usage"]["completion_tokens"])

    return ask


def _ask_openai(model: str) -> Ask:
    async def ask(client: httpx.AsyncClient, question: Question, answer: int) -> int:
        url = "data:image/png;base64," + base64.b64encode(question.image).decode()
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question.prompt}]
        body = {
            "model": model,
            "max_tokens": answer,
            "temperature": 0,
            "messages": [{"role": "user", "content": content}],
        }
        response = await client.post("/v1/chat/completions", json=body)
        return int(response.raise_for_status().json()["usage"]["completion_tokens"])

    return ask


async def _ask_litserve(client: httpx.AsyncClient, question: Question, answer: int) -> int:
    body = {"prompt": question.prompt, "image": base64.b64encode(question.image).decode(), "max_tokens": answer}
    response = await client.post("/predict", json=body)
    return int(response.raise_for_status().json()["tokens"])


def _rows(concurrency: int, runs: dict[str, list[Run]]) -> list[Row]:
    base = runs[UNPRUNED]
    rows = []
    for side, own in runs.items():
        walls = [wall for run in own for wall in run.walls]
        rows.append(
            Row(
                concurrency=concurrency,
                side=side,
                requests_per_s=len(walls) / sum(run.wall for run in own),
                latency_p50=percentile(walls, 50),
                latency_p95=percentile(walls, 95),
                over_unpruned=interval([run.rate / other.rate for run, other in zip(own, base, strict=True)]),
            )
        )
    return rows


def _table(rows: list[Row]) -> str:
    header = ["conc.", "server", "requests/s", "latency p50 ms", "p95 ms", "requests/s over ours unpruned (95%)"]
    return table(
        header,
        [
            [
                str(row.concurrency),
                row.side,
                f"{row.requests_per_s:.3g}",
                f"{row.latency_p50 * 1000:.0f}",
                f"{row.latency_p95 * 1000:.0f}",
                show_interval(row.over_unpruned),
            ]
            for row in rows
        ],
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.rivals",
        description="Measure the served stack against transformers serve and LitServe: same model, machine and load.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--rivals-python", required=True, help="interpreter with transformers[serving] and litserve")
    parser.add_argument("--shape", default="small", help="shape of the model with random weights, as in bench.engine")
    parser.add_argument("--vision-tokens", type=positive, default=1280, help="per image")
    parser.add_argument("--output-tokens", type=positive, default=16, help="length of every answer")
    parser.add_argument("--retention", type=fraction, default=0.15, help="of the pruned side")
    parser.add_argument("--concurrency", type=counts, default="1,8", help="requests in flight; a sweep")
    parser.add_argument("--requests", type=positive, help="per measured run; default: 2 x concurrency")
    parser.add_argument("--repetitions", type=positive, default=3, help="measured runs per side")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write everything as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
