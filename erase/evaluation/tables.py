"""Benchmarks as tables: one TSV file with an image in base64 in every line, as VLMEvalKit distributes them."""

from __future__ import annotations

import ast
import base64
import binascii
import csv
import io
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from erase.errors import InputError
from erase.metrics import Metric
from erase.records import Record

_CHOICES = "ABCDEFGH"
_SHORTEST_IMAGE = 64
_ANSWER_BY_LETTER = "Answer with the option's letter from the given choices directly."


def load_table(file: Path, images: Path, metric: Metric = "exact") -> tuple[Record, ...]:
    """Records of a TSV file; its images are written into the folder `images` once, and found there again.

    Columns: `index`, `image` (base64, or the index of the line whose image is meant), `question`, `answer` (text, or a
    list of texts as in Python or JSON), perhaps `A`, `B`, ... (choices; the answer is a letter) and `category`.

    Raises:
        InputError: it cannot be read, or something is wrong in it; the message names file and line.
    """
    csv.field_size_limit(sys.maxsize)
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            records = tuple(_records(csv.DictReader(lines, delimiter="\t"), file, images, metric))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read the table {file}: {error}") from error
    if not records:
        raise InputError(f"{file} holds no lines; expected columns index, image, question and answer")
    return records


def _records(lines: csv.DictReader[str], file: Path, images: Path, metric: Metric) -> Iterator[Record]:
    missing = {"index", "image", "question", "answer"} - set(lines.fieldnames or ())
    if missing:
        raise InputError(f"{file} has no column {', '.join(sorted(missing))}")
    images.mkdir(parents=True, exist_ok=True)
    paths: dict[str, Path] = {}
    for line in lines:
        where = f"{file}, line {lines.line_num}"
        index = line["index"]
        paths[index] = _image(line["image"], index, paths, images, where)
        choices = {letter: line[letter] for letter in _CHOICES if line.get(letter)}
        question = line["question"]
        if choices:
            options = "\n".join(f"{letter}. {text}" for letter, text in choices.items())
            question = f"{question}\n{options}\n{_ANSWER_BY_LETTER}"
        answers = _answers(line["answer"])
        if not question.strip() or not answers:
            raise InputError(f"{where}: question and answer must not be empty")
        yield Record(index, (paths[index],), question, answers, metric, line.get("category") or "")


def _image(data: str, index: str, known: Mapping[str, Path], folder: Path, where: str) -> Path:
    if len(data) < _SHORTEST_IMAGE and data in known:
        return known[data]
    safe = "".join(character if character.isalnum() or character in "-_" else "_" for character in index)
    path = folder / f"{safe}.png"
    if path.is_file():
        return path
    try:
        image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
        image.load()
    except (binascii.Error, UnidentifiedImageError, OSError) as error:
        raise InputError(
            f"{where}: the image is neither base64 of an image nor the index of an earlier line"
        ) from error
    part = path.with_suffix(".part")
    image.convert("RGB").save(part, format="PNG")
    part.replace(path)
    return path


def _answers(text: str) -> tuple[str, ...]:
    if text.startswith("[") and text.endswith("]"):
        try:
            values = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            values = text
        if isinstance(values, list):
            return tuple(str(value) for value in values if str(value).strip())
    return (text,) if text.strip() else ()
