"""Answers of an evaluation as JSON lines on disk, so that it can stop at any time and go on later."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from erase.errors import EraseError, InputError
from erase.journal import Journal, whole_lines
from erase.models.loading import LoadedModel
from erase.records import Record

FORMAT = 3
_FILES = re.compile(r"answers(-\d+-of-\d+)?\.jsonl")


@dataclass(frozen=True)
class Part:
    """Which images of an evaluation to ask about: every `of`-th, beginning with the `number`-th (from 1)."""

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Part:
        """From `K/N`.

        Raises:
            InputError: it is no such text.
        """
        number, _, of = text.partition("/")
        if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            raise InputError(f"expected K/N, the K-th of N parts, such as 1/2, got {text!r}")
        return cls(int(number), int(of))

    @property
    def whole(self) -> bool:
        """Whether that is all of them."""
        return self.of == 1

    @property
    def file(self) -> str:
        """Name of the file that its answers go to."""
        return "answers.jsonl" if self.whole else f"answers-{self.number}-of-{self.of}.jsonl"

    def has(self, image: int) -> bool:
        """Whether the image of that number (from 0) is one of them."""
        return image % self.of == self.number - 1


@dataclass(frozen=True)
class Answer:
    """What one policy made of one record: text, score, retentions, and the share of the evidence that was kept."""

    text: str
    score: float
    final: float
    layer_average: float
    evidence: float | None


class AnswerFile:
    """Answers by the keys of record and policy; additions are in the file when `add` returns.

    `found` also holds what the other files of the folder know, which other parts of the evaluation write.

    Raises:
        EraseError: a file belongs to another model, is damaged, or is being written by another process.
    """

    def __init__(self, folder: Path, model: str, part: Part, *, restart: bool = False) -> None:
        self.found: dict[tuple[str, str], Answer] = {}
        folder.mkdir(parents=True, exist_ok=True)
        own = folder / part.file
        header = {"format": FORMAT, "model": model}
        others = [path for path in sorted(folder.iterdir()) if _FILES.fullmatch(path.name) and path != own]
        with _undamaged(own):
            self._journal = Journal(own, restart=restart)
        try:
            with _undamaged(own):
                self._take(own, self._journal.lines, header)
            if restart:
                _remove(others)
            else:
                for path in others:
                    with _undamaged(path):
                        self._take(path, whole_lines(path), header)
        except BaseException:
            self._journal.close()
            raise
        self._journal.begin(header)

    def __enter__(self) -> Self:
        """Itself; leaving the block closes the file."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._journal.close()

    def add(self, record: str, policy: str, answer: Answer) -> None:
        """Remember an answer."""
        self.found[record, policy] = answer
        self._journal.append({"record": record, "policy": policy, **asdict(answer)})

    def _take(self, path: Path, lines: Sequence[Any], header: dict[str, Any]) -> None:
        if lines and lines[0] != header:
            raise EraseError(
                f"{path} holds the answers of another model or format; choose another folder, or start anew with "
                "--restart"
            )
        for entry in lines[1:]:
            place = entry.pop("record"), entry.pop("policy")
            self.found[place] = Answer(**entry)


def _remove(paths: Sequence[Path]) -> None:
    """Delete files, or none of them where another process is writing one."""
    journals: list[Journal] = []
    try:
        for path in paths:
            journals.append(Journal(path, restart=True))
    except BaseException:
        for journal in journals:
            journal.close()
        raise
    for journal in journals:
        journal.remove()


@contextmanager
def _undamaged(path: Path) -> Iterator[None]:
    """Says of which file the lines are no answers."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise EraseError(f"{path} is damaged; delete it, or start anew with --restart") from error


def model_key(loaded: LoadedModel) -> str:
    """What answers depend on of a model."""
    return f"{loaded.name} {loaded.revision} {loaded.dtype}"


def record_keys(records: Sequence[Record]) -> list[str]:
    """Names each record by what it asks, its images' bytes included, so that more records can be added later."""
    images: dict[Path, str] = {}
    keys = []
    for record in records:
        for path in record.images:
            if path not in images:
                images[path] = hashlib.sha256(path.read_bytes()).hexdigest()
        known = [images[path] for path in record.images]
        asked = repr((known, record.question, record.answers, record.metric, record.evidence))
        keys.append(hashlib.sha256(asked.encode()).hexdigest()[:16])
    return keys
