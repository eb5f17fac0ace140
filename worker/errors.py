"""The worker's exceptions.

WorkerError
├── JobError              the job ends with a problem; `kind` is its type in the contract's table
│   ├── BadImageError         invalid-image
│   ├── ImageLostError        image-lost
│   ├── UnknownPolicyError    unknown-policy
│   ├── TooLongError          context-length
│   ├── BadConversationError  invalid-request
│   └── ModelChangedError     model-changed
├── GiveBackError         the worker is stopping and gave the job back: the next sweep wakes another one
├── FencedError           another attempt or an outcome holds the job now: nothing of ours may be written
├── AbandonedError        this process cannot finish the job; when its lease runs out, the sweeper hands it on
└── EmitStalledError      events could not be written within the time allowed
"""

from __future__ import annotations

from typing import ClassVar

from worker.contract import Outcome, problem


class WorkerError(Exception):
    """Root of the tree."""


class JobError(WorkerError):
    """The job ends with this problem; the message is fit for the client."""

    kind: ClassVar[str] = "internal"

    @property
    def outcome(self) -> Outcome:
        """How the job ends."""
        return Outcome(problem=problem(self.kind, str(self)))


class BadImageError(JobError):
    """The bytes are no usable image."""

    kind = "invalid-image"


class ImageLostError(JobError):
    """The stored bytes are gone."""

    kind = "image-lost"


class UnknownPolicyError(JobError):
    """The request names a policy that this worker does not have, or turns its dial where it cannot go."""

    kind = "unknown-policy"


class TooLongError(JobError):
    """Prompt and answer do not fit into the model's context."""

    kind = "context-length"


class BadConversationError(JobError):
    """The model's chat template does not take these messages."""

    kind = "invalid-request"


class ModelChangedError(JobError):
    """The answer had begun on another model revision."""

    kind = "model-changed"


class GiveBackError(WorkerError):
    """The worker is stopping: the job was given back, and the next sweep wakes another worker."""


class FencedError(WorkerError):
    """Another attempt or an outcome holds the job now."""


class AbandonedError(WorkerError):
    """This process cannot finish the job."""


class EmitStalledError(WorkerError):
    """Events could not be written within the time allowed."""
