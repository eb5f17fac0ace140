"""What a request costs beyond preprocessing and model when nothing else runs: HTTP, Redis, queue, result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.load import Asker, Question, Reply
from bench.report import by_turns, percentile, progress, table

PHASES = ("preprocess", "encode", "prefill", "decode")


@dataclass(frozen=True)
class Overhead:
    """Milliseconds of one request beyond preprocessing and model, nothing else running, not streamed."""

    side: str
    wall_p50: float
    phases_p50: dict[str, float]
    queue_p50: float
    overhead_p50: float
    overhead_p95: float


async def overheads_of(
    asker: Asker, questions: Sequence[Question], sides: dict[str, str], requests: int
) -> list[Overhead]:
    """Ask one request at a time, the sides by turns. Raises `BenchmarkError` for one without an answer."""
    progress(f"unloaded: {requests} requests per side, one at a time")
    replies: dict[str, list[Reply]] = {side: [] for side in sides}
    for number in range(requests):
        for side, pruning in by_turns(list(sides.items()), number):
            reply = await asker.ask(questions[number % len(questions)], pruning, stream=False)
            replies[side].append(reply)
    return [_overhead(side, own) for side, own in replies.items()]


def _overhead(side: str, replies: list[Reply]) -> Overhead:
    timings = [reply.required["timings_ms"] for reply in replies]
    beyond = [
        reply.wall * 1000 - sum(own[phase] for phase in PHASES) for reply, own in zip(replies, timings, strict=True)
    ]
    return Overhead(
        side=side,
        wall_p50=percentile([reply.wall * 1000 for reply in replies], 50),
        phases_p50={phase: percentile([own[phase] for own in timings], 50) for phase in PHASES},
        queue_p50=percentile([own["queue"] for own in timings], 50),
        overhead_p50=percentile(beyond, 50),
        overhead_p95=percentile(beyond, 95),
    )


def overhead_table(overheads: list[Overhead]) -> str:
    """The overheads for the terminal."""
    header = ["side", "wall", *PHASES, "queue", "overhead = wall - phases", "overhead p95"]
    return table(
        header,
        [
            [
                own.side,
                *(f"{value:.1f}" for value in (own.wall_p50, *own.phases_p50.values(), own.queue_p50)),
                f"{own.overhead_p50:.1f}",
                f"{own.overhead_p95:.1f}",
            ]
            for own in overheads
        ],
    )
