"""Questions about images with known answers, read from a folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erase.errors import InputError
from erase.metrics import METRICS, Metric

PREFERRED = "records.jsonl"
_FARTHEST = 1e9
"""Pixels beyond any picture."""
_GAP = re.compile(r"[\s,]*")


@dataclass(frozen=True)
class Record:
    """One question about one or several images, and the answers that count as right."""

    name: str
    images: tuple[Path, ...]
    question: str
    answers: tuple[str, ...]
    metric: Metric = "exact"
    """How right an answer is."""
    group: str = ""
    """The sort of record, to tell results by."""
    evidence: tuple[tuple[float, float, float, float], ...] = ()
    """Left, top, right and bottom, in pixels of the only image, of what the answer stands on, where that is known."""

    def accepts(self, answer: str) -> bool:
        """Whether an answer is one of those wanted, whatever its case and the white space around it."""
        return _plain(answer) in {_plain(accepted) for accepted in self.answers}


def load_records(folder: str | Path) -> tuple[Record, ...]:
    """Records of a folder's `records.jsonl`, its only `*.jsonl`, or its only `*.json` with a list.

    An entry is an object with `image` (a path inside the folder) or `images` (a list of them), `question`, `answer`
    (text, or a list of texts that all count as right) and perhaps `name`, `metric`, `family` and `evidence` (a list of
    boxes). Instead of question and answer it may hold `turns`, a list of objects with these two: one record each.

    Raises:
        InputError: no such file, or something wrong in it; the message names file and line.
    """
    root = Path(folder)
    file = _file_of(root)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the records in {file}: {error}") from error
    entries = _lines(text, file) if file.suffix == ".jsonl" else _list_items(text, file)
    records = tuple(record for line, entry in entries for record in _Entry(root, file, line, entry).records())
    if not records:
        raise InputError(f"{file} holds no records; expected objects with image, question and answer")
    return records


def _plain(answer: str) -> str:
    return answer.strip().casefold()


def _file_of(root: Path) -> Path:
    if not root.is_dir():
        raise InputError(f"there is no folder {root}; expected one with images and {PREFERRED}")
    if (root / PREFERRED).is_file():
        return root / PREFERRED
    for pattern in ("*.jsonl", "*.json"):
        files = sorted(root.glob(pattern))
        if len(files) == 1:
            return files[0]
        if files:
            names = ", ".join(file.name for file in files)
            raise InputError(f"{root} has several record files ({names}); name the right one {PREFERRED}")
    raise InputError(f"{root} has no records; expected a file {PREFERRED}")


def _lines(text: str, file: Path) -> Iterator[tuple[int, Any]]:
    """Line numbers and values of JSON lines; empty lines are skipped."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{file}, line {number}: not JSON: {error}") from error


def _list_items(text: str, file: Path) -> Iterator[tuple[int, Any]]:
    """Line numbers and values of a JSON list, item by item, since `json.load` would forget the lines."""
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{file}, line {error.lineno}: not JSON: {error}") from error
    except RecursionError as error:
        raise InputError(f"{file}: not JSON: {error}") from error
    if not isinstance(whole, list):
        raise InputError(f"{file}, line 1: expected a list of records, got {type(whole).__name__}")
    decoder = json.JSONDecoder()
    end = text.index("[") + 1
    line = text.count("\n", 0, end) + 1
    for _ in whole:
        start = _GAP.search(text, end).end()  # type: ignore[union-attr]  # it matches anywhere
        line += text.count("\n", end, start)
        value, end = decoder.raw_decode(text, start)
        yield line, value
        line += text.count("\n", start, end)


def _is_box(box: object) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(side, int | float) and not isinstance(side, bool) and abs(side) <= _FARTHEST for side in box)
        and box[0] <= box[2]
        and box[1] <= box[3]
    )


@dataclass(frozen=True)
class _Entry:
    """One entry of a record file, and where it stands."""

    root: Path
    file: Path
    line: int
    data: Any

    def records(self) -> Iterator[Record]:
        if not isinstance(self.data, Mapping):
            raise self.wrong(f"expected an object with image, question and answer, got {type(self.data).__name__}")
        images = self.images()
        name = self.text(self.data, "name") if "name" in self.data else f"{self.file.name}:{self.line}"
        if "turns" not in self.data:
            yield self.record(name, images, self.data)
            return
        turns = self.data["turns"]
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, Mapping) for turn in turns):
            raise self.wrong("turns must be a list of objects with question and answer")
        for number, turn in enumerate(turns, 1):
            yield self.record(f"{name}/{number}", images, turn)

    def record(self, name: str, images: tuple[Path, ...], turn: Mapping[str, Any]) -> Record:
        metric = self.data.get("metric", "exact")
        if metric not in METRICS:
            raise self.wrong(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
        group = self.text(self.data, "family") if "family" in self.data else ""
        question, answers = self.text(turn, "question"), self.texts(turn, "answer")
        return Record(name, images, question, answers, metric, group, self.boxes(turn))

    def boxes(self, turn: Mapping[str, Any]) -> tuple[tuple[float, float, float, float], ...]:
        boxes = turn.get("evidence", [])
        if not isinstance(boxes, list) or not all(_is_box(box) for box in boxes):
            raise self.wrong("evidence must be a list of boxes [left, top, right, bottom] in pixels")
        return tuple((float(box[0]), float(box[1]), float(box[2]), float(box[3])) for box in boxes)

    def images(self) -> tuple[Path, ...]:
        if ("image" in self.data) == ("images" in self.data):
            raise self.wrong("expected either image or images")
        names = (self.text(self.data, "image"),) if "image" in self.data else self.texts(self.data, "images")
        return tuple(self.path(name) for name in names)

    def path(self, name: str) -> Path:
        path = self.root / name
        try:
            inside, there = path.resolve().is_relative_to(self.root.resolve()), path.is_file()
        except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL character, links in a circle
            raise self.wrong(f"there can be no image {name!r}: {error}") from error
        if not inside:
            raise self.wrong(f"the image {name!r} lies outside the folder")
        if not there:
            raise self.wrong(f"there is no image {name!r} in the folder")
        return path

    def texts(self, data: Mapping[str, Any], key: str) -> tuple[str, ...]:
        value = data.get(key)
        if not isinstance(value, list):
            return (self.text(data, key),)
        if not value or not all(isinstance(text, str) and text.strip() for text in value):
            raise self.wrong(f"{key} must be text or a list of texts that are not empty, got {value!r}")
        return tuple(self.valid(text, key) for text in value)

    def text(self, data: Mapping[str, Any], key: str) -> str:
        if key not in data:
            raise self.wrong(f"the key {key!r} is missing")
        value = data[key]
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(f"{key} must be text that is not empty, got {value!r}")
        return self.valid(value, key)

    def valid(self, text: str, key: str) -> str:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise self.wrong(f"{key} must be valid Unicode, got {text!r}") from None
        return text

    def wrong(self, what: str) -> InputError:
        return InputError(f"{self.file}, line {self.line}: {what}")
