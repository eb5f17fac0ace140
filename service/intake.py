"""From bytes of HTTP to a question: parsing and validation of the body of `POST /v1/ask`, without any I/O."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from service.images import ImageLimits, inspect
from service.problems import (
    InvalidRequestError,
    MalformedBodyError,
    TooLargeError,
    UnavailableError,
    UnknownPolicyError,
    invalid_fields,
)
from worker.contract import (
    BASELINES,
    BASELINES_SINCE,
    CONTRACT_VERSION,
    CONVERSATIONS_SINCE,
    Frozen,
    GenerationOptions,
    ImageReference,
    JobRequest,
    Message,
    Priority,
    PruningOptions,
    WorkerInfo,
)

if TYPE_CHECKING:
    from worker.settings import Settings

Model = TypeVar("Model", bound=BaseModel)

_NOT_YET = ImageReference(sha256="0" * 64, format="PNG", width=1, height=1, bytes=1)
"""Stands for an image that is still to be fetched: nothing is stored under its name."""
REPEATABLE = ("stop", "include")
_SPARE_COMMAS = 4_096
"""In a JSON body beside those of its texts."""


def usable_text(value: str, what: str) -> str:
    """The text as it came. Raises `ValueError` for one that no model can be asked."""
    if "\0" in value:
        raise ValueError(f"{what} must not contain NUL characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} is not valid Unicode") from None
    return value


class AskOptions(GenerationOptions):
    """The question and its options: all fields but the images."""

    prompt: Annotated[str, Field(min_length=1, description="the question about the images")]
    stream: Annotated[bool, Field(description="answer with server-sent events")] = False
    priority: Annotated[Priority, Field(description="which queue the request waits in")] = Priority.INTERACTIVE
    timeout_s: Annotated[
        float | None, Field(gt=0, allow_inf_nan=False, description="deadline in seconds, default 60, at most 600")
    ] = None
    pruning: Annotated[PruningOptions, Field(description="default: the deployment's policy")] = PruningOptions()
    include: Annotated[tuple[Literal["pruning_map"], ...], Field(max_length=1)] = ()

    @field_validator("prompt")
    @classmethod
    def _is_a_question(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("the prompt is empty")
        return usable_text(value, "the prompt")


EMPTY_IS_UNSET = {"image", *AskOptions.model_fields} - {"prompt"}
"""Browsers send an empty text for every field of a form that nobody filled in."""


class ImageInput(Frozen):
    """One image in a JSON body: exactly one of the two."""

    url: Annotated[
        str | None, Field(description="a data: URL with base64, or http(s) where the deployment fetches from its host")
    ] = None
    data: Annotated[str | None, Field(description="the file in base64")] = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.url is None) == (self.data is None):
            raise ValueError("give exactly one of url and data")
        return self


class AskRequest(AskOptions):
    """The JSON body of `POST /v1/ask`."""

    images: Annotated[tuple[ImageInput, ...], Field(fail_fast=True)] = ()


@dataclass(frozen=True)
class RemoteImage:
    """An image that is still to be fetched; errors call it `name`."""

    url: str
    name: str


@dataclass(frozen=True)
class Ask:
    """A parsed body: a prompt about all images, or a conversation that shows them, and how to answer."""

    generation: GenerationOptions
    pruning: PruningOptions
    images: tuple[bytes | RemoteImage, ...]
    prompt: str = ""
    messages: tuple[Message, ...] = ()
    priority: Priority = Priority.INTERACTIVE
    timeout_s: float | None = None
    stream: bool = False
    include: tuple[Literal["pruning_map"], ...] = ()
    urls: tuple[str | None, ...] = ()
    """Where fetched images came from, one entry for each image."""

    @classmethod
    def of(cls, options: AskOptions, images: Sequence[bytes | RemoteImage]) -> Ask:
        """The question of a body of `POST /v1/ask`."""
        return cls(
            generation=GenerationOptions(**{name: getattr(options, name) for name in GenerationOptions.model_fields}),
            pruning=options.pruning,
            images=tuple(images),
            prompt=options.prompt,
            priority=options.priority,
            timeout_s=options.timeout_s,
            stream=options.stream,
            include=options.include,
        )

    @property
    def remote(self) -> tuple[RemoteImage, ...]:
        """Images that are still to be fetched."""
        return tuple(image for image in self.images if isinstance(image, RemoteImage))

    @property
    def characters(self) -> int:
        """Length of all texts."""
        parts = (part for message in self.messages for part in message.content)
        return len(self.prompt) + sum(len(part) for part in parts if isinstance(part, str))


@dataclass(frozen=True)
class Prepared:
    """A question that may become a job, with the bytes of its images by SHA-256."""

    request: JobRequest
    priority: Priority
    timeout_s: float
    stream: bool
    files: dict[str, bytes]
    urls: tuple[str | None, ...] = ()

    @property
    def body_hash(self) -> str:
        """SHA-256 over everything that decides the answer; how it is delivered (stream, async) is left out.

        An image that was fetched counts by its URL, as the client sent it: what is there may have changed since.
        """
        request = self.request.model_dump(mode="json", exclude_defaults=True)
        for index, url in enumerate(self.urls):
            if url is not None:
                request["images"][index] = url
        content = [request, self.priority.value, self.timeout_s]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def parse_json(body: bytes, settings: Settings) -> Ask:
    """Parse a JSON body. Raises `MalformedBodyError` or `InvalidRequestError`."""
    request = parse_as(AskRequest, body, settings)
    return Ask.of(request, [_image(image, f"images.{index}") for index, image in enumerate(request.images)])


def parse_as(model: type[Model], body: bytes, settings: Settings) -> Model:
    """Read a JSON body as this model. Raises `MalformedBodyError` or `InvalidRequestError`."""
    # Every value that is wrong becomes an error of some kilobytes. Commas part the values, and base64 has none.
    if body.count(b",") > settings.max_prompt_chars + _SPARE_COMMAS:
        raise InvalidRequestError("the body: more values than a question has")
    try:
        return model.model_validate_json(body, strict=True)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False, include_input=False)
        if any(item["type"] == "json_invalid" for item in errors):
            raise MalformedBodyError("The body is not valid JSON.") from None
        raise invalid_fields(errors) from None


def parse_form(fields: Sequence[tuple[str, str]], images: Sequence[bytes]) -> Ask:
    """Parse the text fields of a multipart body. Raises `MalformedBodyError` or `InvalidRequestError`."""
    values: dict[str, Any] = {}
    for name, text in fields:
        if text == "" and name in EMPTY_IS_UNSET:
            continue
        if name in REPEATABLE:
            values.setdefault(name, []).append(text)
        elif name == "image":
            raise InvalidRequestError("image: send it as a file, with a filename")
        elif name in values:
            raise InvalidRequestError(f"{name[:100]}: given more than once")
        else:
            values[name] = text
    if "pruning" in values:
        try:
            values["pruning"] = PruningOptions.model_validate_json(values["pruning"], strict=True)
        except ValidationError as error:
            errors = error.errors(include_url=False, include_context=False, include_input=False)
            named = [{**item, "loc": ("pruning", *item["loc"])} for item in errors]
            raise invalid_fields(named) from None
    try:
        return Ask.of(AskOptions.model_validate(values), images)
    except ValidationError as error:
        raise invalid_fields(error.errors(include_url=False, include_context=False, include_input=False)) from None


def prepare(ask: Ask, settings: Settings, workers: Sequence[WorkerInfo]) -> Prepared:
    """Check a question against the deployment's limits, all but the images that are still to be fetched.

    Raises a client error of `service.problems`.

    What only a worker can know (policies, pixels) is checked if one is alive; else the worker checks it later.
    """
    if ask.characters > settings.max_prompt_chars:
        name = "messages" if ask.messages else "prompt"
        raise InvalidRequestError(f"{name}: longer than {settings.max_prompt_chars} characters")
    if len(ask.images) > settings.max_images:
        raise InvalidRequestError(f"images: {len(ask.images)} given, at most {settings.max_images} are allowed")
    timeout_s = settings.timeout_s if ask.timeout_s is None else ask.timeout_s
    if timeout_s > settings.max_timeout_s:
        raise InvalidRequestError(f"timeout_s: at most {settings.max_timeout_s:g} seconds are allowed")
    if ask.pruning.method == "none" and (ask.pruning.policy, ask.pruning.retention) != (None, None):
        raise InvalidRequestError('pruning: the method "none" prunes nothing: leave out policy and retention')
    if ask.pruning.method in BASELINES and ask.pruning.policy is not None:
        raise InvalidRequestError(f'pruning: the method "{ask.pruning.method}" has no policies: leave policy out')
    _check_policy(ask.pruning, workers)
    _check_contract(ask, settings, workers)
    limits = image_limits(settings, workers)
    references: list[ImageReference] = []
    files = {}
    pixels = 0
    for index, data in enumerate(ask.images):
        if isinstance(data, RemoteImage):
            references.append(_NOT_YET)
            continue
        reference = inspect(data, limits, f"image {index}")
        pixels += reference.width * reference.height
        if pixels > settings.max_request_pixels:
            raise TooLargeError(f"The images have more than {settings.max_request_pixels} pixels together.")
        references.append(reference)
        files[reference.sha256] = data
    request = JobRequest(
        prompt=ask.prompt,
        messages=ask.messages,
        images=tuple(references),
        generation=ask.generation,
        pruning=ask.pruning,
        include=ask.include,
    )
    urls = ask.urls or tuple(image.url if isinstance(image, RemoteImage) else None for image in ask.images)
    return Prepared(request, ask.priority, timeout_s, ask.stream, files, urls)


def image_limits(settings: Settings, workers: Sequence[WorkerInfo]) -> ImageLimits:
    """The deployment's limits, tightened to what the most capable worker alive can take."""
    pixels = settings.max_image_pixels
    if workers:
        pixels = min(pixels, max(worker.max_image_pixels for worker in workers))
    return ImageLimits(settings.max_image_bytes, pixels, settings.min_image_side, settings.max_image_aspect)


def _check_policy(pruning: PruningOptions, workers: Sequence[WorkerInfo]) -> None:
    if pruning.policy is None or not workers:
        return
    known = sorted({policy for worker in workers for policy in worker.policies})
    if pruning.policy not in known:
        raise UnknownPolicyError(f"pruning.policy: the workers know {', '.join(known) or 'none'}.")


def _check_contract(ask: Ask, settings: Settings, workers: Sequence[WorkerInfo]) -> None:
    """In the middle of an upgrade the workers alive may not know yet what this service knows."""
    newest = max((worker.contract for worker in workers), default=CONTRACT_VERSION)
    known = min(newest, settings.contract)
    if ask.messages and known < CONVERSATIONS_SINCE:
        raise UnavailableError("No worker that answers conversations is alive; the deployment is being upgraded.")
    if ask.pruning.method in BASELINES and known < BASELINES_SINCE:
        raise UnavailableError("No worker with this pruning method is alive; the deployment is being upgraded.")


def _image(image: ImageInput, name: str) -> bytes | RemoteImage:
    return decode_base64(image.data or "", name) if image.url is None else image_at(image.url, f"{name}.url")


def image_at(url: str, name: str) -> bytes | RemoteImage:
    """What a URL stands for: the bytes in a data: URL, or an image to fetch.

    Raises `InvalidRequestError`, which calls the URL `name`.
    """
    scheme, _, rest = url.partition(":")
    if scheme.lower() in ("http", "https"):
        return RemoteImage(url, name)
    head, comma, text = rest.partition(",")
    if scheme.lower() != "data" or not comma or not head.lower().endswith(";base64"):
        raise InvalidRequestError(f"{name}: expected data:TYPE;base64,DATA")
    return decode_base64(text, name)


def decode_base64(text: str, name: str) -> bytes:
    """The bytes of a text in base64. Raises `InvalidRequestError`, which calls it `name`."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequestError(f"{name}: not valid base64") from None
