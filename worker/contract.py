"""What service and worker agree on: jobs, events, outcomes, problems, Redis keys and queue names.

A change that an older worker or service could not read raises `CONTRACT_VERSION`; a job carries the oldest version that
can say what it asks, and so do the names of its queue and task. A worker serves all versions from `OLDEST_CONTRACT` on,
so services and workers can be upgraded, and put back, in any order while jobs are in flight.

    1  a prompt about images
    2  conversations (`JobRequest.messages`)
    3  other pruning methods than ERASE (`PruningOptions.method`)
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

CONTRACT_VERSION = 3
OLDEST_CONTRACT = 1
SERVED_CONTRACTS = range(OLDEST_CONTRACT, CONTRACT_VERSION + 1)
CONVERSATIONS_SINCE = 2
BASELINES_SINCE = 3
PREFIX = "erase:"

WORKERS_KEY = f"{PREFIX}workers"
OPEN_KEY = f"{PREFIX}open"
DEAD_KEY = f"{PREFIX}dead"
OPEN_PIXELS_KEY = f"{PREFIX}open_pixels"
COUNTERS_KEY = f"{PREFIX}counters"
SWEEPER_LOCK_KEY = f"{PREFIX}sweeper"


def job_key(job_id: str) -> str:
    """Hash with everything known of one job."""
    return f"{PREFIX}job:{job_id}"


def events_key(job_id: str) -> str:
    """Stream of one job's events; entry `N-0` is event number N."""
    return f"{PREFIX}events:{job_id}"


def gone_key(job_id: str) -> str:
    """Owner of a job whose result has expired, so that its id answers 410 and not 404."""
    return f"{PREFIX}gone:{job_id}"


def watchers_key(job_id: str) -> str:
    """Hash of service process -> number of its requests that wait for the job."""
    return f"{PREFIX}watchers:{job_id}"


def replies_key(service_id: str) -> str:
    """Stream of one service process: a notice (job id) for each new event of a job that it watches."""
    return f"{PREFIX}replies:{service_id}"


def image_key(sha256: str) -> str:
    """Claim check: the bytes of one uploaded image."""
    return f"{PREFIX}image:{sha256}"


def owner_open_key(owner: str) -> str:
    """Set of an owner's jobs that have not ended."""
    return f"{PREFIX}owner:{owner}:open"


def owner_jobs_key(owner: str) -> str:
    """Sorted set of all jobs of an owner that may still be known, all with score 0: ids sort by time."""
    return f"{PREFIX}owner:{owner}:jobs"


def idempotency_key(owner: str, key: str) -> str:
    """Job id and body hash that an owner's Idempotency-Key stands for."""
    return f"{PREFIX}idem:{owner}:{key}"


class Frozen(BaseModel):
    """Base of all data that travels: immutable, and strict about unknown fields."""

    # Built at first use: a process pays only for the models that it needs.
    # A value that does not fit is not repeated in the error: logs must not hold prompts.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True, hide_input_in_errors=True)


class JobState(StrEnum):
    """Where a job stands. All but the first two are final."""

    ACCEPTED = "accepted"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    DEAD = "dead"

    @property
    def final(self) -> bool:
        """True once the job has its one outcome."""
        return self not in (JobState.ACCEPTED, JobState.RUNNING)


class Priority(StrEnum):
    """Which queue, and so which share of a worker's slots, a job goes to."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


def queue_name(priority: Priority, version: int = OLDEST_CONTRACT) -> str:
    """Redis list (Celery queue) of a priority and a contract version."""
    return f"erase.v{version}.{priority.value}"


def queue_share(queue: str) -> str:
    """The priority of a queue, of whichever version: queues of one priority share a worker's slots."""
    return queue.rpartition(".")[2]


def queue_task(queue: str) -> str:
    """Name of the Celery task whose messages wait in a queue."""
    return queue.rpartition(".")[0] + ".run"


class ImageReference(Frozen):
    """An uploaded image by its content: SHA-256 of the bytes, with what its header announces (pixels)."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    format: Literal["JPEG", "PNG", "WEBP"]
    width: Annotated[int, Field(ge=1)]
    height: Annotated[int, Field(ge=1)]
    bytes: Annotated[int, Field(ge=1)]


OwnMethod = Literal["erase", "none"]
Baseline = Literal[
    "cdpruner",
    "divprune",
    "downsample",
    "fastv",
    "holov",
    "pooling",
    "prumerge",
    "pyramiddrop",
    "random",
    "sparsevlm",
    "visionzip",
    "vispruner",
    "vscan",
]
"""The library's `erase.policy.BASELINES`, which cannot be imported here."""
BASELINES: tuple[Baseline, ...] = get_args(Baseline)


class PruningOptions(Frozen):
    """A request's wish for pruning; what is left out follows the deployment's policy."""

    method: OwnMethod | Baseline = "erase"
    policy: Annotated[str | None, Field(max_length=100)] = None
    retention: Annotated[float | None, Field(gt=0.0, le=1.0)] = None


class GenerationOptions(Frozen):
    """How to decode. `temperature` 0 is greedy; `seed` None lets the worker draw and freeze one."""

    max_tokens: Annotated[int, Field(ge=1, le=4096)] = 128
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] = 0.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    seed: Annotated[int | None, Field(ge=0, lt=2**63)] = None
    stop: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=100)], ...], Field(max_length=4, fail_fast=True)
    ] = ()


class Message(Frozen):
    """One message of a conversation: texts, and the numbers of images where those stand."""

    role: Literal["system", "user", "assistant"]
    content: tuple[str | int, ...]


class JobRequest(Frozen):
    """The question itself, as the worker reads it: a prompt about all images, or a conversation that contains them."""

    prompt: str = ""
    messages: tuple[Message, ...] = ()
    images: tuple[ImageReference, ...]
    generation: GenerationOptions = GenerationOptions()
    pruning: PruningOptions = PruningOptions()
    include: tuple[Literal["pruning_map"], ...] = ()

    @model_validator(mode="after")
    def _asks_once(self) -> Self:
        if bool(self.prompt) == bool(self.messages):
            raise ValueError("give either prompt or messages")
        if self.messages:
            shown = [part for message in self.messages for part in message.content if isinstance(part, int)]
            if shown != list(range(len(self.images))):
                raise ValueError("the messages must show every image once and in order")
        return self


def needed_contract(request: JobRequest) -> int:
    """The oldest contract version that can say what the request asks."""
    if request.pruning.method in BASELINES:
        return BASELINES_SINCE
    return CONVERSATIONS_SINCE if request.messages else OLDEST_CONTRACT


class Plan(Frozen):
    """What the first attempt froze, so that a second one gives the same answer."""

    model: str
    model_revision: str
    policy: str
    policy_settings: dict[str, Any] | None
    retention: float | None
    seed: int
    usual_retention: float | None = None
    """What the retention would have been without overload, if that lowered it."""


class VisionTokens(Frozen):
    """Vision tokens of a request by stage, summed over its images.

    `after_stage1` enter the decoder; `layer_average` is a mean over its layers.
    """

    input: int
    after_stage1: int
    kept: int
    layer_average: float


class Usage(Frozen):
    """Token counts. `prompt_tokens` counts the unpruned prompt."""

    prompt_tokens: int
    completion_tokens: int
    vision_tokens: VisionTokens
    token_reduction: float = Field(description="1 - layer_average / input; 0 for a prompt without images")


class PruningReport(Frozen):
    """The policy that was in force, and the retention that was asked for and reached.

    `lowered_to` is the retention that was used instead of the requested one because the deployment was overloaded.
    `stage2_skipped`: the prompt has so few vision tokens that pruning inside the model would cost more than it saves.
    """

    policy: str
    requested: float | None
    final: float
    layer_average: float
    lowered_to: float | None = None
    stage2_skipped: bool = False


class ImageReport(Frozen):
    """One image as the model saw it: size in pixels after resizing, vision tokens, complexity in nats."""

    width: int
    height: int
    tokens: int
    complexity: float


class Timings(Frozen):
    """Milliseconds of each phase; `first_token` and `total` count from acceptance."""

    queue: float
    preprocess: float
    encode: float
    prefill: float
    decode: float
    first_token: float
    total: float


class PruningMap(Frozen):
    """Which cells of one image survived: rows of 0 (dropped before the model), 1 (dropped inside it), 2 (kept)."""

    rows: tuple[tuple[int, ...], ...]


class Answer(Frozen):
    """The answer object of `POST /v1/ask`."""

    id: str
    answer: str
    finish_reason: Literal["stop", "length"]
    model: str
    usage: Usage
    pruning: PruningReport
    images: tuple[ImageReport, ...]
    timings_ms: Timings
    pruning_map: tuple[PruningMap, ...] | None = None


class Problem(Frozen):
    """An error object (RFC 9457). `type` is one of `PROBLEMS`."""

    type: str
    title: str
    status: int
    detail: str
    instance: str | None = None
    errors: tuple[dict[str, str], ...] | None = None


@dataclass(frozen=True)
class ProblemType:
    """One row of the table of stable problem types."""

    status: int
    title: str


PROBLEMS: dict[str, ProblemType] = {
    "invalid-request": ProblemType(422, "The request is not valid"),
    "malformed-body": ProblemType(400, "The body cannot be parsed"),
    "invalid-image": ProblemType(422, "An image cannot be used"),
    "unsupported-image-format": ProblemType(415, "The image format is not supported"),
    "unsupported-media-type": ProblemType(415, "The content type is not supported"),
    "too-large": ProblemType(413, "The request is too large"),
    "context-length": ProblemType(422, "The prompt does not fit into the model's context"),
    "unreachable-image": ProblemType(422, "An image URL cannot be fetched"),
    "unknown-policy": ProblemType(422, "The pruning policy is not known here"),
    "unknown-model": ProblemType(404, "The model is not served here"),
    "unauthorized": ProblemType(401, "A valid API key is needed"),
    "forbidden": ProblemType(403, "The API key does not allow that"),
    "not-found": ProblemType(404, "There is no such resource"),
    "method-not-allowed": ProblemType(405, "The method is not allowed here"),
    "gone": ProblemType(410, "The job's result has expired"),
    "cancelled": ProblemType(409, "The job was cancelled"),
    "idempotency-mismatch": ProblemType(422, "The Idempotency-Key was used with another body"),
    "rate-limit": ProblemType(429, "Too many questions in this time"),
    "too-many-requests": ProblemType(429, "Too many requests at once"),
    "open-jobs-limit": ProblemType(429, "Too many jobs of this key are open"),
    "queue-full": ProblemType(503, "Too many jobs are open"),
    "storage-full": ProblemType(503, "The store of jobs is full"),
    "unavailable": ProblemType(503, "Requests cannot be accepted now"),
    "deadline": ProblemType(504, "The deadline passed before the answer was ready"),
    "dead-letter": ProblemType(500, "The job failed repeatedly and was given up"),
    "image-lost": ProblemType(500, "The stored image is missing"),
    "model-changed": ProblemType(500, "The model changed while the job was running"),
    "internal": ProblemType(500, "Something went wrong on our side"),
}


def problem(kind: str, detail: str, **extra: Any) -> Problem:
    """Build the problem object of a type of the table."""
    row = PROBLEMS[kind]
    return Problem(type=f"urn:erase:problem:{kind}", title=row.title, status=row.status, detail=detail, **extra)


def kind_of(problem: Problem) -> str:
    """The problem's type as the table names it."""
    return problem.type.rpartition(":")[2]


class Outcome(Frozen):
    """How a job ended: exactly one of the two."""

    answer: Answer | None = None
    problem: Problem | None = None


class EventType(StrEnum):
    """Kinds of events in a job's stream; the last two end it."""

    TOKEN = "token"  # noqa: S105
    RESULT = "result"
    ERROR = "error"


class TokenPayload(Frozen):
    """Data of a token event: the new text, and the token ids that a second attempt is forced to repeat."""

    text: str
    ids: tuple[int, ...]


class WorkerInfo(Frozen):
    """What one worker can do, renewed with each heartbeat. All model facts of the service come from here.

    `contract` is the newest version it serves. What a newer worker adds is not read.
    """

    model_config = ConfigDict(extra="ignore")

    worker: str
    contract: int
    model: str
    model_revision: str
    device: str
    dtype: str
    context_length: int
    cell: int
    max_image_pixels: int
    policies: tuple[str, ...]
    default_policy: str
    slots: int
    running: int
    started_ms: int
    heartbeat_ms: int
