"""HTTP, queue and ledger without a model: a worker that answers at once, or after a set time.

    python -m bench.front

Three questions, on this machine, with the real Redis, service and Celery consumer:

- throughput: requests per second with images of 100 kB, by turns with the least that FastAPI and Redis need for the
  same round trip (bench/bare.py: form, image into Redis, a list as queue, a list as reply);
- waiters: many requests that wait on one service process; connections to Redis, memory, and that all are answered;
- overload: ten times as many requests as can be answered, offered by clients that do not wait for each other. How
  many answers a second come (goodput), against the peak measured just before, and how fast the refusals are.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import math
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx
import redis
from PIL import Image

from bench.raw_http import Connection, RawReply, multipart_request
from bench.report import (
    BenchmarkError,
    by_turns,
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
from bench.served import free_port
from service.embedded_redis import EmbeddedRedis
from service.processes import Child
from worker.contract import OPEN_KEY, WORKERS_KEY

READY_S = 60.0
UPLOADS_AT_ONCE = 64
OVERLOAD_ENGINE_S = 0.15
"""With a faster one, ten times the peak is more than one process on two shared cores can refuse (bench/RESULTS.md)."""
REFUSED = (429, 503)


@dataclass
class Sides:
    """Requests per second of each side, one number for each repetition."""

    ours: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    alone_s: dict[str, list[float]] = field(default_factory=dict)
    """Seconds of requests that were alone, the whole round trip."""


@dataclass(frozen=True)
class Waiters:
    """What waiting requests cost one service process. Memory in bytes."""

    waiting: int
    connections_before: int
    connections: int
    memory_before: int
    memory: int
    answered: int


@dataclass(frozen=True)
class Overload:
    """Answers per second at the peak and under overload, and how refusals came; seconds."""

    peak: float
    offered: float
    goodput: float
    refused: int
    refusal_p50: float
    refusal_p99: float
    others: dict[str, int]

    @property
    def share(self) -> float:
        """Goodput over peak."""
        return self.goodput / self.peak


def picture(size: int) -> bytes:
    """A PNG of noise with about so many bytes."""
    side = max(28, math.isqrt(size // 3))
    noise = random.Random(0).randbytes(3 * side * side)
    buffer = io.BytesIO()
    Image.frombytes("RGB", (side, side), noise).save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def stack(
    folder: Path, settings: Mapping[str, str], *, bare: bool = False
) -> Iterator[tuple[int, dict[str, Child], redis.Redis]]:
    """Redis, one service and one worker; yields the port, the children and a client of Redis."""
    folder.mkdir()
    with EmbeddedRedis(folder / "redis") as server:
        port = free_port()
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ERASE_")}
        environment = {**inherited, "ERASE_REDIS_URL": server.url, "ERASE_PORT": str(port), **settings}
        module = "bench.bare" if bare else ""
        commands = {
            "service": [sys.executable, "-m", module or "service", *(["service", str(port)] if bare else [])],
            "worker": [sys.executable, "-m", module or "bench.instant_worker", *(["worker"] if bare else [])],
        }
        children = {name: Child(name, command, environment, folder / name) for name, command in commands.items()}
        client = redis.Redis.from_url(server.url)
        try:
            for child in children.values():
                child.start()
            _wait_until_ready(port, children, client, bare=bare)
            yield port, children, client
        finally:
            client.close()
            for child in children.values():
                child.stop(10)


def _wait_until_ready(port: int, children: dict[str, Child], client: redis.Redis, *, bare: bool) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        for child in children.values():
            if not child.running:
                raise BenchmarkError(f"the {child.name} ended:\n{child.last_lines()}")
        try:
            ready = httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).is_success
        except httpx.TransportError:
            ready = False
        if ready and (bare or client.hlen(WORKERS_KEY)):
            return
        time.sleep(0.05)
    raise BenchmarkError("the stack was not ready in time")


async def closed_load(port: int, request: bytes, concurrency: int, seconds: float) -> list[RawReply]:
    """Replies that came within this time, in which so many connections each ask again as soon as they are answered."""
    until = time.perf_counter() + seconds

    async def one() -> list[RawReply]:
        connection = Connection(port)
        replies: list[RawReply] = []
        while True:
            reply = await connection.ask(request)
            if time.perf_counter() > until:
                await connection.close()
                return replies
            replies.append(reply)

    return [reply for replies in await asyncio.gather(*(one() for _ in range(concurrency))) for reply in replies]


def _rate(replies: Sequence[RawReply], seconds: float) -> float:
    wrong = [reply for reply in replies if reply.status != 200]
    if wrong:
        raise BenchmarkError(
            f"{len(wrong)} of {len(replies)} requests failed: {wrong[0].status} {wrong[0].body[:200]!r}"
        )
    return len(replies) / seconds


def measure_throughput(folder: Path, repetitions: int, seconds: float, concurrency: int, image: bytes) -> Sides:
    """Both stacks run all the time; the load goes to one after the other."""
    request = multipart_request("/v1/ask", image, "what is page ?")
    sides = Sides()
    slots = str(max(12, concurrency))
    with (
        stack(folder / "ours", {"ERASE_INTERACTIVE_SLOTS": slots}) as (ours, _, _),
        stack(folder / "bare", {}, bare=True) as (bare, _, _),
    ):
        for name, port in (("ours", ours), ("bare", bare)):
            asyncio.run(closed_load(port, request, concurrency, 2.0))
            alone = asyncio.run(closed_load(port, request, 1, 3.0))
            sides.alone_s[name] = [reply.seconds for reply in alone]
        for repetition in range(repetitions):
            progress(f"throughput: repetition {repetition + 1} of {repetitions}")
            for port, rates in by_turns([(ours, sides.ours), (bare, sides.bare)], repetition):
                rates.append(_rate(asyncio.run(closed_load(port, request, concurrency, seconds)), seconds))
    return sides


def measure_waiters(folder: Path, count: int, request: bytes) -> Waiters:
    """So many of these requests wait while the worker is stopped; then it answers them."""
    settings = {"ERASE_TIMEOUT_S": "590", "ERASE_MAX_OPEN_JOBS": str(count + 100), "ERASE_INTERACTIVE_SLOTS": "24"}
    with stack(folder / "waiters", settings) as (port, children, client):
        asyncio.run(closed_load(port, request, 8, 2.0))
        children["worker"].stop(10)
        before = len(client.client_list()), _resident(children["service"])
        return asyncio.run(_wait_all(port, children, client, request, count, before))


async def _wait_all(
    port: int, children: dict[str, Child], client: redis.Redis, request: bytes, count: int, before: tuple[int, int]
) -> Waiters:
    waiting: list[asyncio.Task[RawReply]] = []
    told = time.monotonic()
    while (accepted := client.zcard(OPEN_KEY)) < count:
        early = [task.result() for task in waiting if task.done()]
        if early:
            raise BenchmarkError(f"a request did not wait: {early[0].status} {early[0].body[:200]!r}")
        for _ in range(min(count - len(waiting), accepted + UPLOADS_AT_ONCE - len(waiting))):
            waiting.append(asyncio.create_task(_ask_once(port, request)))
        await asyncio.sleep(0.02)
        if time.monotonic() - told > 5:
            told = time.monotonic()
            progress(f"waiters: {accepted} of {count} wait")
    await asyncio.sleep(1)
    connections, memory = len(client.client_list()), _resident(children["service"])
    children["worker"].start()
    replies = await asyncio.gather(*waiting)
    answered = sum(reply.status == 200 for reply in replies)
    return Waiters(count, before[0], connections, before[1], memory, answered)


async def _ask_once(port: int, request: bytes) -> RawReply:
    connection = Connection(port)
    try:
        return await connection.ask(request)
    finally:
        await connection.close()


def _resident(child: Child) -> int:
    lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def measure_overload(folder: Path, seconds: float, times: float, image: bytes) -> Overload:
    """The peak with a queue that is never empty and never full, then an open load of `times` the peak."""
    slots, bound = 4, 32
    settings = {
        "ERASE_INTERACTIVE_SLOTS": str(slots),
        "ERASE_MAX_OPEN_JOBS": str(bound),
        "BENCH_ENGINE_S": str(OVERLOAD_ENGINE_S),
    }
    request = multipart_request("/v1/ask", image, "what is page ?")
    with stack(folder / "overload", settings) as (port, _, client):
        asyncio.run(closed_load(port, request, bound // 2, 2.0))
        progress("overload: the peak")
        peak = _rate(asyncio.run(closed_load(port, request, bound // 2, seconds / 3)), seconds / 3)
        progress(f"overload: {times:g} times the peak of {peak:.0f} requests/s, for {seconds:g} s")
        replies, unsent = asyncio.run(open_load(port, request, times * peak, seconds))
        if client.zcard(OPEN_KEY) > bound:
            raise BenchmarkError("more jobs are open than the deployment allows")
    refusals = [reply for reply in replies if reply.status in REFUSED]
    if any(not reply.retry_after for reply in refusals):
        raise BenchmarkError("a refusal did not say when to try again")
    others = Counter(str(reply.status) for reply in replies if reply.status != 200 and reply.status not in REFUSED)
    others.update(unsent)
    answered = [reply for reply in replies if reply.status == 200]
    return Overload(
        peak=peak,
        offered=(len(replies) + unsent.total()) / seconds,
        goodput=sum(reply.ended <= seconds for reply in answered) / seconds,
        refused=len(refusals),
        refusal_p50=percentile([reply.seconds for reply in refusals], 50),
        refusal_p99=percentile([reply.seconds for reply in refusals], 99),
        others=dict(others),
    )


@dataclass(frozen=True)
class TimedReply(RawReply):
    """A reply, and when it was there: seconds since the load began."""

    ended: float


async def open_load(port: int, request: bytes, rate: float, seconds: float) -> tuple[list[TimedReply], Counter[str]]:
    """Requests at this rate, sent whether or not earlier ones were answered; and how many have no reply, by reason."""
    idle: list[Connection] = []
    replies: list[TimedReply] = []
    unsent = Counter({"not sent in time": 0, "connection failed": 0})
    tasks: set[asyncio.Task[None]] = set()
    started = time.perf_counter()

    async def one() -> None:
        connection = idle.pop() if idle else Connection(port)
        try:
            reply = await connection.ask(request)
        except (OSError, EOFError):
            unsent["connection failed"] += 1
            return
        replies.append(TimedReply(**vars(reply), ended=time.perf_counter() - started))
        idle.append(connection)

    sent = 0
    while (now := time.perf_counter() - started) < seconds:
        due = int(now * rate) - sent
        for _ in range(due):
            sent += 1
            if len(tasks) >= 1000:  # the client's own bound: more would measure the client
                unsent["not sent in time"] += 1
                continue
            task = asyncio.create_task(one())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.sleep(0.002)
    await asyncio.gather(*tasks)
    for connection in idle:
        await connection.close()
    if len(replies) + unsent.total() != sent:
        raise BenchmarkError(
            f"of {sent} requests {len(replies)} have a reply and {unsent.total()} are known to have none"
        )
    return replies, unsent


def run(options: argparse.Namespace) -> None:
    """Measure what was asked for, and print it."""
    machine = this_machine()
    print(machine)
    results: dict[str, object] = {}
    image = picture(options.image_bytes)
    with tempfile.TemporaryDirectory(prefix="erase-front-") as name:
        folder = Path(name)
        if "throughput" in options.only:
            sides = measure_throughput(folder, options.repetitions, options.seconds, options.concurrency, image)
            ratio = interval([ours / bare for ours, bare in zip(sides.ours, sides.bare, strict=True)])
            results["throughput"] = {**asdict(sides), "ratio": ratio}
            rows = [
                ["ours", f"{percentile(sides.ours, 50):.0f}", show_interval(ratio), *_alone(sides.alone_s["ours"])],
                ["bare FastAPI + Redis", f"{percentile(sides.bare, 50):.0f}", "1", *_alone(sides.alone_s["bare"])],
            ]
            print(f"\n{options.concurrency} requests at a time, images of {len(image) / 1000:.0f} kB")
            print(table(["side", "requests/s", "of bare (95%)", "alone p50 ms", "p95 ms"], rows))
        if "waiters" in options.only:
            request = multipart_request("/v1/ask", image, "what is page ?")
            waiters = measure_waiters(folder, options.waiters, request)
            results["waiters"] = asdict(waiters)
            print(
                f"\n{waiters.waiting} waiting requests on one service process: connections to Redis "
                f"{waiters.connections_before} -> {waiters.connections}, memory {waiters.memory_before / 2**20:.0f} -> "
                f"{waiters.memory / 2**20:.0f} MiB; {waiters.answered} answered"
            )
        if "overload" in options.only:
            overload = measure_overload(folder, options.overload_seconds, options.times, image)
            results["overload"] = {**asdict(overload), "share": overload.share}
            row = [
                f"{overload.peak:.0f}",
                f"{overload.offered:.0f}",
                f"{overload.goodput:.0f} ({overload.share:.0%})",
                str(overload.refused),
                f"{1000 * overload.refusal_p50:.0f}",
                f"{1000 * overload.refusal_p99:.0f}",
            ]
            header = ["peak/s", "offered/s", "goodput/s", "refused", "refusal p50 ms", "p99 ms"]
            print(f"\noverload, an engine of {1000 * OVERLOAD_ENGINE_S:.0f} ms per request; others: {overload.others}")
            print(table(header, [row]))
    write_json(options.json, machine, options, results)


def _alone(seconds: list[float]) -> list[str]:
    return [f"{1000 * percentile(seconds, percent):.1f}" for percent in (50, 95)]


def main(arguments: list[str] | None = None) -> int:
    """Entry of `python -m bench.front`."""
    parser = argparse.ArgumentParser(prog="python -m bench.front", description=(__doc__ or "").split("\n")[0])
    parts = ["throughput", "waiters", "overload"]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--repetitions", type=positive, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each repetition of the throughput")
    parser.add_argument("--concurrency", type=positive, default=16)
    parser.add_argument("--image-bytes", type=positive, default=100_000)
    parser.add_argument("--waiters", type=positive, default=5000)
    parser.add_argument("--times", type=float, default=10.0, help="of the peak that the overload offers")
    parser.add_argument("--overload-seconds", type=float, default=30.0)
    parser.add_argument("--json", type=output_file)
    return run_main(run, parser.parse_args(arguments), httpx.HTTPError)


if __name__ == "__main__":
    sys.exit(main())
