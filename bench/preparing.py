"""What preparing images costs the engine that decodes beside it: in threads, as the worker does it, and in processes.

Both take the same processor time away; threads also hold Python's global lock while they run Python code.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image

from bench.engine import QUESTION, load_bench_policy, model_arguments
from bench.models import endless_model, parameters
from bench.pages import page
from bench.report import (
    BenchmarkError,
    above_zero,
    by_turns,
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
from bench.sides import EngineSide, Run, lent_threads, measured
from erase import EraseError
from erase.engine import Engine, EngineLimits
from erase.methods import method_for
from erase.methods.base import Method
from erase.models.loading import LoadedModel
from erase.models.prompt import prepare_images, prepare_prompt

ALONE, THREADS, PROCESSES = "alone", "beside threads", "beside processes"
_START_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Row:
    """Figures of one side. `slowdown` is over decoding alone."""

    side: str
    tpot_ms: float
    slowdown: dict[str, float]
    images_per_s: float


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table, write the JSON."""
    return run_main(bench, _parser().parse_args(arguments), EraseError)


def bench(options: argparse.Namespace) -> None:
    """One whole run."""
    with lent_threads():
        _bench(options, options.threads or 1)  # the rest of the processor is for preparing


def _bench(options: argparse.Namespace, threads: int) -> None:
    loaded = endless_model(options.model, options.device, options.dtype)
    machine = this_machine(loaded.device, threads)
    method = method_for(load_bench_policy(options.policy, loaded).with_retention(options.retention))
    images = prepare_images(loaded, [_page(0, options.megapixels)])
    prompts = [prepare_prompt(loaded, QUESTION, images)] * options.running
    runs: dict[str, list[tuple[Run, float]]] = {ALONE: [], THREADS: [], PROCESSES: []}
    with Engine(loaded, EngineLimits(max_running=options.running, cpu_threads=threads)) as engine:
        side = EngineSide("pruned", lambda: nullcontext(engine), loaded, method, prunes=True)
        measured(side, prompts, 2, loaded.device)  # the images' features are known from here on
        for repetition in range(options.repetitions):
            for name in by_turns(list(runs), repetition):
                with _BESIDE[name](loaded, method, options) as count:
                    before, start = count(), time.perf_counter()
                    run = measured(side, prompts, options.output_tokens, loaded.device)
                    rate = (count() - before) / (time.perf_counter() - start)
                progress(f"{repetition + 1} of {options.repetitions}, {name}: {_tpot(run):.2f} ms per token")
                runs[name].append((run, rate))
    rows = _rows(runs)
    print(f"{machine}\nmodel     {loaded.name}, {parameters(loaded) / 1e6:.1f} M parameters, {loaded.dtype}")
    print(
        f"load      {options.running} sequences decode {options.output_tokens} tokens; beside them {options.beside} "
        f"prepare images of {options.megapixels:g} megapixels\n\n{_table(rows)}"
    )
    write_json(options.json, machine, options, {"benchmark": "preparing", "rows": [asdict(row) for row in rows]})


@contextmanager
def _alone(loaded: LoadedModel, method: Method, options: argparse.Namespace) -> Iterator[Callable[[], int]]:
    yield lambda: 0


@contextmanager
def _threads(loaded: LoadedModel, method: Method, options: argparse.Namespace) -> Iterator[Callable[[], int]]:
    stop = threading.Event()
    prepared = [0] * options.beside

    images = [_page(number, options.megapixels) for number in range(options.beside)]

    def prepare(number: int) -> None:
        image = images[number]
        while not stop.is_set():
            _prepare(loaded, method, image)
            prepared[number] += 1

    threads = [threading.Thread(target=prepare, args=(number,)) for number in range(options.beside)]
    for thread in threads:
        thread.start()
    try:
        while not all(prepared) and any(thread.is_alive() for thread in threads):
            time.sleep(0.01)
        yield lambda: sum(prepared)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@contextmanager
def _processes(loaded: LoadedModel, method: Method, options: argparse.Namespace) -> Iterator[Callable[[], int]]:
    context = multiprocessing.get_context("spawn")
    prepared = [context.RawValue("q", 0) for _ in range(options.beside)]
    arguments = (options.model, options.policy, options.retention, options.megapixels)
    processes = [context.Process(target=_prepare_always, args=(*arguments, count), daemon=True) for count in prepared]
    for process in processes:
        process.start()
    try:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while any(count.value == 0 for count in prepared):
            if time.monotonic() > deadline or not all(process.is_alive() for process in processes):
                raise BenchmarkError("a process that prepares images did not start")
            time.sleep(0.05)
        yield lambda: sum(count.value for count in prepared)
    finally:
        for process in processes:
            process.terminate()
            process.join()


_BESIDE = {ALONE: _alone, THREADS: _threads, PROCESSES: _processes}


def _prepare_always(model: str, policy: str, retention: float, megapixels: float, prepared: Any) -> None:
    torch.set_num_threads(1)
    loaded = endless_model(model, "cpu", "float32")
    method = method_for(load_bench_policy(policy, loaded).with_retention(retention))
    image = _page(0, megapixels)
    while True:
        _prepare(loaded, method, image)
        prepared.value += 1


def _page(number: int, megapixels: float) -> Image.Image:
    side = round((megapixels * 1e6) ** 0.5)
    return page(number, side, side)


def _prepare(loaded: LoadedModel, method: Method, image: Image.Image) -> None:
    """What a worker's thread does with a decoded image before it submits the sequence."""
    images = prepare_images(loaded, [image])
    prepare_prompt(loaded, QUESTION, images)
    method.preselect([one.pixels for one in images])


def _tpot(run: Run) -> float:
    """Milliseconds per token, median over the sequences."""
    return percentile([answer.per_token * 1000 for answer in run.answers if answer.per_token is not None], 50)


def _rows(runs: dict[str, list[tuple[Run, float]]]) -> list[Row]:
    base = [_tpot(run) for run, _ in runs[ALONE]]
    rows = []
    for name, own in runs.items():
        tpots = [_tpot(run) for run, _ in own]
        slowdown = interval([mine / alone for mine, alone in zip(tpots, base, strict=True)])
        rows.append(Row(name, percentile(tpots, 50), slowdown, percentile([rate for _, rate in own], 50)))
    return rows


def _table(rows: list[Row]) -> str:
    header = ["decoding", "TPOT ms", "over alone (95%)", "images/s"]
    lines = [[row.side, f"{row.tpot_ms:.2f}", show_interval(row.slowdown), f"{row.images_per_s:.1f}"] for row in rows]
    return table(header, lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.preparing",
        description="Measure what preparing images in threads or processes costs the engine that decodes beside them.",
        epilog="bench/README.md says what the columns mean. Progress goes to stderr, the table to stdout.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    model_arguments(parser)
    parser.add_argument("--retention", type=fraction, default=0.25, help="the policy's dial")
    parser.add_argument("--megapixels", type=above_zero, default=1.3, help="of an image before it is resized")
    parser.add_argument("--running", type=positive, default=4, help="sequences that decode together")
    parser.add_argument("--beside", type=positive, default=1, help="threads or processes that prepare images")
    parser.add_argument("--output-tokens", type=positive, default=200, help="length of every answer")
    parser.add_argument("--repetitions", type=positive, default=5, help="measured runs per side, after one warm-up")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write everything as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
