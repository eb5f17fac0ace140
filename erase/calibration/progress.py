"""What a calibration has found out so far, as JSON lines on disk, so that it can stop at any time and go on later."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from erase.calibration.search import ImageStats, Point, Search
from erase.errors import EraseError, InputError
from erase.journal import Journal
from erase.models.loading import LoadedModel
from erase.records import Record

FORMAT = 1


@dataclass(frozen=True)
class Identity:
    """Whose progress it is: what the outcome depends on, besides the number of iterations."""

    model: str
    records: str
    settings: str

    def difference(self, other: Identity) -> str:
        """Which parts differ, in words; empty when none do."""
        theirs = asdict(other)
        return " and ".join(f"other {name}" for name, value in asdict(self).items() if value != theirs[name])


@dataclass(frozen=True)
class Unpruned:
    """One record without pruning: whether the answer was right, and what its images look like."""

    right: bool
    images: tuple[ImageStats, ...]


@dataclass(frozen=True)
class Tried:
    """One point of the search."""

    point: Point
    accuracy: float
    objective: float


class ProgressFile:
    """Everything asked and tried, by record number and by order; additions are on disk when a method returns.

    Raises:
        EraseError: the file belongs to another calibration, is damaged, or is being written by another process.
    """

    def __init__(self, path: Path, identity: Identity, *, restart: bool = False) -> None:
        self.path = path
        self.unpruned: dict[int, Unpruned] = {}
        self.answers: dict[tuple[int, tuple[int, ...]], bool] = {}
        self.tried: list[Tried] = []
        try:
            self._journal = Journal(path, restart=restart)
        except ValueError as error:
            raise self._damaged() from error
        try:
            self._take_all(identity)
        except BaseException:
            self._journal.close()
            raise
        self._journal.begin({"format": FORMAT, **asdict(identity)})

    def close(self) -> None:
        """Close the file; it stays where it is."""
        self._journal.close()

    def add_unpruned(self, record: int, unpruned: Unpruned) -> None:
        """Remember a record's answer without pruning."""
        self.unpruned[record] = unpruned
        images = [[image.tokens, image.complexity] for image in unpruned.images]
        self._journal.append({"unpruned": record, "right": unpruned.right, "images": images})

    def add_answer(self, record: int, kept: tuple[int, ...], *, right: bool) -> None:
        """Remember whether a record was answered right with so many vision tokens of each image."""
        self.answers[record, kept] = right
        self._journal.append({"answer": record, "kept": kept, "right": right})

    def add_tried(self, tried: Tried) -> None:
        """Remember a point."""
        self.tried.append(tried)
        self._journal.append(asdict(tried))

    def _take_all(self, identity: Identity) -> None:
        difference = ""
        try:
            if self._journal.lines:
                header, *lines = self._journal.lines
                if header.pop("format") != FORMAT:
                    raise ValueError("another format")
                difference = identity.difference(Identity(**header))
                if not difference:
                    for line in lines:
                        self._take(line)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged() from error
        if difference:
            raise EraseError(
                f"{self.path} is the progress of another calibration ({difference}): start over with --restart, or "
                "choose another --out"
            )

    def _damaged(self) -> EraseError:
        return EraseError(f"{self.path} is no progress of a calibration, or damaged; start over with --restart")

    def _take(self, line: dict[str, Any]) -> None:
        if "unpruned" in line:
            images = tuple(ImageStats(tokens, complexity) for tokens, complexity in line["images"])
            self.unpruned[line["unpruned"]] = Unpruned(line["right"], images)
        elif "answer" in line:
            self.answers[line["answer"], tuple(line["kept"])] = line["right"]
        else:
            self.tried.append(Tried(tuple(line["point"]), line["accuracy"], line["objective"]))


def identity_of(loaded: LoadedModel, records: Sequence[Record], search: Search) -> Identity:
    """The identity of a calibration.

    Raises:
        InputError: an image cannot be read.
    """
    content = [[record.question, record.answers, [_image_hash(path) for path in record.images]] for record in records]
    settings = {name: value for name, value in asdict(search).items() if name != "iterations"}
    return Identity(
        model=f"{loaded.name} {loaded.revision} {loaded.dtype}",
        records=_hash(json.dumps(content).encode()),
        settings=json.dumps(settings),
    )


def _image_hash(path: Path) -> str:
    try:
        return _hash(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read the image {path}: {error.strerror}") from error


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
