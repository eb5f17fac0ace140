"""Named collections of benchmark tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from erase.errors import InputError
from erase.metrics import Metric


@dataclass(frozen=True)
class Suite:
    """A model and the tables that it is asked about: file names without `.tsv`, and how right an answer is.

    `ending` follows every question without choices, to ask for a short answer.
    """

    model: str
    tables: Mapping[str, Metric]
    ending: str


SUITES: Mapping[str, Suite] = {
    # The text-rich benchmarks that ERASE's paper is about, under the names that VLMEvalKit gives their files.
    "paper": Suite(
        model="Qwen/Qwen2.5-VL-7B-Instruct",
        tables={
            "DocVQA_VAL": "anls",
            "InfoVQA_VAL": "anls",
            "ChartQA_TEST": "relaxed",
            "TextVQA_VAL": "vqa",
            "OCRBench": "contains",
        },
        ending="Answer the question using a single word or phrase.",
    )
}


def tables_of(suite: str, folder: Path) -> dict[Path, Metric]:
    """Files of a suite in a folder.

    Raises:
        InputError: some are missing; the message names them.
    """
    files = {folder / f"{name}.tsv": metric for name, metric in SUITES[suite].tables.items()}
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise InputError(f"{folder} lacks {', '.join(missing)} of the suite {suite!r}")
    return files
