"""Speed of the engine, pruned and unpruned, against stock transformers `generate`, side by side in one run."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from bench.flops import Flops, request_flops
from bench.models import endless_model, image_size, parameters
from bench.pages import page
from bench.report import (
    DASH,
    BenchmarkError,
    by_turns,
    counts,
    fractions,
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
from bench.sides import Answered, EngineSide, Run, Side, StockSide, agreement, lent_threads, measured
from erase.engine import Engine, EngineLimits
from erase.errors import EraseError
from erase.methods import method_for
from erase.models.loading import DEMO, LoadedModel
from erase.models.policies import find_policy
from erase.models.prompt import PreparedPrompt, prepare_images, prepare_prompt
from erase.policy import Policy

QUESTION = "what is the total number on page ?"
DEMO_VISION_TOKENS, USUAL_VISION_TOKENS = 169, 1280
TEXT_TOKENS = 256
"""More than the question and the chat template have."""
PREPARED = 5
"""Images to time the processing with."""
NEAR_TIE = 1e-3
"""Logits this close may swap places in float32 when batches add up in another order."""


@dataclass(frozen=True)
class Row:
    """Figures of one side at one concurrency; seconds, tokens, bytes. Speed-ups are over our engine unpruned."""

    concurrency: int
    side: str
    ttft_p50: float
    ttft_p95: float
    tpot_p50: float | None
    requests_per_s: float
    speedup: dict[str, float]
    flops_speedup: float
    ttft_speedup: dict[str, float]
    ttft_flops_speedup: float
    kept: float
    cache_tokens: float
    peak_bytes: int | None


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table, write the JSON. Returns 1 when something failed or an answer was wrong."""
    return run_main(bench, _parser().parse_args(arguments), EraseError)


def bench(options: argparse.Namespace) -> None:
    """One whole run."""
    with lent_threads() as own:
        _bench(options, options.threads or own)


def _bench(options: argparse.Namespace, threads: int) -> None:
    progress(f"loading {options.model}")
    loaded = endless_model(options.model, options.device, options.dtype)
    machine = this_machine(loaded.device, threads)
    vision = options.vision_tokens or (DEMO_VISION_TOKENS if options.model == DEMO else USUAL_VISION_TOKENS)
    policy = load_bench_policy(options.policy, loaded)
    rows: list[Row] = []
    agreed: dict[int, float] = {}
    running = partial(_running, loaded, max(options.concurrency), vision + options.output_tokens)
    sides = _sides(running, loaded, policy, options.retention, threads)
    outside = _outside_of_the_clock(loaded, vision, sides)
    for concurrency in options.concurrency:
        batches = [_prompts(loaded, vision, rep, concurrency) for rep in range(options.repetitions + 1)]
        agreed[concurrency] = _warm_up(sides, batches[0], options.output_tokens, loaded)
        runs: dict[str, list[Run]] = {side.name: [] for side in sides}
        for rep, prompts in enumerate(batches[1:], 1):
            for side in by_turns(sides, rep):
                run = measured(side, prompts, options.output_tokens, loaded.device)
                progress(f"concurrency {concurrency}, {rep} of {options.repetitions}, {side.name}: {run.wall:.2f} s")
                runs[side.name].append(run)
        grids = [image.cell_grid for image in batches[0][0].images]
        rows += _rows(concurrency, runs, loaded, grids, options.output_tokens)
    size = parameters(loaded)
    print(f"{machine}\nmodel     {loaded.name}, {size / 1e6:.1f} M parameters, {loaded.dtype}")
    print(
        f"load      {vision} vision tokens, {options.output_tokens} output tokens, {options.repetitions} repetitions\n"
        f"outside   {outside['prepare_ms']:.1f} ms per request of image processing, on every side alike; "
        f"inside, stage 1 takes {outside['stage1_ms']:.1f} ms"
    )
    print(
        "agreement " + ", ".join(f"{share:.1%} at {at}" for at, share in agreed.items()) + "  (tokens, stock/unpruned)"
    )
    if loaded.device.type != "cuda":
        print("memory    peak is measured on CUDA only")
    print("\n" + _table(rows))
    results = {"benchmark": "engine", "parameters": size, "vision_tokens": vision, "outside": outside}
    results |= {"agreement": agreed, "rows": [asdict(row) for row in rows]}
    write_json(options.json, machine, options, results)


@contextmanager
def _running(loaded: LoadedModel, concurrency: int, tokens: int, threads: int) -> Iterator[Engine]:
    limits = EngineLimits(
        max_running=concurrency,
        # The same for every run, whatever memory the one before has not given back yet.
        cache_tokens=concurrency * (tokens + TEXT_TOKENS),
        # All sides answer about the same images: what one encoded must not help the next.
        feature_cache_bytes=0,
        cpu_threads=threads,
    )
    with Engine(loaded, limits) as engine:
        yield engine


def load_bench_policy(name: str, loaded: LoadedModel) -> Policy:
    """The policy that `--policy` means: auto (the model's default), one of its own, a preset or a file."""
    return find_policy(loaded.default_policy if name == "auto" else name, loaded, also=("auto",))


def _sides(
    running: Callable[[int], AbstractContextManager[Engine]],
    loaded: LoadedModel,
    policy: Policy,
    retentions: list[float],
    threads: int,
) -> list[Side]:
    engine = partial(running, threads)
    pruned = [
        EngineSide(f"pruned {value:g}", engine, loaded, method_for(policy.with_retention(value)), prunes=True)
        for value in retentions
    ]
    unpruned = EngineSide("unpruned", engine, loaded, method_for(None), prunes=False)
    return [unpruned, *pruned, StockSide(loaded, threads)]


def _prompts(loaded: LoadedModel, vision: int, batch: int, concurrency: int) -> list[PreparedPrompt]:
    """Prompts with images that no other batch has, so that no cache of images can answer for the encoder."""
    width, height = image_size(vision)
    prompts = []
    for number in range(batch * concurrency, (batch + 1) * concurrency):
        images = prepare_images(loaded, [page(number, width, height)])
        if images[0].tokens != vision:
            raise BenchmarkError(
                f"the model's image processor makes {images[0].tokens} vision tokens of an image of {width} x {height} "
                f"pixels, not {vision}: choose --vision-tokens within its limits"
            )
        prompts.append(prepare_prompt(loaded, QUESTION, images))
    return prompts


def _outside_of_the_clock(loaded: LoadedModel, vision: int, sides: list[Side]) -> dict[str, float]:
    """Median milliseconds per request: image processing, which no side's clock counts, and stage 1, which counts."""
    pruning = [side for side in sides if isinstance(side, EngineSide) and side.prunes]
    prepare, stage1 = [], []
    for number in range(PREPARED + 1):
        image = page(number, *image_size(vision))
        start = time.perf_counter()
        prompt = prepare_prompt(loaded, QUESTION, prepare_images(loaded, [image]))
        prepare.append((time.perf_counter() - start) * 1000)
        start = time.perf_counter()
        for side in pruning:
            side.preselect(prompt)
        stage1.append((time.perf_counter() - start) * 1000 / len(pruning))
    return {"prepare_ms": percentile(prepare[1:], 50), "stage1_ms": percentile(stage1[1:], 50)}


def _warm_up(sides: list[Side], prompts: list[PreparedPrompt], answer: int, loaded: LoadedModel) -> float:
    """Run every side once; the share of tokens on which unpruned engine and stock `generate` agree."""
    progress(f"warming up {len(sides)} sides at concurrency {len(prompts)}")
    for side in sides:
        measured(side, prompts, answer, loaded.device)
    unpruned, stock = sides[0], sides[-1]
    if not isinstance(unpruned, EngineSide) or not isinstance(stock, StockSide):
        raise TypeError("the first side is the engine unpruned, the last stock generate")
    return agreement(unpruned, stock, prompts, answer, NEAR_TIE if loaded.dtype == torch.float32 else None)


def _rows(
    concurrency: int, runs: dict[str, list[Run]], loaded: LoadedModel, grids: list[tuple[int, int]], answer: int
) -> list[Row]:
    def flops(one: list[Run]) -> Flops:
        every = [
            request_flops(loaded.model.config, grids, item.rows, item.cache, answer)
            for run in one
            for item in run.answers
        ]
        count = len(every)
        return Flops(
            *(sum(getattr(each, phase) for each in every) / count for phase in ("encode", "prefill", "decode"))
        )

    def mean_ttft(run: Run) -> float:
        return sum(item.first for item in run.answers) / len(run.answers)

    base = runs["unpruned"]
    base_flops = flops(base)
    rows = []
    for name, own in runs.items():
        answers: list[Answered] = [item for run in own for item in run.answers]
        firsts = [item.first for item in answers]
        per_token = [item.per_token for item in answers if item.per_token is not None]
        own_flops = flops(own)
        peaks = [run.peak_bytes for run in own if run.peak_bytes is not None]
        rows.append(
            Row(
                concurrency=concurrency,
                side=name,
                ttft_p50=percentile(firsts, 50),
                ttft_p95=percentile(firsts, 95),
                tpot_p50=percentile(per_token, 50) if per_token else None,
                requests_per_s=len(answers) / sum(run.wall for run in own),
                speedup=interval([run.rate / other.rate for run, other in zip(own, base, strict=True)]),
                flops_speedup=base_flops.total / own_flops.total,
                ttft_speedup=interval(
                    [mean_ttft(other) / mean_ttft(run) for run, other in zip(own, base, strict=True)]
                ),
                ttft_flops_speedup=base_flops.first_token / own_flops.first_token,
                kept=sum(item.kept for item in answers) / len(answers),
                cache_tokens=sum(sum(item.cache) / len(item.cache) for item in answers) / len(answers),
                peak_bytes=max(peaks) if peaks else None,
            )
        )
    return rows


def _table(rows: list[Row]) -> str:
    header = [
        "conc.",
        "side",
        "TTFT p50 ms",
        "p95 ms",
        "TPOT p50 ms",
        "requests/s",
        "speed-up (95%)",
        "FLOPs allow",
    ]
    header += ["TTFT speed-up (95%)", "FLOPs allow", "kept", "cache tokens", "peak MiB"]

    def cells(row: Row) -> list[Any]:
        return [
            str(row.concurrency),
            row.side,
            f"{row.ttft_p50 * 1000:.1f}",
            f"{row.ttft_p95 * 1000:.1f}",
            DASH if row.tpot_p50 is None else f"{row.tpot_p50 * 1000:.2f}",
            f"{row.requests_per_s:.3g}",
            show_interval(row.speedup),
            f"{row.flops_speedup:.2f}",
            show_interval(row.ttft_speedup),
            f"{row.ttft_flops_speedup:.2f}",
            f"{row.kept:.0f}",
            f"{row.cache_tokens:.0f}",
            DASH if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.0f}",
        ]

    return table(header, [cells(row) for row in rows])


def model_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of every benchmark that runs the engine in its own process."""
    parser.add_argument(
        "--model",
        default=DEMO,
        help="demo; small (random weights, 0.3 B parameters); 7b-shape (random weights in Qwen2.5-VL-7B's shape, for a "
        "GPU); or a model's FOLDER",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--dtype", default="auto", help="auto (bfloat16 on CUDA, float32 on CPU), float32, bfloat16, float16"
    )
    parser.add_argument(
        "--policy", default="auto", help="auto (the model's default), one of the model's own, a preset, or a file"
    )
    parser.add_argument("--threads", type=positive, help="torch threads on CPU; default: PyTorch's choice")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.engine",
        description="Measure the engine, pruned and unpruned, against stock transformers generate, by turns.",
        epilog="bench/README.md says what the columns mean. Progress goes to stderr, the table to stdout.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    model_arguments(parser)
    parser.add_argument(
        "--retention", type=fractions, default="0.15,0.25,0.5", help="values of the policy's dial to compare"
    )
    parser.add_argument(
        "--vision-tokens",
        type=positive,
        help=f"per request; default {DEMO_VISION_TOKENS} for demo, else {USUAL_VISION_TOKENS}",
    )
    parser.add_argument("--output-tokens", type=positive, default=16, help="length of every answer")
    parser.add_argument("--concurrency", type=counts, default="1,2,4,8", help="requests that start together; a sweep")
    parser.add_argument("--repetitions", type=positive, default=5, help="measured runs per side, after one warm-up")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write everything as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
