"""Parsing without any I/O: both content types say the same, headers mean what the RFCs say."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from service.auth import ANONYMOUS, KeyRing
from service.delivery import read_delivery
from service.images import ImageLimits, inspect
from service.intake import AskOptions, Prepared, parse_form, parse_json, prepare
from service.problems import InvalidRequestError, ServiceError, UnauthorizedError
from tests.service.conftest import picture
from worker.contract import JobRequest, Priority, PruningOptions
from worker.settings import Settings

LIMITS = ImageLimits(max_bytes=10_000, max_pixels=1_000_000, min_side=28, max_aspect=100)


def prepared(body: dict[str, Any]) -> Prepared:
    return prepare(parse_json(json.dumps(body).encode(), Settings()), Settings(), [])


def test_a_form_and_a_json_body_give_the_same_question() -> None:
    file = picture()
    by_form = parse_form(
        [
            ("prompt", "?"),
            ("max_tokens", "5"),
            ("temperature", "0.5"),
            ("stop", "a"),
            ("stop", "b"),
            ("stream", "true"),
            ("pruning", '{"method": "none"}'),
            ("include", "pruning_map"),
        ],
        [file],
    )
    by_json = parse_json(
        json.dumps(
            {
                "prompt": "?",
                "max_tokens": 5,
                "temperature": 0.5,
                "stop": ["a", "b"],
                "stream": True,
                "pruning": {"method": "none"},
                "include": ["pruning_map"],
                "images": [{"url": "data:image/png;base64," + base64.b64encode(file).decode()}],
            }
        ).encode(),
        Settings(),
    )
    first, second = prepare(by_form, Settings(), []), prepare(by_json, Settings(), [])
    assert first == second
    assert first.body_hash == second.body_hash


def test_a_form_field_that_nobody_filled_in_counts_as_left_out() -> None:
    empty = [(name, "") for name in ("image", "seed", "stop", "include", "timeout_s", "pruning", "priority", "stream")]
    assert parse_form([("prompt", "?"), *empty], []) == parse_form([("prompt", "?")], [])
    for fields in ([("prompt", "")], [("prompt", "?"), ("colour", "")]):
        with pytest.raises(InvalidRequestError):
            parse_form(fields, [])


def test_the_body_hash_follows_the_answer_and_not_its_delivery() -> None:
    base = {"prompt": "?"}
    same = prepared(base).body_hash
    assert prepared({**base, "stream": True}).body_hash == same
    assert prepared({**base, "timeout_s": 60}).body_hash == same
    small, large = ({"data": base64.b64encode(picture(width)).decode()} for width in (64, 80))
    changes: list[dict[str, Any]] = [
        {"prompt": "!"},
        {"seed": 1},
        {"max_tokens": 5},
        {"temperature": 0.5},
        {"top_p": 0.5},
        {"stop": ["x"]},
        {"pruning": {"method": "none"}},
        {"pruning": {"method": "fastv"}},
        {"pruning": {"policy": "p"}},
        {"pruning": {"retention": 0.2}},
        {"priority": "batch"},
        {"timeout_s": 61},
        {"include": ["pruning_map"]},
        {"images": [small]},
        {"images": [large]},
        {"images": [small, large]},
        {"images": [large, small]},
    ]
    hashes = {prepared({**base, **change}).body_hash for change in changes}
    assert len(hashes | {same}) == len(changes) + 1
    named = {name for change in changes for name in change} | {"stream"}
    assert named == {*AskOptions.model_fields, "images"}  # a new option needs its line here
    assert {name for change in changes for name in change.get("pruning", ())} == set(PruningOptions.model_fields)


def test_a_job_request_keeps_every_option() -> None:
    request = prepared({"prompt": "?", "seed": 3, "top_p": 0.5, "pruning": {"policy": "p", "retention": 0.2}}).request
    assert request.generation.seed == 3
    assert request.generation.top_p == 0.5
    assert (request.pruning.policy, request.pruning.retention) == ("p", 0.2)
    assert JobRequest.model_validate_json(request.model_dump_json()) == request


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_with_a_problem_of_ours(data: bytes) -> None:
    with pytest.raises(ServiceError):
        inspect(data, LIMITS)


@given(st.sampled_from(["JPEG", "PNG", "WEBP"]), st.integers(0, 120), st.binary(max_size=8))
def test_a_mutated_header_never_raises_anything_else(kind: str, at: int, patch: bytes) -> None:
    data = picture(kind=kind)
    try:
        reference = inspect(data[:at] + patch + data[at + len(patch) :], LIMITS)
    except ServiceError:
        return
    assert reference.format == kind


@pytest.mark.parametrize(
    ("headers", "respond_async", "wait_s", "events"),
    [
        ([], False, 0, False),
        ([("prefer", "respond-async")], True, 0, False),
        ([("prefer", "Respond-Async, wait=10")], True, 10, False),
        ([("prefer", "respond-async"), ("prefer", "wait=5")], True, 5, False),
        ([("prefer", "respond-async; wait=9999")], True, 60, False),
        ([("prefer", "wait=abc, return=minimal")], False, 0, False),
        ([("accept", "text/event-stream")], False, 0, True),
        ([("accept", "application/json, text/event-stream;q=0.5")], False, 0, True),
        ([("accept", "text/event-stream;q=0")], False, 0, False),
        ([("accept", "*/*")], False, 0, False),
    ],
)
def test_headers_say_how_to_deliver(
    headers: list[tuple[str, str]], respond_async: bool, wait_s: float, events: bool
) -> None:
    delivery = read_delivery(Headers(raw=[(name.encode(), value.encode()) for name, value in headers]))
    assert (delivery.respond_async, delivery.wait_s, delivery.events) == (respond_async, wait_s, events)


def test_a_malformed_event_id_is_refused() -> None:
    with pytest.raises(InvalidRequestError):
        read_delivery(Headers({"last-event-id": "-1"}))


def test_without_keys_everybody_is_anonymous_and_with_keys_nobody() -> None:
    assert KeyRing(Settings()).caller(None).owner == ANONYMOUS
    digest = "2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683"  # of "key"
    keys = KeyRing(Settings(api_keys=f"ada:{digest}"))
    assert keys.caller("key").owner == "ada"
    for wrong in (None, "", "Key", "key "):
        with pytest.raises(UnauthorizedError):
            keys.caller(wrong)


def test_priorities_are_those_of_the_contract() -> None:
    assert prepared({"prompt": "?", "priority": "batch"}).priority is Priority.BATCH
