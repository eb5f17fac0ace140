"""Answers of an evaluation as JSON lines on disk, so that it can stop at any time and go on later."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from erase.errors import EraseError
from erase.models.loading import LoadedModel
from erase.records import Record

FORMAT = 1


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

    Raises:
        EraseError: the file belongs to another model, or is damaged.
    """

    def __init__(self, path: Path, model: str, *, restart: bool = False) -> None:
        self.path = path
        self.found: dict[tuple[str, str], Answer] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if restart:
            path.unlink(missing_ok=True)
        whole = self._read(model)
        self._file = path.open("r+" if whole else "w", encoding="utf-8")
        self._file.truncate(whole)  # a last line that a killed process left half-written
        self._file.seek(whole)
        if not whole:
            self._append({"format": FORMAT, "model": model})

    def __enter__(self) -> Self:
        """Itself; leaving the block closes the file."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, record: str, policy: str, answer: Answer) -> None:
        """Remember an answer."""
        self.found[record, policy] = answer
        self._append({"record": record, "policy": policy, **asdict(answer)})

    def _append(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def _read(self, model: str) -> int:
        """Takes in what the file holds; how many bytes of it are whole lines."""
        if not self.path.exists():
            return 0
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        try:
            lines = content[:whole].decode("utf-8").splitlines()
            entries = [json.loads(line) for line in lines]
            for number, entry in enumerate(entries):
                if number == 0:
                    self._require_same(entry, model)
                    continue
                place = entry.pop("record"), entry.pop("policy")
                self.found[place] = Answer(**entry)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise EraseError(f"{self.path} is damaged; delete it, or start anew with --restart") from error
        return whole

    def _require_same(self, header: Any, model: str) -> None:
        if header != {"format": FORMAT, "model": model}:
            raise EraseError(
                f"{self.path} holds the answers of another model or format; choose another folder, or start anew with "
                "--restart"
            )


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
