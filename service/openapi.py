"""What the API documentation says beyond the routes' signatures: bodies, errors and examples."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.chat_request import ChatRequest
from service.intake import AskOptions, AskRequest
from service.problems import MEDIA_TYPE
from worker.contract import PROBLEMS, Problem

DESCRIPTION = (
    "Ask questions about images. Vision tokens that the answer does not need are pruned with ERASE; every answer "
    "says how many. An accepted request ends in exactly one outcome, whatever process is killed."
)

_REF = "#/components/schemas/"
_TEMPLATE = _REF + "{model}"

PROMPT_EXAMPLE = "What is the fee?"
ANSWER_EXAMPLE: dict[str, Any] = {
    "id": "job_01a207af812b87f196a7aa543415dbe7",
    "answer": "8.10",
    "finish_reason": "stop",
    "model": "demo",
    "usage": {
        "prompt_tokens": 282,
        "completion_tokens": 5,
        "vision_tokens": {"input": 256, "after_stage1": 75, "kept": 37, "layer_average": 63.12},
        "token_reduction": 0.7534,
    },
    "pruning": {"policy": "demo", "requested": 0.25, "final": 0.1445, "layer_average": 0.2466},
    "images": [{"width": 448, "height": 448, "tokens": 256, "complexity": 0.5391}],
    "timings_ms": {
        "queue": 3.8,
        "preprocess": 19.18,
        "encode": 0.02,
        "prefill": 91.87,
        "decode": 97.95,
        "first_token": 114.86,
        "total": 214.69,
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
    'event: token\ndata: {"seq": 1, "text": "8"}\nid: 1\n\nevent: result\ndata: {"id": "job_01a2..."}\nid: 2\n'
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


# No type: some tools judge the whole stream by a schema, others each of its events.
_EVENTS: dict[str, Any] = {
    "text/event-stream": {"schema": {"description": "server-sent events"}, "example": _STREAM_EXAMPLE}
}

ASK_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer, or with `stream` its events",
        "content": {"application/json": {"example": ANSWER_EXAMPLE}, **_EVENTS},
    },
    202: {
        "description": "With `Prefer: respond-async`: accepted, `Location` names the job",
        "content": {"application/json": {"example": {"id": ANSWER_EXAMPLE["id"], "state": "accepted"}}},
    },
    **_problems(400, 401, 403, 409, 413, 415, 422, 429, 500, 503, 504),
}
JOB_RESPONSES = _problems(401, 403, 404, 410, 422, 429, 503)
EVENTS_RESPONSES: dict[int | str, dict[str, Any]] = {200: {"description": "Events of the job", "content": _EVENTS}}
UNAVAILABLE_RESPONSE = _problems(503)

_OPENAI_ERROR: dict[str, Any] = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}

_HEADERS = [
    ("Prefer", "`respond-async`, optionally with `wait=SECONDS`: answer 202 and a job"),
    ("Idempotency-Key", "the same key and body attach to the same job; another body is refused"),
    ("Last-Event-ID", "with `stream` and a known Idempotency-Key: resume after this event"),
]


_FORM_EXAMPLES: dict[str, Any] = {
    "prompt": PROMPT_EXAMPLE,
    "seed": 7,
    "timeout_s": 60,
    "pruning": '{"method": "erase", "retention": 0.4}',
}


def _form_schema() -> dict[str, Any]:
    """The options as form fields: images and prompt first, and examples that can be sent as they stand."""
    schema = AskOptions.model_json_schema(ref_template=_TEMPLATE)
    options = {name: _form_field(field) for name, field in schema["properties"].items()}
    options["pruning"] = {"type": "string", "description": "a JSON object with method, policy and retention"}
    for name, example in _FORM_EXAMPLES.items():
        options[name]["examples"] = [example]
    images = {"type": "array", "items": {"type": "string", "format": "binary"}, "description": "JPEG, PNG or WebP"}
    return {
        "title": "AskForm",
        "type": "object",
        "additionalProperties": False,
        "required": schema["required"],
        "properties": {"image": images, "prompt": options.pop("prompt"), **options},
    }


def _form_field(field: dict[str, Any]) -> dict[str, Any]:
    """A field without null, which a form cannot send."""
    kinds = [kind for kind in field.get("anyOf", []) if kind.get("type") != "null"]
    field = {name: value for name, value in field.items() if name != "anyOf" and (name, value) != ("default", None)}
    return {**field, **(kinds[0] if kinds else {})}


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
                        "value": {"prompt": PROMPT_EXAMPLE, "images": [{"data": "iVBORw0KGgo..."}]},
                    },
                    "pruned": {
                        "summary": "A data URL, keeping 15% of the vision tokens",
                        "value": {
                            "prompt": PROMPT_EXAMPLE,
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


CHAT_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": "An error in OpenAI's shape", "content": {"application/json": {"schema": _OPENAI_ERROR}}}
    for status in (400, 401, 403, 404, 409, 413, 415, 429, 500, 503, 504)
}
MODEL_RESPONSES: dict[int | str, dict[str, Any]] = {status: CHAT_RESPONSES[status] for status in (401, 403, 404, 503)}
CHAT_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": _REF + "ChatRequest"},
                "example": {
                    "model": "demo",
                    "messages": [
                        {
                            "role": "user",
                            "content": [
                                {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo..."}},
                                {"type": "text", "text": PROMPT_EXAMPLE},
                            ],
                        }
                    ],
                },
            }
        },
    }
}


class ServiceAPI(FastAPI):
    """FastAPI whose schema also knows the bodies that are read by hand, and the problem object."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document, built once."""
        if self.openapi_schema is None:
            schema = get_openapi(title=self.title, version=self.version, description=DESCRIPTION, routes=self.routes)
            schemas = schema.setdefault("components", {}).setdefault("schemas", {})
            for model in (AskRequest, ChatRequest, Problem):
                definition = model.model_json_schema(ref_template=_TEMPLATE)
                schemas.update(definition.pop("$defs", {}))
                schemas[model.__name__] = definition
            schemas["AskForm"] = _form_schema()
            schemas["Problem"]["examples"] = [PROBLEM_EXAMPLE]
            self.openapi_schema = schema
        return self.openapi_schema
