"""What every benchmark needs: the machine it ran on, percentiles, a table, a JSON file, progress on stderr."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import transformers
from scipy import stats

from erase.errors import EngineError

REPOSITORY = Path(__file__).resolve().parent.parent
DASH = "-"

T = TypeVar("T")


class BenchmarkError(Exception):
    """The benchmark cannot run, or an answer was wrong or missing; the message says which and why."""


@dataclass(frozen=True)
class Machine:
    """Where figures come from; a figure without this is worth nothing."""

    processor: str
    cores: int
    threads: int
    gpu: str | None
    python: str
    torch: str
    transformers: str
    commit: str

    def __str__(self) -> str:
        gpu = f", GPU {self.gpu}" if self.gpu else ""
        return (
            f"hardware  {self.processor}, {self.cores} cores, {self.threads} torch threads{gpu}\n"
            f"software  Python {self.python}, torch {self.torch}, transformers {self.transformers}\n"
            f"commit    {self.commit}"
        )


def this_machine(device: torch.device | None = None, threads: int | None = None) -> Machine:
    """The machine as it is now; `device` names the GPU that the benchmark uses, if it uses one.

    `threads` compute; None: those of the calling thread.
    """
    on_gpu = device is not None and device.type == "cuda"
    return Machine(
        processor=_processor(),
        cores=usable_cores(),
        threads=threads or torch.get_num_threads(),
        gpu=torch.cuda.get_device_name(device) if on_gpu else None,
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        commit=_commit(),
    )


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def percentile(values: Sequence[float], percent: float) -> float:
    """Percentile by linear interpolation; NaN of no values, so that a hole is seen."""
    return float(np.percentile(values, percent)) if values else float("nan")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Smallest, median and largest."""
    return {"min": min(values), "median": percentile(values, 50), "max": max(values)}


def show_spread(values: dict[str, float]) -> str:
    """A spread as `median (min to max)`."""
    return f"{values['median']:.2f} ({values['min']:.2f} to {values['max']:.2f})"


def interval(ratios: Sequence[float]) -> dict[str, float]:
    """Geometric mean of ratios and its 95% confidence interval (Student's t over their logarithms)."""
    logs = np.log(ratios)
    mean = float(logs.mean())
    half = float("nan")
    if len(logs) > 1:
        half = float(stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs)))
    return {"low": float(np.exp(mean - half)), "mean": float(np.exp(mean)), "high": float(np.exp(mean + half))}


def show_interval(values: dict[str, float]) -> str:
    """An interval as `mean (low to high)`."""
    return f"{values['mean']:.2f} ({values['low']:.2f} to {values['high']:.2f})"


def by_turns(sides: Sequence[T], repetition: int) -> Sequence[T]:
    """The order of a repetition: every other one backwards, so that nobody always runs after the same neighbour."""
    return sides[::-1] if repetition % 2 else sides


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns also line up in a terminal."""
    widths = [max(len(line[column]) for line in [header, *rows]) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    ruler = "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|"
    return "\n".join([line(header), ruler, *(line(row) for row in rows)])


def write_json(path: Path | None, machine: Machine, settings: argparse.Namespace, results: dict[str, Any]) -> None:
    """Everything of a run in one file, if a file was asked for."""
    if path is None:
        return
    options = {name: str(value) if isinstance(value, Path) else value for name, value in vars(settings).items()}
    document = _without_nan({"machine": asdict(machine), "settings": options, **results})
    try:
        path.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise BenchmarkError(f"cannot write {path}: {error.strerror}") from error
    progress(f"wrote {path}")


def _without_nan(value: Any) -> Any:
    """JSON knows no NaN: what could not be computed, an interval of one value, is null."""
    if isinstance(value, dict):
        return {name: _without_nan(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def progress(text: str) -> None:
    """Tell what happens, on stderr, so that stdout stays the table."""
    print(f"[bench] {text}", file=sys.stderr, flush=True)


def run_main(run: Callable[[argparse.Namespace], None], options: argparse.Namespace, known: type[Exception]) -> int:
    """Run a benchmark; 0 on success, 1 when it failed with a `BenchmarkError` or an error of the kind `known`.

    SIGTERM ends it as Ctrl-C does, with 130, so that no process that it started is left behind.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run(options)
    except (BenchmarkError, known) as error:
        what = error.whole if isinstance(error, EngineError) else error
        print(f"error: {what}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def counts(text: str) -> list[int]:
    """For argparse: positive whole numbers separated by commas."""
    return [positive(part) for part in text.split(",")]


def positive(text: str) -> int:
    """For argparse: a whole number above 0."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def above_zero(text: str) -> float:
    """For argparse: a number above 0."""
    value = _number(text)
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def fraction(text: str) -> float:
    """For argparse: a number above 0 and at most 1."""
    value = _number(text)
    if not 0.0 < value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and at most 1")
    return value


def _number(text: str) -> float:
    """0 where it is none, which no argument allows."""
    try:
        return float(text)
    except ValueError:
        return 0.0


def fractions(text: str) -> list[float]:
    """For argparse: different fractions separated by commas."""
    found = [fraction(part) for part in text.split(",")]
    if len({f"{value:g}" for value in found}) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r} names a fraction twice")
    return found


def output_file(text: str) -> Path:
    """For argparse: a file in a folder that is there, so that nothing is measured for nothing."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is no file in a folder that exists")
    return path


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(REPOSITORY), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603

    try:
        changed = git("status", "--porcelain", "--", "erase", "worker", "service", "bench")
        return git("rev-parse", "--short=12", "HEAD") + (" with uncommitted changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
