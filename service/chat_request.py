"""The body of `POST /v1/chat/completions`, in OpenAI's shape, as a question of ours.

A field whose value asks for something that is not built is refused; the value that asks for nothing is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from service.intake import Ask, RemoteImage, image_at, parse_as, usable_text
from worker.contract import Frozen, GenerationOptions, Message, Priority, PruningOptions

if TYPE_CHECKING:
    from worker.settings import Settings

MOST_MESSAGES = MOST_PARTS = 256

Text = Annotated[str, Field(min_length=1, max_length=100)]
Zero = Annotated[float, Field(ge=0, le=0)]
Nothing = Annotated[tuple[Any, ...], Field(max_length=0)]
Ignored = Annotated[Any, Field(description="taken, changes nothing")]


class TextPart(Frozen):
    """A text inside a message."""

    type: Literal["text"]
    text: str


class ImageUrl(Frozen):
    """Where an image is. `detail` is taken and changes nothing: pruning decides how many tokens an image is worth."""

    url: Annotated[
        str, Field(description="a data: URL with base64, or http(s) where the deployment fetches from its host")
    ]
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(Frozen):
    """An image inside a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


Content = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[tuple[Part, ...], Field(max_length=MOST_PARTS, fail_fast=True), Tag("parts")],
    Discriminator(lambda value: "text" if isinstance(value, str) else "parts"),
]


class ChatMessage(Frozen):
    """One message, also one that this service wrote; `developer` is another word for `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: Ignored = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    tool_calls: Nothing | None = None
    annotations: Nothing | None = None

    @property
    def parts(self) -> tuple[TextPart | ImagePart, ...]:
        """The content as parts."""
        return (TextPart(type="text", text=self.content),) if isinstance(self.content, str) else self.content

    @field_validator("content")
    @classmethod
    def _is_usable(cls, value: str | tuple[Part, ...]) -> str | tuple[Part, ...]:
        for text in [value] if isinstance(value, str) else [part.text for part in value if isinstance(part, TextPart)]:
            usable_text(text, "a message")
        return value


class StreamOptions(Frozen):
    """What else the stream tells."""

    include_usage: bool | None = None


class ResponseFormat(Frozen):
    """Plain text is the only one."""

    type: Literal["text"]


class ChatRequest(Frozen):
    """The JSON body of `POST /v1/chat/completions`; `pruning`, `priority` and `timeout_s` are extensions of ours."""

    model: Annotated[str, Field(description="one of `GET /v1/models`")]
    messages: Annotated[tuple[ChatMessage, ...], Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)]
    max_completion_tokens: Annotated[int | None, Field(ge=1, le=4096)] = None
    max_tokens: Annotated[int | None, Field(ge=1, le=4096, description="the older name")] = None
    temperature: Annotated[float | None, Field(ge=0, le=2, description="default 0, greedy")] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    seed: Annotated[int | None, Field(ge=0, lt=2**63)] = None
    stop: Text | Annotated[tuple[Text, ...], Field(max_length=4, fail_fast=True)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    pruning: PruningOptions | None = None
    priority: Priority | None = None
    timeout_s: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = None
    # At these values they ask for nothing.
    n: Literal[1] | None = None
    response_format: ResponseFormat | None = None
    tools: Nothing | None = None
    functions: Nothing | None = None
    tool_choice: Literal["none", "auto"] | None = None
    logprobs: Literal[False] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    presence_penalty: Zero | None = None
    frequency_penalty: Zero | None = None
    top_logprobs: Literal[0] | None = None
    function_call: Literal["none", "auto"] | None = None
    parallel_tool_calls: Ignored = None
    modalities: tuple[Literal["text"]] | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None
    metadata: Ignored = None
    user: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens contradict each other")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream")
        last = self.messages[-1]
        if last.role != "user":
            raise ValueError("messages: the last must be the user's")
        if not any(isinstance(part, ImagePart) or part.text.strip() for part in last.parts):
            raise ValueError("messages: the last is empty")
        return self

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with the tokens' count."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


@dataclass(frozen=True)
class Wanted:
    """What the answer needs to know of its request; `usage` tells whether a stream ends with the tokens' count."""

    model: str
    stream: bool
    usage: bool


def parse_chat(body: bytes, settings: Settings) -> tuple[Wanted, Ask]:
    """Parse the body. Raises `MalformedBodyError` or `InvalidRequestError`."""
    request = parse_as(ChatRequest, body, settings)
    return Wanted(request.model, bool(request.stream), request.include_usage), _question(request)


def _question(request: ChatRequest) -> Ask:
    images: list[bytes | RemoteImage] = []
    messages = []
    for number, message in enumerate(request.messages):
        content: list[str | int] = []
        for part in message.parts:
            if isinstance(part, TextPart):
                content.append(part.text)
            else:
                content.append(len(images))
                images.append(image_at(part.image_url.url, f"messages.{number}.image_url"))
        role = "system" if message.role == "developer" else message.role
        messages.append(Message(role=role, content=tuple(content)))
    given = {
        "max_tokens": request.max_completion_tokens or request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": request.seed,
        "stop": (request.stop,) if isinstance(request.stop, str) else request.stop,
    }
    return Ask(
        generation=GenerationOptions(**{name: value for name, value in given.items() if value is not None}),
        pruning=request.pruning or PruningOptions(),
        images=tuple(images),
        messages=tuple(messages),
        priority=request.priority or Priority.INTERACTIVE,
        timeout_s=request.timeout_s,
        stream=bool(request.stream),
    )
