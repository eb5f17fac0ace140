"""The served stack under load: pruned and unpruned requests by turns, and what HTTP, queue and result cost unloaded."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import httpx

from bench.load import Asker, Load, Question, page_questions, sample_questions
from bench.overhead import overhead_table, overheads_of
from bench.report import (
    DASH,
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
from bench.served import own_stack

KEY_VARIABLE = "BENCH_API_KEY"
DEMO = "demo"
UNPRUNED = "unpruned"


@dataclass(frozen=True)
class Row:
    """Figures of one side at one concurrency; seconds. The speed-up is in requests/s over unpruned."""

    concurrency: int
    side: str
    requests: int
    requests_per_s: float
    speedup: dict[str, float]
    latency_p50: float
    latency_p95: float
    latency_p99: float
    ttft_p50: float
    ttft_p95: float
    token_reduction: float
    refused: float
    failed: float


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the tables, write the JSON. Returns 1 when a request failed or an answer was wrong."""
    return run_main(lambda options: asyncio.run(bench(options)), _parser().parse_args(arguments), httpx.HTTPError)


async def bench(options: argparse.Namespace) -> None:
    """One whole run."""
    questions = page_questions(options.vision_tokens) if options.vision_tokens else sample_questions()
    sides = _sides(options)
    key = os.environ.get(KEY_VARIABLE)
    with nullcontext(options.url) if options.url else own_stack() as url:
        async with httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=options.timeout + 30,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=max(options.concurrency)),
            trust_env=False,
        ) as client:
            fields = {"max_tokens": str(options.output_tokens), "timeout_s": str(options.timeout), "seed": "0"}
            asker = Asker(client, fields)
            model = await _model(client)
            expected = await _expected(asker, questions, sides, model, options.vision_tokens)
            overheads = await overheads_of(asker, questions, sides, options.unloaded_requests)
            loads: dict[int, dict[str, list[Load]]] = {}
            for concurrency in options.concurrency:
                loads[concurrency] = await _interleaved(asker, questions, sides, concurrency, options)
    machine = this_machine()
    rows = [row for concurrency, own in loads.items() for row in _rows(concurrency, own)]
    print(
        f"{machine}\nservice   {options.url or 'started here: Redis, one worker, one service, load generator beside'}"
    )
    print(f"model     {model}, up to {options.output_tokens} output tokens, {options.repetitions} repetitions")
    print(f"\nunloaded, one request at a time, ms (medians)\n\n{overhead_table(overheads)}")
    print(f"\nunder load\n\n{_table(rows)}")
    results = {"benchmark": "stack", "model": model, "overhead": [asdict(overhead) for overhead in overheads]}
    write_json(options.json, machine, options, results | {"rows": [asdict(row) for row in rows]})
    _refuse_wrong(loads, expected)


def _sides(options: argparse.Namespace) -> dict[str, str]:
    pruned: dict[str, Any] = {"method": "erase"}
    if options.policy:
        pruned["policy"] = options.policy
    if options.retention:
        pruned["retention"] = options.retention
    return {"pruned": json.dumps(pruned), UNPRUNED: json.dumps({"method": "none"})}


async def _model(client: httpx.AsyncClient) -> str:
    try:
        status = (await client.get("/v1/status")).raise_for_status().json()
        return str(status["workers"][0]["model"])
    except (ValueError, KeyError, IndexError, TypeError):
        raise BenchmarkError(f"no worker with a model at {client.base_url}") from None


async def _expected(
    asker: Asker, questions: Sequence[Question], sides: dict[str, str], model: str, vision_tokens: int | None
) -> dict[tuple[str, Question], str]:
    """Warm up: ask everything once, alone. These answers are what every later one is held to.

    Raises:
        BenchmarkError: a request fails, the demo model, unpruned, gets one of its bundled questions wrong, or the
            model makes another number of vision tokens of the images than was asked for.
    """
    progress(f"warming up: {len(questions)} questions, pruned and not")
    expected = {}
    for question in questions:
        for side, pruning in sides.items():
            reply = await asker.ask(question, pruning, stream=False)
            expected[side, question] = reply.text
            made = reply.required["usage"]["vision_tokens"]["input"]
            if vision_tokens and made != vision_tokens:
                raise BenchmarkError(f"the model makes {made} vision tokens of an image, not {vision_tokens}")
            if side == UNPRUNED and model == DEMO and question.answer not in {None, reply.text}:
                raise BenchmarkError(
                    f"{question.prompt!r} was answered {reply.text!r}, unpruned; right is {question.answer!r}"
                )
    return expected


async def _interleaved(
    asker: Asker, questions: Sequence[Question], sides: dict[str, str], concurrency: int, options: argparse.Namespace
) -> dict[str, list[Load]]:
    requests = options.requests or max(len(questions), 4 * concurrency)
    loads: dict[str, list[Load]] = {side: [] for side in sides}
    for pruning in sides.values():
        await asker.load(questions, concurrency, concurrency, pruning)
    for repetition in range(options.repetitions):
        for side, pruning in by_turns(list(sides.items()), repetition):
            load = await asker.load(questions, requests, concurrency, pruning)
            told = f"concurrency {concurrency}, {repetition + 1} of {options.repetitions}, {side}"
            progress(f"{told}: {load.rate:.1f} requests/s")
            loads[side].append(load)
    return loads


def _refuse_wrong(loads: dict[int, dict[str, list[Load]]], expected: dict[tuple[str, Question], str]) -> None:
    """Raises `BenchmarkError` if any request failed, or got another answer than the same request alone."""
    replies = [
        (side, reply) for own in loads.values() for side, runs in own.items() for run in runs for reply in run.replies
    ]
    failed = [reply for _, reply in replies if not reply.answer and not reply.refused]
    wrong = [(side, reply) for side, reply in replies if reply.answer and reply.text != expected[side, reply.question]]
    if failed:
        raise BenchmarkError(f"{len(failed)} of {len(replies)} requests failed, the first: {failed[0].problem}")
    if wrong:
        side, reply = wrong[0]
        raise BenchmarkError(
            f"{len(wrong)} of {len(replies)} answers differ from the same request's alone, the first: "
            f"{reply.question.prompt!r} {side}: {reply.text!r} instead of {expected[side, reply.question]!r}"
        )


def _rows(concurrency: int, loads: dict[str, list[Load]]) -> list[Row]:
    rows = []
    for side, runs in loads.items():
        replies = [reply for run in runs for reply in run.replies]
        answered = [reply for run in runs for reply in run.answered]
        if empty := [run for run in runs if not run.answered]:
            problem = empty[0].replies[0].problem
            raise BenchmarkError(f"no {side} request was answered at concurrency {concurrency}: {problem}")
        walls = [reply.wall for reply in answered]
        firsts = [reply.first_token for reply in answered if reply.first_token is not None]
        if len(firsts) != len(answered):
            raise BenchmarkError(f"{len(answered) - len(firsts)} streams had a result but no token")
        refused = sum(reply.refused for reply in replies)
        rows.append(
            Row(
                concurrency=concurrency,
                side=side,
                requests=len(replies),
                requests_per_s=len(answered) / sum(run.wall for run in runs),
                speedup=interval([run.rate / other.rate for run, other in zip(runs, loads[UNPRUNED], strict=True)]),
                latency_p50=percentile(walls, 50),
                latency_p95=percentile(walls, 95),
                latency_p99=percentile(walls, 99),
                ttft_p50=percentile(firsts, 50),
                ttft_p95=percentile(firsts, 95),
                token_reduction=sum(reply.answer["usage"]["token_reduction"] for reply in answered) / len(answered),
                refused=refused / len(replies),
                failed=(len(replies) - len(answered) - refused) / len(replies),
            )
        )
    return rows


def _table(rows: list[Row]) -> str:
    header = ["conc.", "side", "requests", "requests/s", "speed-up (95%)", "latency p50 ms", "p95 ms", "p99 ms"]
    header += ["TTFT p50 ms", "p95 ms", "token reduction", "refused", "failed"]

    def cells(row: Row) -> list[str]:
        times = (row.latency_p50, row.latency_p95, row.latency_p99, row.ttft_p50, row.ttft_p95)
        return [
            str(row.concurrency),
            row.side,
            str(row.requests),
            f"{row.requests_per_s:.2f}",
            show_interval(row.speedup),
            *(f"{time * 1000:.1f}" for time in times),
            f"{row.token_reduction:.1%}",
            f"{row.refused:.1%}" if row.refused else DASH,
            f"{row.failed:.1%}" if row.failed else DASH,
        ]

    return table(header, [cells(row) for row in rows])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.stack",
        description="Put load on a service, running or started here, with pruned and unpruned requests by turns.",
        epilog=f"bench/README.md explains the columns. Where the service asks for keys, put one into {KEY_VARIABLE}.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--url", help="address of a running service; default: start Redis, worker and service here, as ERASE_* say"
    )
    parser.add_argument("--concurrency", type=counts, default="1,2,4,8", help="requests in flight; a sweep")
    parser.add_argument(
        "--requests", type=positive, help="per measured run; default: every question once, at least 4 x concurrency"
    )
    parser.add_argument("--repetitions", type=positive, default=3, help="measured runs per side")
    parser.add_argument("--unloaded-requests", type=positive, default=24, help="per side, for the overhead")
    parser.add_argument("--policy", help="pruning policy by name; default: the deployment's")
    parser.add_argument("--retention", type=fraction, help="turns the policy's dial; default: the policy's own")
    parser.add_argument("--output-tokens", type=positive, default=16, help="longest answer")
    parser.add_argument(
        "--vision-tokens", type=positive, help="ask about procedural pages of this size instead of the bundled samples"
    )
    parser.add_argument("--timeout", type=positive, default=120, help="deadline of a request in seconds")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write everything as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
