"""`erase evaluate`: what pruning costs in accuracy, against other methods at the same budget."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erase.cli.common import UsageError, add_command, add_model_options, load, print_json
from erase.errors import InputError
from erase.metrics import METRICS

if TYPE_CHECKING:
    from erase.evaluation import Contest, Part, Step, Summary
    from erase.models.loading import LoadedModel
    from erase.records import Record

_TURNED_ON = 48
"""Prompts whose images decide the dials of methods that look at images."""


def add_to(commands: Any) -> None:
    """Adds the command to the parser's."""
    parser = add_command(
        commands,
        run,
        help="measure what pruning costs in accuracy, against other methods at the same budget",
        example="erase evaluate erase/demo/samples --out evaluation --methods erase-1,erase-2,fastv --retentions 0.5",
    )
    parser.add_argument("data", metavar="DATA", type=Path, help="folder with records.jsonl, .tsv file, or suite folder")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="answers and results; goes on there")
    add_model_options(parser)
    parser.set_defaults(model=None)  # demo, or the suite's
    number = "(default: %(default)s)"
    parser.add_argument("--methods", default="all", metavar="A,B", help=f"names, presets, policy files {number}")
    parser.add_argument("--retentions", default="0.5,0.25,0.15,0.1", metavar="R,R", help=f"to compare at {number}")
    parser.add_argument("--measures", default="final,layer_average", metavar="M,M", help=f"what is held equal {number}")
    parser.add_argument("--against", metavar="A", help="method to compare the others with (default: the first)")
    parser.add_argument("--metric", choices=METRICS, default="exact", help=f"for a .tsv file {number}")
    parser.add_argument("--suite", choices=("paper",), help="evaluate a suite's .tsv files, in the folder DATA")
    parser.add_argument("--limit", type=int, metavar="N", help="take only the first N records")
    parser.add_argument("--part", metavar="K/N", help="ask only about every N-th image, from the K-th; no results yet")
    parser.add_argument("--restart", action="store_true", help="forget the answers of an earlier run")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")


def run(options: argparse.Namespace) -> None:
    """Writes answers*.jsonl, results.json, results.md and results.png; a bar goes to standard error."""
    from erase.evaluation.suites import SUITES, tables_of

    part = _part(options.part)
    if options.restart and not part.whole:
        raise UsageError("--restart and --part exclude each other; without --part it forgets the answers of all parts")
    names, retentions, measures = _names(options.methods), _numbers(options.retentions), _measures(options.measures)
    if not names:
        raise UsageError(f"--methods {options.methods}: expected names separated by commas")
    options.against = options.against or names[0]
    if options.against not in names:
        raise UsageError(f"--against {options.against}: it is not one of the methods {', '.join(names)}")
    if options.limit is not None and options.limit < 1:
        raise UsageError(f"--limit must be at least 1, got {options.limit}")
    if options.model is None:
        options.model = SUITES[options.suite].model if options.suite else "demo"
    if not options.suite:
        records = _records(options.data, options.out, options.metric)[: options.limit]
        asked = {"": (options.out, records)}
    else:
        tables = tables_of(options.suite, options.data)
        asked = {
            file.stem: (
                options.out / file.stem,
                _records(file, options.out / file.stem, metric, SUITES[options.suite].ending)[: options.limit],
            )
            for file, metric in tables.items()
        }
    loaded = load(options)
    for title, (folder, records) in asked.items():
        contests = _contests(names, measures, retentions, loaded, records)
        summary = _evaluated(options, loaded, records, contests, folder, part)
        if summary is not None:
            _show(options, title, folder, summary)


def _evaluated(
    options: argparse.Namespace,
    loaded: LoadedModel,
    records: tuple[Record, ...],
    contests: list[Contest],
    folder: Path,
    part: Part,
) -> Summary | None:
    """None after a part: the whole is counted by a run without `--part`."""
    from erase.evaluation import evaluate, summarise
    from erase.evaluation.report import write_report
    from erase.evaluation.summary import NONE
    from erase.policy import policy_to_dict

    everyone = [NONE, *(one for contest in contests for one in contest.contestants)]
    with answer_bar() as progress:
        answers = evaluate(loaded, records, everyone, folder, part=part, restart=options.restart, progress=progress)
    if not part.whole:
        return None
    summary = summarise(records, contests, answers, options.against)
    about = {"model": loaded.name, "revision": loaded.revision, "data": options.data.name, "dtype": str(loaded.dtype)}
    policies = {one.key: None if one.policy is None else policy_to_dict(one.policy) for one in everyone}
    write_report(folder, summary, {**about, "policies": policies})
    return summary


def _show(options: argparse.Namespace, title: str, folder: Path, summary: Summary) -> None:
    from erase.evaluation.report import markdown

    if options.json:
        print_json({"table": title, **asdict(summary)})
        return
    if title:
        print(f"## {title}\n")
    print(markdown(summary))
    print(f"written to {folder}: the answers, results.json, results.md, results.png (with matplotlib)")


def _names(text: str) -> list[str]:
    from erase.evaluation.contestants import ERASE
    from erase.policy import BASELINES

    return [*ERASE, *BASELINES] if text == "all" else [name for name in text.split(",") if name]


def _numbers(text: str) -> list[float]:
    try:
        values = [float(value) for value in text.split(",")]
    except ValueError:
        raise UsageError(f"--retentions {text}: expected numbers separated by commas") from None
    if not all(0.0 < value < 1.0 for value in values):
        raise UsageError(f"--retentions {text}: expected numbers above 0 and below 1")
    return values


def _measures(text: str) -> list[Any]:
    from erase.evaluation.contestants import MEASURES

    measures = text.split(",")
    if not set(measures) <= set(MEASURES):
        raise UsageError(f"--measures {text}: expected {' and/or '.join(MEASURES)}, separated by commas")
    return measures


def _part(text: str | None) -> Part:
    from erase.evaluation import Part

    try:
        return Part() if text is None else Part.parse(text)
    except InputError as error:
        raise UsageError(f"--part: {error}") from None


def _records(data: Path, out: Path, metric: Any, ending: str = "") -> tuple[Record, ...]:
    from erase.evaluation import load_table
    from erase.records import load_records

    return load_table(data, out / "images", metric, ending) if data.suffix == ".tsv" else load_records(data)


def _contests(
    names: list[str], measures: list[Any], retentions: list[float], loaded: LoadedModel, records: tuple[Record, ...]
) -> list[Contest]:
    from erase.asking import images_of
    from erase.evaluation import contest

    firsts: dict[tuple[Path, ...], Record] = {}
    for record in records:
        if record.images:
            firsts.setdefault(record.images, record)
    prompts = list(firsts.values())
    count = min(_TURNED_ON, len(prompts))
    spread = [prompts[number * len(prompts) // count] for number in range(count)]
    images = [[image.pixels for image in images_of(loaded, record)] for record in spread]
    return [contest(names, measure, target, loaded, images) for measure in measures for target in retentions]


@contextmanager
def answer_bar() -> Iterator[Callable[[Step], None]]:
    """What shows an evaluation's steps as a bar on standard error."""
    from erase.bar import progress_bar

    with progress_bar(unit="answer", desc="asking") as bar:

        def show(step: Step) -> None:
            bar.total = step.total
            bar.update(step.done - bar.n)

        yield show
