"""What pruning costs: the tables and the plot in docs/accuracy, from `erase evaluate` on generated test images.

Every table is asked for in parts, a process per core with one thread each, because that answers most per second; on a
GPU one process asks it all. What was answered is kept in the work folder, so that the command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bench import other_renderer
from bench.report import REPOSITORY, BenchmarkError, positive, progress, run_main, this_machine, usable_cores
from erase.bar import progress_bar
from erase.errors import EraseError
from erase.models.loading import DEMO, DEMO_FOLDER, fingerprint
from erase.synthetic.dataset import write_dataset
from erase.synthetic.generate import FAMILIES, METRICS, VERSION

AGAINST = "erase-distinct"
RESULTS = ("results.json", "results.md", "results.png")
# Ours, some of the best other methods and a smaller image: enough to see whether the ranking holds.
_SOME = "erase-1,erase-2,erase-2-exact,erase-distinct,downsample,sparsevlm,visionzip,divprune,vispruner"
_LAST_LINES = 5
_LOOK_S = 0.5


@dataclass(frozen=True)
class Table:
    """A table: `images` per family of so many vision tokens each, what to compare at, and who takes part.

    Tables with images of the same size share the answers of methods whose dial is not turned. `other` draws them with
    `bench.other_renderer`.
    """

    name: str
    tokens: tuple[int, int]
    images: int
    retentions: tuple[float, ...]
    methods: str = "all"
    measures: str = "final,layer_average"
    other: bool = False

    @property
    def size(self) -> str:
        """Names the images' size."""
        return "-".join(str(count) for count in dict.fromkeys(self.tokens))


TABLES = (
    Table("headline", (1000, 1300), 32, (0.15,)),
    Table("retentions", (1000, 1300), 13, (0.5, 0.25, 0.15, 0.1)),
    Table("576-tokens", (576, 576), 13, (0.15,)),
    Table("144-tokens", (144, 144), 13, (0.15,)),
    Table("other-renderer", other_renderer.CELLS, 16, (0.15,), _SOME, "layer_average", other=True),
)
"""The headline has at least 1,000 questions, the others at least 400."""


def make(table: Table, model: str, work: Path, out: Path, parts: int) -> None:
    """Draws a table's images, asks all questions about them, and writes `out`/NAME.json, .md and .png.

    Raises:
        BenchmarkError: a process failed.
    """
    data = _drawn(table, work)
    answers = _answers(table, model, work)
    command = [sys.executable, "-m", "erase", "evaluate", str(data), "--out", str(answers), "--model", model]
    command += ["--retentions", ",".join(f"{value:g}" for value in table.retentions), "--methods", table.methods]
    command += ["--measures", table.measures]
    command += ["--against", AGAINST]
    progress(f"{table.name}: asking in {parts} part{'s' if parts > 1 else ''}")
    if parts > 1:
        _run([[*command, "--part", f"{number}/{parts}"] for number in range(1, parts + 1)], work)
    _run([command], work)
    out.mkdir(parents=True, exist_ok=True)
    for name in RESULTS:
        if (answers / name).exists():
            shutil.copy(answers / name, out / f"{table.name}{Path(name).suffix}")


def _answers(table: Table, model: str, work: Path) -> Path:
    return work / "answers" / f"{table.size}-{_mark(model)}"


def _mark(model: str) -> str:
    """Tells a model's answers from those of another one, or of the same one with other weights."""
    folder = DEMO_FOLDER if model == DEMO else Path(model)
    return fingerprint(folder) if folder.is_dir() else folder.name


def _drawn(table: Table, work: Path) -> Path:
    """The folder of the table's images; an unfinished one is drawn anew."""
    judged = "-".join(sorted(set(METRICS.values())))  # records say how they are judged
    renderer = f"matplotlib-{other_renderer.VERSION}" if table.other else f"v{VERSION}-{judged}"
    data = work / f"{table.images}-of-{table.size}-{renderer}"
    if not data.exists():
        drawing = data.with_name(f"{data.name}-drawing")
        shutil.rmtree(drawing, ignore_errors=True)
        drawn: Iterator[object]
        if table.other:
            drawn, kinds = other_renderer.write(drawing, table.images), len(other_renderer.KINDS)
        else:
            drawn, kinds = write_dataset(drawing, "test", table.images, tokens=table.tokens), len(FAMILIES)
        for _ in progress_bar(drawn, total=table.images * kinds, desc="drawing", unit="image"):
            pass
        drawing.rename(data)
    return data


def _run(commands: Sequence[Sequence[str]], work: Path) -> None:
    """Runs processes side by side, the cores shared out; what the first one says is shown, its progress bar.

    Raises:
        BenchmarkError: one of them failed; the others are ended.
    """
    threads = max(1, usable_cores() // len(commands))
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    logs = [work / f"part-{number}.log" for number in range(2, len(commands) + 1)]
    running = []
    try:
        for number, command in enumerate(commands):
            log = logs[number - 1].open("w") if number else None
            process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL, stderr=log)  # noqa: S603
            running.append(process)
            if log:
                log.close()
        while any(process.poll() is None for process in running):
            _check(running, logs)
            time.sleep(_LOOK_S)
        _check(running, logs)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def _check(running: Sequence[subprocess.Popen[bytes]], logs: Sequence[Path]) -> None:
    for number, process in enumerate(running):
        if process.poll():
            said = logs[number - 1].read_text(encoding="utf-8").splitlines()[-_LAST_LINES:] if number else []
            raise BenchmarkError("\n".join([f"part {number + 1} failed with {process.returncode}", *said]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes the tables that are asked for."""
    names = [table.name for table in TABLES]
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy", description=__doc__)
    parser.add_argument("--tables", default=",".join(names), help="%(default)s")
    parser.add_argument("--model", default="demo", help="demo, a folder or a hub id (%(default)s)")
    parser.add_argument("--work", type=Path, default=Path(".erase/accuracy"), help="images, answers (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/accuracy"), help="folder of the tables (%(default)s)")
    parser.add_argument("--restart", action="store_true", help="forget the answers of an earlier run")
    parser.add_argument("--parts", type=positive, default=1 if torch.cuda.is_available() else usable_cores())
    options = parser.parse_args(arguments)
    unknown = set(options.tables.split(",")) - set(names)
    if unknown:
        parser.error(f"--tables: there is no {', '.join(sorted(unknown))}; known: {', '.join(names)}")

    def run(options: argparse.Namespace) -> None:
        progress(str(this_machine()))
        work = options.work.resolve()
        work.mkdir(parents=True, exist_ok=True)
        model = str(Path(options.model).resolve()) if Path(options.model).is_dir() else options.model
        wanted = [table for table in TABLES if table.name in options.tables.split(",")]
        if options.restart:
            for table in wanted:
                shutil.rmtree(_answers(table, model, work), ignore_errors=True)
        for table in wanted:
            make(table, model, work, options.out, options.parts)
            print((options.out / f"{table.name}.md").read_text(encoding="utf-8"))

    return run_main(run, options, EraseError)


if __name__ == "__main__":
    sys.exit(main())
