"""What the API documentation says beyond the routes' signatures: bodies, errors and examples."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.intake import AskOptions, AskRequest
from service.problems import MEDIA_TYPE
from worker.contract import PROBLEMS, Problem

DESCRIPTION = (
    "Ask questions about images. Vision tokens that the answer does not need are pruned with ERASE; every answer "
    "says how many. An accepted request ends in exactly one outcome, whatever process is killed."
)

_REF = "#/components/schemas/"
_TEMPLATE = _REF + "{model}"

ANSWER_EXAMPLE: dict[str, Any] = {
    "id": "job_0199d2c8a4f01b2c3d4e5f60718293a4",
    "answer": "42",
    "finish_reason": "stop",
    "model": "demo",
    "usage": {
        "prompt_tokens": 275,
        "completion_tokens": 2,
        "vision_tokens": {"input": 256, "after_stage1": 180, "kept": 38, "layer_average": 92.0},
        "token_reduction": 0.64,
    },
    "pruning": {"policy": "demo", "requested": 0.15, "final": 0.148, "layer_average": 0.36},
    "images": [{"width": 448, "height": 448, "tokens": 256, "complexity": 1.31}],
    "timings_ms": {
        "queue": 2.1,
        "preprocess": 6.0,
        "encode": 18.2,
        "prefill": 9.4,
        "decode": 3.3,
        "first_token": 36.0,
        "total": 39.5,
    },
}

PROBLEM_EXAMPLE: dict[str, Any] = {
    "type": "urn:erase:problem:invalid-request",
    "title": PROBLEMS["invalid-request"].title,
    "status": 422,
    "detail": "prompt: the prompt is empty",
    "errors": [{"field": "prompt", "message": "the prompt is empty"}],
}

_STREAM_EXAMPLE = (
    'event: token\ndata: {"seq": 1, "text": "42"}\nid: 1\n\nevent: result\ndata: {"id": "job_0199..."}\nid: 2\n'
)


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    responses: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        kinds = [f"`{kind}`" for kind, row in PROBLEMS.items() if row.status == status]
        responses[status] = {
            "description": " or ".join(kinds),
            "content": {MEDIA_TYPE: {"schema": {"$ref": _REF + "Problem"}}},
        }
    return responses


_EVENTS: dict[str, Any] = {"text/event-stream": {"schema": {"type": "string"}, "example": _STREAM_EXAMPLE}}

ASK_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer, or with `stream` its events",
        "content": {"application/json": {"example": ANSWER_EXAMPLE}, **_EVENTS},
    },
    202: {
        "description": "With `Prefer: respond-async`: accepted, `Location` names the job",
        "content": {"application/json": {"example": {"id": ANSWER_EXAMPLE["id"], "state": "accepted"}}},
    },
    **_problems(400, 401, 409, 413, 415, 422, 500, 503, 504),
}
JOB_RESPONSES = _problems(401, 404, 410, 422, 503)
EVENTS_RESPONSES: dict[int | str, dict[str, Any]] = {200: {"description": "Events of the job", "content": _EVENTS}}
UNAVAILABLE_RESPONSE = _problems(503)

_HEADERS = [
    ("Prefer", "`respond-async`, optionally with `wait=SECONDS`: answer 202 and a job"),
    ("Idempotency-Key", "the same key and body attach to the same job; another body is refused"),
    ("Last-Event-ID", "with `stream` and a known Idempotency-Key: resume after this event"),
]


def _form_schema() -> dict[str, Any]:
    schema = AskOptions.model_json_schema(ref_template=_TEMPLATE)
    schema.pop("$defs", None)
    properties = dict(schema["properties"])
    properties["image"] = {"type": "array", "items": {"type": "string", "format": "binary"}}
    properties["pruning"] = {
        "type": "string",
        "contentMediaType": "application/json",
        "description": "a JSON object with method, policy and retention",
    }
    return {**schema, "title": "AskForm", "properties": properties}


ASK_BODY: dict[str, Any] = {
    "parameters": [
        {"name": name, "in": "header", "required": False, "description": text, "schema": {"type": "string"}}
        for name, text in _HEADERS
    ],
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": {"$ref": _REF + "AskForm"}},
            "application/json": {
                "schema": {"$ref": _REF + "AskRequest"},
                "examples": {
                    "question": {
                        "summary": "One image as base64",
                        "value": {"prompt": "Which number is at A?", "images": [{"data": "iVBORw0KGgo..."}]},
                    },
                    "pruned": {
                        "summary": "A data URL, keeping 15% of the vision tokens",
                        "value": {
                            "prompt": "Which number is at A?",
                            "images": [{"url": "data:image/png;base64,iVBORw0KGgo..."}],
                            "max_tokens": 16,
                            "pruning": {"method": "erase", "retention": 0.15},
                        },
                    },
                },
            },
        },
    },
}


class ServiceAPI(FastAPI):
    """FastAPI whose schema also knows the body of `/v1/ask`, which is read by hand, and the problem object."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document, built once."""
        if self.openapi_schema is None:
            schema = get_openapi(title=self.title, version=self.version, description=DESCRIPTION, routes=self.routes)
            schemas = schema.setdefault("components", {}).setdefault("schemas", {})
            for model in (AskRequest, Problem):
                definition = model.model_json_schema(ref_template=_TEMPLATE)
                schemas.update(definition.pop("$defs", {}))
                schemas[model.__name__] = definition
            schemas["AskForm"] = _form_schema()
            schemas["Problem"]["examples"] = [PROBLEM_EXAMPLE]
            self.openapi_schema = schema
        return self.openapi_schema
