"""The engine: one thread that owns the model, prefills packed prompts, prunes inside and decodes continuously.

`Engine.submit(sequence)` returns a `Handle` that yields token events and one result.
"""

from erase.engine.engine import Engine
from erase.engine.limits import EngineLimits
from erase.engine.observer import EngineObserver
from erase.engine.sequence import (
    CancelledError,
    ContextLengthError,
    DeadlineError,
    EngineStoppedError,
    Handle,
    Priority,
    Result,
    SamplingParams,
    Sequence,
    TokenEvent,
)
from erase.errors import EngineError

__all__ = [
    "CancelledError",
    "ContextLengthError",
    "DeadlineError",
    "Engine",
    "EngineError",
    "EngineLimits",
    "EngineObserver",
    "EngineStoppedError",
    "Handle",
    "Priority",
    "Result",
    "SamplingParams",
    "Sequence",
    "TokenEvent",
]
