"""What the routes with OpenAI's shapes answer."""

from __future__ import annotations

from typing import Literal

from pydantic import SerializerFunctionWrapHandler, model_serializer

from worker.contract import Answer, Frozen, ImageReport, PruningReport, Timings, VisionTokens

FinishReason = Literal["stop", "length"]


class Model(Frozen):
    """A model that a worker serves."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "erase-serve"
    root: str


class ModelList(Frozen):
    """All of them."""

    object: Literal["list"] = "list"
    data: tuple[Model, ...]


class TokenCount(Frozen):
    """Tokens of prompt (before pruning) and answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, answer: Answer) -> TokenCount:
        """An answer's."""
        prompt, completion = answer.usage.prompt_tokens, answer.usage.completion_tokens
        return cls(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


class Savings(Frozen):
    """What OpenAI's shape has no place for, as in the answer of `/v1/ask`."""

    vision_tokens: VisionTokens
    token_reduction: float
    pruning: PruningReport
    images: tuple[ImageReport, ...]
    timings_ms: Timings

    @classmethod
    def of(cls, answer: Answer) -> Savings:
        """An answer's."""
        return cls(
            vision_tokens=answer.usage.vision_tokens,
            token_reduction=answer.usage.token_reduction,
            pruning=answer.pruning,
            images=answer.images,
            timings_ms=answer.timings_ms,
        )


class WrittenMessage(Frozen):
    """The answer as a message; it can be sent back as it is."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(Frozen):
    """The only choice."""

    index: int = 0
    message: WrittenMessage
    logprobs: None = None
    finish_reason: FinishReason


class ChatCompletion(Frozen):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: tuple[Choice, ...]
    usage: TokenCount
    erase: Savings

    @classmethod
    def of(cls, answer: Answer) -> ChatCompletion:
        """An answer in this shape."""
        return cls(
            id=answer.id,
            created=created(answer.id),
            model=answer.model,
            choices=(Choice(message=WrittenMessage(content=answer.answer), finish_reason=answer.finish_reason),),
            usage=TokenCount.of(answer),
            erase=Savings.of(answer),
        )


class Delta(Frozen):
    """What a chunk adds; what is not set is left out."""

    role: Literal["assistant"] | None = None
    content: str | None = None

    @model_serializer(mode="wrap")
    def _what_is_set(self, write: SerializerFunctionWrapHandler) -> dict[str, str]:
        return {name: value for name, value in write(self).items() if value is not None}


class ChunkChoice(Frozen):
    """The only choice of a chunk."""

    index: int = 0
    delta: Delta
    logprobs: None = None
    finish_reason: FinishReason | None = None


class ChatChunk(Frozen):
    """A piece of an answer."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: tuple[ChunkChoice, ...]
    usage: TokenCount | None = None
    erase: Savings | None = None

    def body(self, *, with_usage: bool) -> str:
        """As JSON: `usage` only if the client wants it, then null in all chunks but the last; `erase` only if set."""
        left_out = {name for name, shown in (("usage", with_usage), ("erase", self.erase)) if not shown}
        return self.model_dump_json(exclude=left_out)


def created(job_id: str) -> int:
    """Unix seconds: a job's id begins with its milliseconds."""
    return int(job_id.removeprefix("job_")[:12], 16) // 1000
