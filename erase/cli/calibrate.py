"""`erase calibrate`: find the complexity bins of a model on questions with known answers."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erase.cli.common import add_command, add_model_options, load, percent, print_json, table

if TYPE_CHECKING:
    from tqdm import tqdm

    from erase.calibration import Calibration, Step

PHASES = {"unpruned": "asking without pruning", "search": "searching", "check": "checking the policy"}


def add_to(commands: Any) -> None:
    """Adds the command to the parser's."""
    parser = add_command(
        commands,
        run,
        help="find a model's pruning policy on questions with known answers",
        example="erase calibrate erase/demo/samples --out policy.json --iterations 30",
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder with images and records.jsonl")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="policy file to write")
    add_model_options(parser)
    number = "(default: %(default)s)"
    parser.add_argument("--iterations", type=int, default=100, metavar="N", help=f"points to try {number}")
    parser.add_argument("--initial", type=int, default=20, metavar="N", help=f"random ones among them {number}")
    parser.add_argument("--bins", type=int, default=4, metavar="N", help=f"complexity bins {number}")
    parser.add_argument("--weight", type=float, default=0.65, metavar="A", help=f"of accuracy, 0 to 1 {number}")
    parser.add_argument(
        "--final-retention", type=float, default=0.25, metavar="R", help=f"of the policy written {number}"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="take only the first N records")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help=f"fixes every draw {number}")
    parser.add_argument("--restart", action="store_true", help="forget the progress of an earlier run")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")


def run(options: argparse.Namespace) -> None:
    """Writes the policy and prints how it did; bars go to standard error."""
    from erase.calibration import Search, calibrate
    from erase.errors import InputError
    from erase.records import load_records

    search = Search(options.iterations, options.initial, options.bins, options.weight, options.seed)
    if options.limit is not None and options.limit < 1:
        raise InputError(f"--limit must be at least 1, got {options.limit}")
    records = load_records(options.folder)[: options.limit]
    loaded = load(options)
    with _bars() as progress:
        found = calibrate(
            loaded,
            records,
            options.out,
            search,
            final_retention=options.final_retention,
            restart=options.restart,
            progress=progress,
        )
    if options.json:
        print_json(asdict(found))
    else:
        print(table(_rows(found, options.out)))


def _rows(found: Calibration, out: Path) -> dict[str, str]:
    rows = {
        "questions": f"{found.answered} of {found.records} answered right without pruning; the rest is about these",
        "objective": f"{found.objective:.2f}, at point {found.iteration}",
        "stage 1 alone": f"{percent(found.accuracy)} right, keeps {percent(found.mean_retention)} of the vision tokens",
    }
    bounds = [*(f"complexity above {threshold:.2f}" for threshold in found.policy.thresholds), "all others"]
    bins = zip(bounds, found.policy.stage1_retention, found.shares, strict=True)
    for number, (bound, retention, share) in enumerate(bins, 1):
        rows[f"bin {number}"] = f"{bound}: keeps {percent(retention)}; {percent(share)} of the images"
    final = f"{percent(found.final_accuracy)} right with final retention {found.policy.final_retention:g}"
    return rows | {"both stages": final, "written to": str(out)}


@contextmanager
def _bars() -> Iterator[Callable[[Step], None]]:
    """One bar per phase."""
    from erase.bar import progress_bar

    bars: dict[str, tqdm[Any]] = {}

    def show(step: Step) -> None:
        bar = bars.get(step.phase)
        if bar is None:
            for finished in bars.values():
                finished.close()
            bar = bars[step.phase] = progress_bar(total=step.total, initial=step.done, desc=PHASES[step.phase])
        bar.update(step.done - bar.n)
        if step.best is not None:
            bar.set_postfix_str(f"best objective {step.best:.2f}", refresh=False)

    try:
        yield show
    finally:
        for bar in bars.values():
            bar.close()
