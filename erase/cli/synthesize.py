"""`erase synthesize`: question-answer images from a seed, to calibrate and evaluate on."""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from erase.cli.common import add_command, table

if TYPE_CHECKING:
    from typing import Any

    from erase.synthetic import Sample

_ON_A_SHEET = 24


def add_to(commands: Any) -> None:
    """Adds the command to the parser's."""
    parser = add_command(
        commands,
        run,
        help="write generated images with questions, answers and evidence",
        example="erase synthesize validation --split validation --images 50",
    )
    number = "(default: %(default)s)"
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder to make; it must be new or empty")
    parser.add_argument("--split", default="validation", help=f"train, validation or test {number}")
    parser.add_argument("--images", type=int, default=100, metavar="N", help=f"images per family {number}")
    parser.add_argument("--first", type=int, default=0, metavar="N", help=f"number of the first one {number}")
    parser.add_argument("--families", metavar="A,B", help="only these (default: all six)")
    parser.add_argument(
        "--tokens", type=int, nargs=2, default=(64, 2304), metavar=("LEAST", "MOST"), help="vision tokens of an image"
    )
    parser.add_argument("--sheets", action="store_true", help="add a contact sheet per family")


def run(options: argparse.Namespace) -> None:
    """Writes the folder and prints what is in it; the bar goes to standard error."""
    from erase.bar import progress_bar
    from erase.synthetic import FAMILIES
    from erase.synthetic.dataset import write_dataset

    families = options.families.split(",") if options.families else list(FAMILIES)
    samples = write_dataset(
        options.folder,
        options.split,
        options.images,
        families=families,
        tokens=tuple(options.tokens),
        first=options.first,
    )
    total = len(families) * max(0, options.images)
    questions: dict[str, int] = defaultdict(int)
    shown: dict[str, list[Sample]] = defaultdict(list)
    for sample in progress_bar(samples, total=total, desc="drawing", unit="image"):
        questions[sample.family] += len(sample.questions)
        if options.sheets and len(shown[sample.family]) < _ON_A_SHEET:
            shown[sample.family].append(sample)
    for family, many in shown.items():
        _write_sheet(options.folder, family, many)
    rows = {family: f"{options.images} images, {count} questions" for family, count in questions.items()}
    print(table(rows | {"written to": str(options.folder)}))


def _write_sheet(folder: Path, family: str, samples: list[Sample]) -> None:
    from erase.synthetic.sheet import contact_sheet

    contact_sheet(samples).save(folder / f"sheet-{family}.png")
