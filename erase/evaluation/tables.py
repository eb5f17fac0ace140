"""Benchmarks as tables: one TSV file with an image in base64 in every line, as VLMEvalKit distributes them."""

from __future__ import annotations

import ast
import base64
import csv
import hashlib
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from PIL import Image

from erase.errors import InputError
from erase.metrics import Metric
from erase.pictures import upright_rgb
from erase.records import Record

_CHOICES = "ABCDEFGH"
_WRITTEN = 2
"""How images are written: those that were written otherwise are not taken for these."""
_ANSWER_BY_LETTER = "Answer with the option's letter from the given choices directly."


def load_table(file: Path, images: Path, metric: Metric = "exact", ending: str = "") -> tuple[Record, ...]:
    """Records of a TSV file; its images are written into the folder `images` once, and found there again.

    `ending` is added to every question that has no choices, to ask for a short answer.

    Columns: `index`, `image` (base64, or the index of the line whose image is meant), `question`, `answer` (text, or a
    list of texts as in Python or JSON), perhaps `A`, `B`, ... (choices; the answer is a letter) and `category`.

    Raises:
        InputError: it cannot be read, or something is wrong in it; the message names file and line.
    """
    csv.field_size_limit(sys.maxsize)
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            records = tuple(_records(csv.DictReader(lines, delimiter="\t"), file, images, metric, ending))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read the table {file}: {error}") from error
    if not records:
        raise InputError(f"{file} holds no lines; expected columns index, image, question and answer")
    return records


def _records(lines: csv.DictReader[str], file: Path, images: Path, metric: Metric, ending: str) -> Iterator[Record]:
    missing = {"index", "image", "question", "answer"} - set(lines.fieldnames or ())
    if missing:
        raise InputError(f"{file} has no column {', '.join(sorted(missing))}")
    images.mkdir(parents=True, exist_ok=True)
    paths: dict[str, Path] = {}
    for line in lines:
        where = f"{file}, line {lines.line_num}"
        index, data, question, text = (line[name] or "" for name in ("index", "image", "question", "answer"))
        paths[index] = paths[data] if data in paths else _image(data, images, where)
        choices = {letter: line[letter] for letter in _CHOICES if line.get(letter)}
        answers = _answers(text)
        if not question.strip() or not answers:
            raise InputError(f"{where}: question and answer must not be empty")
        if choices:
            options = "\n".join(f"{letter}. {choice}" for letter, choice in choices.items())
            question = f"{question}\n{options}\n{_ANSWER_BY_LETTER}"
            answers = tuple(form for answer in answers for form in _forms(answer, choices))
        elif ending:
            question = f"{question}\n{ending}"
        # A letter stands in nearly any sentence.
        rule: Metric = "exact" if choices and metric in ("contains", "words") else metric
        yield Record(index, (paths[index],), question, answers, rule, line.get("category") or "")


def _forms(letter: str, choices: Mapping[str, str]) -> tuple[str, ...]:
    """How a model may name the choice with that letter."""
    text = choices.get(letter)
    return (letter,) if text is None else (letter, f"{letter}.", f"({letter})", f"{letter}. {text}", text)


def _image(data: str, folder: Path, where: str) -> Path:
    """The file of an image, named by its content: equal images are one file, whatever table they come from."""
    path = folder / f"{hashlib.sha256(data.encode()).hexdigest()[:24]}-{_WRITTEN}.png"
    if path.is_file():
        return path
    try:
        image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
        image.load()
    except (ValueError, OSError, Image.DecompressionBombError) as error:
        raise InputError(f"{where}: the image is neither base64 nor the index of an earlier line") from error
    part = path.with_suffix(f".{os.getpid()}.part")  # several processes may read one table
    upright_rgb(image).save(part, format="PNG")
    part.replace(path)
    return path


def _answers(text: str) -> tuple[str, ...]:
    """The text itself, or the texts of a list of texts."""
    if text.startswith("[") and text.endswith("]"):
        for parse in (json.loads, ast.literal_eval):
            try:
                values = parse(text)
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                continue
            if isinstance(values, list) and values and all(isinstance(value, str) for value in values):
                return tuple(value for value in values if value.strip())
    return (text,) if text.strip() else ()
