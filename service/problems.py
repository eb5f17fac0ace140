"""Every error a client can see: one exception tree, and the handlers that write it as RFC 9457 problem+json.

    ServiceError
    |- InvalidRequestError          422    |- UnauthorizedError         401
    |- MalformedBodyError           400    |- NotFoundError             404
    |- UnsupportedMediaTypeError    415    |- GoneError                 410
    |- TooLargeError                413    |- IdempotencyMismatchError  422
    |- InvalidImageError            422    |- QueueFullError            503
    |- UnsupportedImageFormatError  415    |- UnavailableError          503
    |- UnknownPolicyError           422    |     `- JobLostError        503
    |- UnknownModelError            404    |- StorageFullError          503
    |- UnreachableImageError        422    |- RateLimitError            429
    `- ForbiddenError               403    |- TooManyRequestsError      429
                                           `- OpenJobsLimitError        429

The routes with OpenAI's shapes get OpenAI's shape of an error instead.

Details are our own sentences: never the text of a decoder, a driver or an unexpected exception.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from redis.exceptions import OutOfMemoryError, RedisError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Scope

from worker.contract import PROBLEMS, Problem, kind_of, problem

logger = logging.getLogger("erase.service")

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 2
OPENAI_PATHS = ("/v1/chat/completions", "/v1/models")
_OPENAI_CODES = {"unauthorized": "invalid_api_key", "unknown-model": "model_not_found"}
CLIENT_LEFT = 499
_MOST_ERRORS = 20


class ServiceError(Exception):
    """An error for the client. `kind` is a row of `contract.PROBLEMS`; `errors` name fields and what is wrong."""

    kind: ClassVar[str] = "internal"

    def __init__(
        self, detail: str, *, errors: Sequence[Mapping[str, str]] = (), retry_after_s: int | None = None
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = tuple(dict(error) for error in errors[:_MOST_ERRORS])
        self.retry_after_s = retry_after_s

    def problem(self) -> Problem:
        """The problem object of this error."""
        return problem(self.kind, self.detail, errors=self.errors or None)


class InvalidRequestError(ServiceError):
    """A field is missing, unknown, of the wrong type or out of range."""

    kind = "invalid-request"


class MalformedBodyError(ServiceError):
    """The body is not what its content type says."""

    kind = "malformed-body"


class UnsupportedMediaTypeError(ServiceError):
    """The content type is neither multipart/form-data nor application/json."""

    kind = "unsupported-media-type"


class TooLargeError(ServiceError):
    """Body, image or number of pixels over the limit."""

    kind = "too-large"


class InvalidImageError(ServiceError):
    """The file is damaged, empty, animated, too small or too elongated."""

    kind = "invalid-image"


class UnsupportedImageFormatError(ServiceError):
    """The file is not JPEG, PNG or WebP."""

    kind = "unsupported-image-format"


class UnreachableImageError(ServiceError):
    """An image URL may not be fetched, or nothing usable is there."""

    kind = "unreachable-image"


class UnknownPolicyError(ServiceError):
    """No worker knows the pruning policy."""

    kind = "unknown-policy"


class UnknownModelError(ServiceError):
    """No worker serves the model."""

    kind = "unknown-model"


class UnauthorizedError(ServiceError):
    """No API key, or none that is known."""

    kind = "unauthorized"


class ForbiddenError(ServiceError):
    """The key lacks the scope."""

    kind = "forbidden"


class NotFoundError(ServiceError):
    """No such job, or another owner's."""

    kind = "not-found"


class GoneError(ServiceError):
    """The job existed; its result has expired."""

    kind = "gone"


class IdempotencyMismatchError(ServiceError):
    """The key stands for another body."""

    kind = "idempotency-mismatch"


class QueueFullError(ServiceError):
    """As many jobs are open as the deployment allows."""

    kind = "queue-full"


class StorageFullError(ServiceError):
    """Redis has no room for another request."""

    kind = "storage-full"

    def __init__(self) -> None:
        super().__init__("The store of jobs has no room for another request at the moment.")


class RateLimitError(ServiceError):
    """The key's owner asks more often than it may."""

    kind = "rate-limit"


class TooManyRequestsError(ServiceError):
    """As many requests of the key's owner are being answered as it may have."""

    kind = "too-many-requests"


class OpenJobsLimitError(ServiceError):
    """As many jobs of the key's owner are open as it may have."""

    kind = "open-jobs-limit"


class UnavailableError(ServiceError):
    """Redis is unreachable, full, or may lose what it accepts."""

    kind = "unavailable"


class JobLostError(UnavailableError):
    """Redis no longer knows a job that it had accepted."""


def note_outcome(scope: Scope, value: Problem) -> None:
    """Remember for the request's log line how its job failed; as a refusal of the request it does not count."""
    scope["erase.job_problem"] = kind_of(value)


def problem_response(value: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """A problem as an HTTP response; 429 and 503 always say when to try again."""
    body = value.model_dump_json(exclude_none=True)
    return Response(body, value.status, _with_advice(value, headers), MEDIA_TYPE)


def openai_error(value: Problem) -> dict[str, Any]:
    """A problem in the shape of OpenAI's errors; `code` is the problem's type without its prefix."""
    kind = kind_of(value)
    fault = {401: "authentication_error", 429: "rate_limit_error"}.get(value.status, "invalid_request_error")
    return {
        "error": {
            "message": value.detail,
            "type": "server_error" if value.status >= 500 else fault,
            "param": value.errors[0]["field"] if value.errors else None,
            "code": _OPENAI_CODES.get(kind, kind.replace("-", "_")),
        }
    }


def openai_response(value: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """A problem as a response of the routes with OpenAI's shapes, which know no 422."""
    status = 400 if value.status == 422 else value.status
    body = json.dumps(openai_error(value), ensure_ascii=False)
    return Response(body, status, _with_advice(value, headers), "application/json")


def _with_advice(value: Problem, headers: Mapping[str, str] | None) -> dict[str, str]:
    extra = dict(headers or {})
    if value.status in (429, 503):
        extra.setdefault("Retry-After", str(RETRY_AFTER_S))
    if value.status == 401:
        extra.setdefault("WWW-Authenticate", "Bearer")
    return extra


def _respond(request: Request, value: Problem, headers: Mapping[str, str] | None = None) -> Response:
    write = openai_response if request.scope["path"].startswith(OPENAI_PATHS) else problem_response
    return write(value, headers)


def field_errors(errors: Sequence[Any], skip: int = 0) -> list[dict[str, str]]:
    """Validation errors of pydantic as `{field, message}`, without the values that were sent."""
    return [
        {
            "field": ".".join(str(part) for part in error["loc"][skip:])[:100] or "body",
            "message": str(error["msg"]).removeprefix("Value error, "),
        }
        for error in errors
    ]


def invalid_fields(errors: Sequence[Any], skip: int = 0) -> InvalidRequestError:
    """One error that names every field that is wrong."""
    named = field_errors(errors, skip)
    first = f"{named[0]['field']}: {named[0]['message']}"
    more = f" (and {len(named) - 1} more)" if len(named) > 1 else ""
    return InvalidRequestError(first + more, errors=named)


_HTTP_KINDS = {
    400: ("malformed-body", "The request cannot be parsed."),
    404: ("not-found", "There is nothing at this address; /docs lists the routes."),
    405: ("method-not-allowed", "This address does not answer this method."),
    413: ("too-large", "The request body is larger than this service allows."),
    415: ("unsupported-media-type", "Send multipart/form-data or application/json."),
}


async def _on_service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)  # noqa: S101
    request.scope["erase.problem"] = error.kind
    wait = error.retry_after_s
    return _respond(request, error.problem(), {} if wait is None else {"Retry-After": str(wait)})


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    kind, detail = _HTTP_KINDS.get(error.status_code, ("invalid-request", "The request cannot be served."))
    request.scope["erase.problem"] = kind
    value = problem(kind, detail)
    if value.status != error.status_code:
        value = value.model_copy(update={"status": error.status_code})
    return _respond(request, value, error.headers)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    return await _on_service_error(request, invalid_fields(error.errors(), skip=1))


async def _on_redis_error(request: Request, error: Exception) -> Response:
    logger.error("Redis failed during %s: %s", request.method, type(error).__name__)
    if isinstance(error, OutOfMemoryError):
        return await _on_service_error(request, StorageFullError())
    return await _on_service_error(request, UnavailableError("The store of jobs cannot be used at the moment."))


async def _on_client_left(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_LEFT)


async def _on_unexpected(request: Request, error: Exception) -> Response:
    # This answer is made outside the middleware that names all others.
    headers = {"X-Request-ID": request.scope.get("erase.request_id", "")}
    return _respond(request, problem("internal", PROBLEMS["internal"].title + "; the log has the details."), headers)


def install(app: FastAPI) -> None:
    """Make the application answer every error as problem+json."""
    app.add_exception_handler(ServiceError, _on_service_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(RedisError, _on_redis_error)
    app.add_exception_handler(ClientDisconnect, _on_client_left)
    app.add_exception_handler(Exception, _on_unexpected)
