"""Where the time until the first token goes, pruned and unpruned, as images, prompts and images per prompt grow."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any
from unittest.mock import patch

import torch

from bench.engine import QUESTION, load_bench_policy, model_arguments
from bench.models import CELL, endless_model, parameters
from bench.pages import page
from bench.report import (
    above_zero,
    by_turns,
    counts,
    fraction,
    output_file,
    percentile,
    positive,
    progress,
    run_main,
    table,
    this_machine,
    write_json,
)
from bench.sides import lent_threads
from erase import EraseError
from erase.cutting import cut_before_layers, cut_prompt
from erase.engine import Engine, EngineLimits, SamplingParams, Sequence
from erase.methods import method_for
from erase.methods.base import Method
from erase.models.loading import LoadedModel
from erase.models.prompt import PreparedPrompt, prepare_images, prepare_prompt


@dataclass(frozen=True)
class Point:
    """What is asked at once: prompts, each with so many images of so many megapixels."""

    megapixels: float
    prompts: int
    images: int

    def __str__(self) -> str:
        return f"{self.prompts} x {self.images} x {self.megapixels:g} MP"


@dataclass(frozen=True)
class Row:
    """Medians of one side at one point, milliseconds. `first` is the mean over the point's prompts."""

    point: str
    side: str
    vision_tokens: int
    kept: float
    first: float
    stage1: float
    encode: float
    prefill: float
    stage2: float
    pruning_share: float
    """Stage 1 and stage 2 as a share of the time until the first token."""
    first_over_unpruned: float


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table, write the JSON."""
    return run_main(bench, _parser().parse_args(arguments), EraseError)


def bench(options: argparse.Namespace) -> None:
    """One whole run."""
    with lent_threads() as own:
        _bench(options, options.threads or own)


def _bench(options: argparse.Namespace, threads: int) -> None:
    loaded = endless_model(options.model, options.device, options.dtype)
    machine = this_machine(loaded.device, threads)
    policy = load_bench_policy(options.policy, loaded).with_retention(options.retention)
    methods = {"unpruned": method_for(None), f"pruned {options.retention:g}": method_for(policy)}
    points = [Point(size, 1, 1) for size in options.megapixels]
    points += [Point(options.megapixels[0], count, 1) for count in options.prompts]
    points += [Point(options.megapixels[0], 1, count) for count in options.images]
    points = list(dict.fromkeys(points))
    rows: list[Row] = []
    limits = EngineLimits(
        max_running=max(point.prompts for point in points), feature_cache_bytes=0, cpu_threads=threads
    )
    with Engine(loaded, limits) as engine:
        for number, point in enumerate(points, 1):
            progress(f"{number} of {len(points)}: {point}")
            rows += _measure(engine, loaded, methods, point, options.repetitions)
    print(f"{machine}\nmodel     {loaded.name}, {parameters(loaded) / 1e6:.1f} M parameters, {loaded.dtype}")
    print(f"load      one output token, {options.repetitions} repetitions, medians in ms\n\n{_table(rows)}")
    write_json(options.json, machine, options, {"benchmark": "growth", "rows": [asdict(row) for row in rows]})


def _measure(
    engine: Engine, loaded: LoadedModel, methods: dict[str, Method], point: Point, repetitions: int
) -> list[Row]:
    prompts = [_prompt(loaded, point, number) for number in range(point.prompts)]
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in methods}
    for repetition in range(repetitions + 1):
        for side, method in by_turns(list(methods.items()), repetition):
            run = _run(engine, loaded, method, prompts)
            if repetition:  # the first warms up
                runs[side].append(run)
    medians = {
        side: {name: percentile([run[name] for run in own], 50) for name in own[0]} for side, own in runs.items()
    }
    base = medians["unpruned"]["first"]
    tokens = sum(image.tokens for image in prompts[0].images)
    return [
        Row(
            point=str(point),
            side=side,
            vision_tokens=tokens,
            pruning_share=(own["stage1"] + own["stage2"]) / own["first"] if side != "unpruned" else 0.0,
            first_over_unpruned=own["first"] / base,
            **own,
        )
        for side, own in medians.items()
    ]


def _run(engine: Engine, loaded: LoadedModel, method: Method, prompts: list[PreparedPrompt]) -> dict[str, float]:
    """Everything of one run in milliseconds, and vision tokens kept, per prompt."""
    stage1, handles = [], []
    with _timed_cuts(loaded.device) as cuts:
        for number, prompt in enumerate(prompts):
            start = time.perf_counter()
            preselection = method.preselect([image.pixels for image in prompt.images])
            stage1.append(time.perf_counter() - start)
            sampling = SamplingParams(max_tokens=1)
            handles.append(engine.submit(Sequence(str(number), prompt, method, preselection, sampling)))
        results = [handle.result() for handle in handles]
    count = len(prompts)
    return {
        "kept": sum(len(result.kept) for result in results) / count,
        "first": 1000 * (sum(stage1) + sum(result.times.first_token for result in results)) / count,
        "stage1": 1000 * sum(stage1) / count,
        "encode": 1000 * sum(result.times.encode for result in results) / count,
        "prefill": 1000 * sum(result.times.prefill for result in results) / count,
        "stage2": 1000 * sum(cuts) / count,
    }


@contextmanager
def _timed_cuts(device: torch.device) -> Iterator[list[float]]:
    """Inside, the seconds of every cut of the engine are noted."""
    seconds: list[float] = []

    def timed(cut: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            _synchronize(device)
            start = time.perf_counter()
            kept = cut(*arguments)
            _synchronize(device)
            seconds.append(time.perf_counter() - start)
            return kept

        return run

    with (
        patch("erase.engine.prefill.cut_prompt", timed(cut_prompt)),
        patch("erase.engine.prefill.cut_before_layers", timed(cut_before_layers)),
    ):
        yield seconds


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _prompt(loaded: LoadedModel, point: Point, number: int) -> PreparedPrompt:
    width = round((point.megapixels * 1e6 * 4 / 3) ** 0.5 / CELL) * CELL
    height = round(point.megapixels * 1e6 / width / CELL) * CELL
    pictures = [page(number * point.images + image, width, height) for image in range(point.images)]
    return prepare_prompt(loaded, QUESTION, prepare_images(loaded, pictures))


def _table(rows: list[Row]) -> str:
    header = ["prompts x images x size", "side", "vision tokens", "kept", "first token", "stage 1", "encode", "prefill"]
    header += ["of it stage 2", "pruning's share", "first token / unpruned"]
    return table(
        header,
        [
            [
                row.point,
                row.side,
                str(row.vision_tokens),
                f"{row.kept:.0f}",
                *(f"{value:.1f}" for value in (row.first, row.stage1, row.encode, row.prefill, row.stage2)),
                f"{row.pruning_share:.1%}",
                f"{row.first_over_unpruned:.2f}",
            ]
            for row in rows
        ],
    )


def _megapixels(text: str) -> list[float]:
    return [above_zero(part) for part in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.growth",
        description="Measure where the time until the first token goes as the input grows, pruned and not, by turns.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    model_arguments(parser)
    parser.add_argument("--retention", type=fraction, default=0.15, help="the policy's dial")
    parser.add_argument("--megapixels", type=_megapixels, default="0.3,1,3,6,12", help="sizes of one image")
    parser.add_argument("--prompts", type=counts, default="1,2,4,8", help="prompts at once, with the first size")
    parser.add_argument("--images", type=counts, default="1,2,4", help="images of one prompt, of the first size")
    parser.add_argument("--repetitions", type=positive, default=5, help="measured runs per side, after one warm-up")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write everything as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
