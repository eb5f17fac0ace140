"""Logs of service and worker: one line for each event, as text or JSON, with the request and the job it belongs to.

What a line belongs to is set once, with `about`, and added to every line that is logged inside, whoever logs it.
Prompts, answers, image bytes and keys are never logged.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker.settings import Settings

_subject: ContextVar[dict[str, str]] = ContextVar("subject", default={})  # noqa: B039 - never changed, only replaced
_KNOWN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "fields", "taskName"}


@contextmanager
def about(**subject: str) -> Iterator[None]:
    """Every line logged in this block, by this thread or task, names the subject, for example `job_id`."""
    token = _subject.set({**_subject.get(), **{name: value for name, value in subject.items() if value}})
    try:
        yield
    finally:
        _subject.reset(token)


def now_about(**subject: str) -> None:
    """Like `about`, until the current block or task ends: for what is learned on the way."""
    _subject.set({**_subject.get(), **{name: value for name, value in subject.items() if value}})


class _Subject(logging.Filter):
    """Gives a record the fields of its subject, and those of its `extra`."""

    def filter(self, record: logging.LogRecord) -> bool:
        extra = {name: value for name, value in record.__dict__.items() if name not in _KNOWN}
        record.fields = {**_subject.get(), **extra}
        return True


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, message, and the record's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """A line for people; the fields stand at its end as name=value."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        """The line without a traceback."""
        fields = "".join(f" {name}={value}" for name, value in getattr(record, "fields", {}).items())
        return super().formatMessage(record) + fields


def configure_logging(settings: Settings) -> None:
    """Send all logs of this process to standard error, as the settings say."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    handler.addFilter(_Subject())
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    for library in ("httpx", "httpcore"):  # they log URLs
        logging.getLogger(library).setLevel("WARNING")
