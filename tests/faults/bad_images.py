"""Ask about thousands of damaged images: each gets an answer or a clear refusal, and nobody dies or grows.

python -m tests.faults.bad_images --count 10000
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import httpx

from erase.bar import progress_bar
from service.processes import Child
from tests.faults.corpus import mutated
from tests.system.deployment import Deployment, bundled_questions
from tests.system.forked import FastDeployment

REFUSALS = {
    (413, "too-large"),
    (415, "unsupported-image-format"),
    (422, "invalid-image"),
}
SLOWEST_S = 30.0
AT_ONCE = 4


@dataclass
class Report:
    """Answers and refusals by kind, what should not have happened, and memory in bytes at the start and the end."""

    kinds: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    memory: dict[str, list[int]] = field(default_factory=dict)

    @property
    def growth(self) -> dict[str, float]:
        """How much larger each process is at the end."""
        return {name: round(sizes[-1] / sizes[0] - 1, 4) for name, sizes in self.memory.items()}


def resident_bytes(child: Child) -> int:
    """Memory that the process holds."""
    fields = Path(f"/proc/{child.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in fields if line.startswith("VmRSS:"))


def ask_all(stack: Deployment, children: dict[str, Child], count: int, warm_up: int, seed: int = 0) -> Report:
    """Send so many files after a warm-up of others."""
    report = Report()
    files = mutated(warm_up + count, seed)
    limits = httpx.Limits(max_connections=AT_ONCE)
    with httpx.Client(base_url=stack.url, timeout=SLOWEST_S, trust_env=False, limits=limits) as client:
        for part, size in (("warm-up", warm_up), ("images", count)):
            report.kinds.clear()
            with ThreadPoolExecutor(AT_ONCE) as pool:
                replies = pool.map(lambda data: _ask(client, data), islice(files, size))
                for kind in progress_bar(replies, desc=part, total=size):
                    report.kinds[kind] += 1
                    if kind.startswith("wrong"):
                        report.wrong.append(kind)
            for name, child in children.items():
                report.memory.setdefault(name, []).append(resident_bytes(child))
    for name, child in children.items():
        if not child.running:
            report.wrong.append(f"{name} has ended with {child.exit_status}")
    return report


def _ask(client: httpx.Client, data: bytes) -> str:
    try:
        reply = client.post("/v1/ask", files={"image": data}, data={"prompt": "what is it ?", "max_tokens": "1"})
    except httpx.HTTPError as error:
        return f"wrong: {type(error).__name__}"
    if reply.status_code == 200:
        return "answered"
    problem = str(reply.json().get("type", "")).rpartition(":")[2]
    known = (reply.status_code, problem) in REFUSALS
    return f"{problem}" if known else f"wrong: {reply.status_code} {reply.text[:300]}"


def main() -> int:
    """Run it on a stack of its own and print the figures; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.bad_images", description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--warm-up", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        # A cache that fills up is not a leak: a small one is full after the warm-up.
        stack = FastDeployment(Path(folder), ERASE_FEATURE_CACHE_BYTES=str(2**20))
        try:
            children = {"worker": stack.start_worker(), "service": stack.start_service()}
            report = ask_all(stack, children, options.count, options.warm_up, options.seed)
            question = bundled_questions()[0]
            if stack.ask(question).json()["answer"] != question.answer:
                report.wrong.append("a good question is no longer answered")
        finally:
            stack.close()
    figures: dict[str, Any] = {"kinds": dict(report.kinds), "memory": report.memory, "growth": report.growth}
    print(json.dumps({**figures, "wrong": report.wrong[:20]}, indent=2))
    return int(bool(report.wrong))


if __name__ == "__main__":
    sys.exit(main())
