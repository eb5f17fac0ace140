"""Whatever is wrong with a request is said as problem+json with a stable type, and never becomes a job."""

from __future__ import annotations

import base64
import io
import re
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastapi_swagger
import pytest
import redis
from PIL import Image

from service.embedded_redis import EmbeddedRedis
from tests.service.conftest import FakeWorker, Service, make_settings, picture, running_service
from tests.service.test_ask import problem_of
from worker.contract import OPEN_KEY, WORKERS_KEY, WorkerInfo


def png_announcing(width: int, height: int) -> bytes:
    """A PNG whose header announces any size and whose pixels are missing."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b"IDAT" + zlib.compress(b"")
    chunks = b"".join(
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (header, body)
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


def webp_announcing(width: int, height: int) -> bytes:
    """A lossless WebP header that announces up to 16384 x 16384 pixels."""
    bits = (width - 1) | (height - 1) << 14
    chunk = b"VP8L" + struct.pack("<I", 10) + b"\x2f" + struct.pack("<I", bits) + bytes(5)
    return b"RIFF" + struct.pack("<I", len(chunk) + 4) + b"WEBP" + chunk


def many_scans(number: int, **options: Any) -> bytes:
    """A progressive JPEG whose last scan comes again and again: each is work for the whole picture."""
    file = picture(32, 32, kind="JPEG", progressive=True, **options)
    return file[:-2] + file[file.rindex(b"\xff\xda") : -2] * number + file[-2:]


def many_chunks(name: bytes, number: int) -> bytes:
    """A PNG with empty chunks of this name before its pixels."""
    file = picture()
    chunk = struct.pack(">I", 0) + name + struct.pack(">I", zlib.crc32(name))
    start = file.index(b"IDAT") - 4
    return file[:start] + chunk * number + file[start:]


def before_the_picture(filling: bytes) -> bytes:
    """A JPEG with something in front of its first segment."""
    file = picture(kind="JPEG")
    return file[:2] + filling + file[2:]


def hidden_scans() -> bytes:
    """A JPEG with restart markers whose scans stand behind a marker that decoders throw away without its length."""
    file = many_scans(1_000, restart_marker_blocks=1)
    first = file.index(b"\xff\xd0")
    return file[:first] + b"\xff\x02\xff\xff" + file[first:]


def animated(kind: str) -> bytes:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], duration=100)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def shared(redis_server: EmbeddedRedis) -> Iterator[Service]:
    settings = make_settings(
        redis_server.url, max_body_bytes=300_000, max_image_bytes=100_000, max_image_pixels=1_000_000, max_images=3
    )
    with running_service(settings) as running:
        yield running


@pytest.fixture
def small(shared: Service, redis_client: redis.Redis) -> Iterator[Service]:
    yield shared
    assert redis_client.zcard(OPEN_KEY) == 0, "a refused request became a job"


BAD_IMAGES = {
    "empty": (b"", 422, "invalid-image"),
    "not an image": (b"hello world" * 10, 415, "unsupported-image-format"),
    "NUL bytes": (bytes(1000), 415, "unsupported-image-format"),
    "truncated JPEG header": (picture(kind="JPEG")[:15], 422, "invalid-image"),
    "truncated PNG header": (picture()[:20], 422, "invalid-image"),
    "truncated WebP header": (picture(kind="WEBP")[:18], 422, "invalid-image"),
    "broken PNG chunk": (picture()[:12] + b"XXXX" + picture()[16:], 422, "invalid-image"),
    "huge announced PNG": (png_announcing(100_000, 100_000), 413, "too-large"),
    "overflowing PNG": (png_announcing(2**31 - 1, 2**31 - 1), 413, "too-large"),
    "huge announced WebP": (webp_announcing(16384, 16384), 413, "too-large"),
    "too many bytes": (png_announcing(64, 64) + bytes(100_001), 413, "too-large"),
    "one pixel": (picture(1, 1), 422, "invalid-image"),
    "too narrow": (picture(27, 100), 422, "invalid-image"),
    "too long": (picture(28, 2801), 422, "invalid-image"),
    "GIF": (picture(kind="GIF"), 415, "unsupported-image-format"),
    "BMP": (picture(kind="BMP"), 415, "unsupported-image-format"),
    "TIFF": (picture(kind="TIFF"), 415, "unsupported-image-format"),
    "JPEG of 200 scans": (many_scans(200), 422, "invalid-image"),
    "JPEG of hidden scans": (hidden_scans(), 422, "invalid-image"),
    "JPEG of comments behind a marker without a length": (
        before_the_picture(b"\xff\xf0\xff\xff" + b"\xff\xfe\x00\x02" * 16_383),
        422,
        "invalid-image",
    ),
    "JPEG of 3000 comments": (before_the_picture(b"\xff\xfe\x00\x02" * 3000), 422, "invalid-image"),
    "JPEG after 3000 fill bytes": (before_the_picture(b"\xff" * 3000), 422, "invalid-image"),
    "JPEG of fill bytes only": (b"\xff\xd8" + b"\xff" * 9000, 422, "invalid-image"),
    "PNG of 1200 private chunks": (many_chunks(b"prVt", 1200), 422, "invalid-image"),
    "PNG of 3000 empty data chunks": (many_chunks(b"IDAT", 3000), 422, "invalid-image"),
    "animated PNG": (animated("PNG"), 422, "invalid-image"),
    "animated WebP": (animated("WEBP"), 422, "invalid-image"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_an_image_that_cannot_be_used_is_refused_before_decoding(small: Service, name: str) -> None:
    data, status, kind = BAD_IMAGES[name]
    by_form = small.http.post("/v1/ask", files={"image": ("x.png", data)}, data={"prompt": "?"})
    by_json = small.ask(images=[{"data": base64.b64encode(data).decode()}])
    for response in (by_form, by_json):
        assert (response.status_code, problem_of(response)) == (status, kind)
        assert response.json()["detail"].startswith("image 0 ")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_truncated_file_with_a_good_header_is_left_to_the_worker(
    service: Service, worker: FakeWorker, kind: str
) -> None:
    image = Image.effect_noise((200, 200), 90).convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, kind)
    file = buffer.getvalue()[: len(buffer.getvalue()) // 2]
    response = service.http.post(
        "/v1/ask", files={"image": file}, data={"prompt": "?"}, headers={"Prefer": "respond-async"}
    )
    if kind == "WEBP":
        # Its container announces its length, so this one is noticed at once.
        assert problem_of(response) == "invalid-image"
    else:
        assert response.status_code == 202
        assert worker.take().request.images[0].width == 200


@pytest.mark.parametrize(
    "file",
    [
        picture() + bytes(20_000),
        picture(kind="JPEG") + b"\xff\xda\x00\x08" * 500,
        picture(kind="JPEG", progressive=True, icc_profile=bytes(1_000_000)),
        picture(400, 400, kind="JPEG", restart_marker_blocks=1),
        picture(400, 400, kind="JPEG", exif=b"Exif\0\0" + b"\xff\xda" * 30_000),
        many_chunks(b"prVt", 900),
    ],
    ids=[
        "padded PNG",
        "data behind a JPEG",
        "colour profile",
        "restart markers",
        "scans in an EXIF block",
        "many chunks",
    ],
)
def test_odd_but_honest_files_are_taken(service: Service, worker: FakeWorker, file: bytes) -> None:
    image = {"data": base64.b64encode(file).decode()}
    assert service.ask(images=[image], headers={"Prefer": "respond-async"}).status_code == 202
    assert worker.take().request.images[0].bytes == len(file)


def test_a_multi_picture_jpeg_counts_as_its_first_picture(service: Service, worker: FakeWorker) -> None:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "MPO", save_all=True, append_images=frames[1:])
    image = {"data": base64.b64encode(buffer.getvalue()).decode()}
    service.ask(images=[image], headers={"Prefer": "respond-async"})
    assert worker.take().request.images[0].format == "JPEG"


BAD_JSON: dict[str, tuple[Any, str]] = {
    "no prompt": ({}, "prompt"),
    "empty prompt": ({"prompt": ""}, "prompt"),
    "blank prompt": ({"prompt": " \n"}, "prompt"),
    "NUL in the prompt": ({"prompt": "a\0b"}, "prompt"),
    "prompt of the wrong type": ({"prompt": 5}, "prompt"),
    "prompt too long": ({"prompt": "x" * 20_001}, "prompt"),
    "unknown field": ({"prompt": "?", "modle": "x"}, "modle"),
    "unknown pruning option": ({"prompt": "?", "pruning": {"ratio": 1}}, "pruning.ratio"),
    "number as text": ({"prompt": "?", "max_tokens": "5"}, "max_tokens"),
    "no tokens": ({"prompt": "?", "max_tokens": 0}, "max_tokens"),
    "hot": ({"prompt": "?", "temperature": 2.1}, "temperature"),
    "top_p": ({"prompt": "?", "top_p": 0}, "top_p"),
    "seed": ({"prompt": "?", "seed": -1}, "seed"),
    "retention": ({"prompt": "?", "pruning": {"retention": 0}}, "pruning.retention"),
    "method": ({"prompt": "?", "pruning": {"method": "magic"}}, "pruning.method"),
    "two wishes": ({"prompt": "?", "pruning": {"method": "none", "retention": 0.5}}, "pruning: the method"),
    "priority": ({"prompt": "?", "priority": "urgent"}, "priority"),
    "stop as text": ({"prompt": "?", "stop": "x"}, "stop"),
    "too many stops": ({"prompt": "?", "stop": ["a", "b", "c", "d", "e"]}, "stop"),
    "deadline": ({"prompt": "?", "timeout_s": 601}, "timeout_s"),
    "no time": ({"prompt": "?", "timeout_s": 0}, "timeout_s"),
    "include": ({"prompt": "?", "include": ["weights"]}, "include"),
    "too many images": ({"prompt": "?", "images": [{"data": ""}] * 4}, "images"),
    "image without data": ({"prompt": "?", "images": [{}]}, "images.0"),
    "image with both": ({"prompt": "?", "images": [{"url": "data:,", "data": ""}]}, "images.0"),
    "http image": ({"prompt": "?", "images": [{"url": "http://169.254.169.254/latest"}]}, "images.0.url"),
    "https image": ({"prompt": "?", "images": [{"url": "HTTPS://example.com/a.png"}]}, "images.0.url"),
    "file image": ({"prompt": "?", "images": [{"url": "file:///etc/passwd"}]}, "images.0.url"),
    "data URL without base64": ({"prompt": "?", "images": [{"url": "data:image/png,abc"}]}, "images.0.url"),
    "bad base64": ({"prompt": "?", "images": [{"data": "!!!"}]}, "images.0"),
    "base64 that is not ASCII": ({"prompt": "?", "images": [{"data": "\N{SNOWMAN}"}]}, "images.0"),
    "more values than a question has": ({"prompt": "?", "images": [1] * 30_000}, "the body"),
    "a list": ([], "body"),
}


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/ask", {"prompt": "?", "images": [{}] * 20_000}, "images.0"),
        ("/v1/ask", {"prompt": "?", "stop": [1] * 20_000}, "stop.0"),
        ("/v1/chat/completions", {"model": "m", "messages": [1] * 20_000}, "messages.0"),
    ],
)
def test_of_a_list_only_the_first_wrong_item_is_named(small: Service, path: str, body: Any, field: str) -> None:
    """Each error takes kilobytes, so that a small body would take gigabytes."""
    response = small.http.post(path, json=body)
    assert response.status_code in (400, 422)
    assert field in response.text
    more = re.search(r"\(and (\d+) more\)", response.text)
    assert more is None or int(more[1]) == 1, "that there are too many"


def test_a_prompt_may_be_all_commas(service: Service, worker: FakeWorker) -> None:
    assert service.ask("," * 20_000, headers={"Prefer": "respond-async"}).status_code == 202
    assert worker.take().request.prompt == "," * 20_000


@pytest.mark.parametrize("name", BAD_JSON)
def test_a_json_body_with_a_wrong_field_names_it(small: Service, name: str) -> None:
    body, field = BAD_JSON[name]
    response = small.http.post("/v1/ask", json=body)
    assert response.status_code == 422
    assert problem_of(response) == "invalid-request"
    assert response.json()["detail"].startswith(field)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prompt": ""},
        {"prompt": "?", "max_tokens": "five"},
        {"prompt": "?", "temperature": "nan"},
        {"prompt": "?", "timeout_s": "inf"},
        {"prompt": "?", "pruning": "{not json"},
        {"prompt": "?", "pruning": '{"retention": 2}'},
        {"prompt": ["a", "b"]},
        {"prompt": "?", "image": "text"},
        {"prompt": "?", "unknown": "x"},
    ],
)
def test_a_form_with_a_wrong_field_is_refused(small: Service, fields: dict[str, Any]) -> None:
    response = small.http.post("/v1/ask", data=fields, files={"image": picture()})
    assert (response.status_code, problem_of(response)) == (422, "invalid-request")


def test_a_file_under_another_name_is_an_unknown_field(small: Service) -> None:
    response = small.http.post("/v1/ask", data={"prompt": "?"}, files={"picture": picture()})
    assert response.json()["errors"][0]["field"] == "picture"


def test_a_prompt_sent_as_a_file_is_explained(small: Service) -> None:
    response = small.http.post("/v1/ask", files={"prompt": ("question.txt", b"what is this?")})
    assert problem_of(response) == "invalid-request"
    assert response.json()["detail"] == "prompt: send it as a text field, not as a file"


ODD_TEXT = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n?-99999999\r\n--x--\r\n'
PROMPT = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n?'


@pytest.mark.parametrize("left", [0, 1, 3, 30, 90])
def test_a_multipart_body_that_was_cut_off_is_refused(small: Service, left: int) -> None:
    image = b'\r\n--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    body = (PROMPT + image + picture())[: -left or None]
    response = small.http.post("/v1/ask", content=body, headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert (response.status_code, problem_of(response)) == (400, "malformed-body")
    assert "its end is missing" in response.json()["detail"]


@pytest.mark.parametrize(
    ("kind", "body", "status", "name"),
    [
        ("application/json", b"{", 400, "malformed-body"),
        ("application/json", b"", 400, "malformed-body"),
        ("application/json", b"\0\0\0", 400, "malformed-body"),
        ("application/json", b"\xff\xfe", 400, "malformed-body"),
        ("application/json", b"[" * 50_000, 400, "malformed-body"),
        ("application/json", b'{"prompt": "\\ud800"}', 400, "malformed-body"),
        ("multipart/form-data", b"", 400, "malformed-body"),
        ("multipart/form-data; boundary=x", b"hello", 400, "malformed-body"),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\n", 400, "malformed-body"),
        (
            "multipart/form-data; boundary=x; charset=punycode",
            PROMPT + b"-99999999\r\n--x--\r\n",
            400,
            "malformed-body",
        ),
        ("text/plain", b"hello", 415, "unsupported-media-type"),
        ("application/x-www-form-urlencoded", b"prompt=x", 415, "unsupported-media-type"),
        ("", b"hello", 415, "unsupported-media-type"),
    ],
)
def test_a_body_that_cannot_be_parsed_is_refused(
    small: Service, kind: str, body: bytes, status: int, name: str
) -> None:
    response = small.http.post("/v1/ask", content=body, headers={"Content-Type": kind})
    assert (response.status_code, problem_of(response)) == (status, name)


def test_too_many_parts_are_refused(small: Service) -> None:
    files = [("image", ("a.png", picture()))] * 4
    response = small.http.post("/v1/ask", data={"prompt": "?"}, files=files)
    assert problem_of(response) == "invalid-request"
    for count, size in ((100, 1), (1, 200_000)):
        fields = {f"f{number}": "x" * size for number in range(count)}
        response = small.http.post("/v1/ask", data=fields, files={"image": picture()})
        assert (response.status_code, problem_of(response)) == (400, "malformed-body")


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x"])
@pytest.mark.parametrize("announced", [True, False])
def test_an_oversized_body_is_refused_whether_announced_or_not(small: Service, kind: str, announced: bool) -> None:
    start = (
        b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' if "multipart" in kind else b'"'
    )
    body = start + b"x" * 400_000
    content: Any = body if announced else (body[at : at + 50_000] for at in range(0, len(body), 50_000))
    response = small.http.post("/v1/ask", content=content, headers={"Content-Type": kind})
    assert (response.status_code, problem_of(response)) == (413, "too-large")


def test_unknown_addresses_and_methods_are_problems_too(small: Service) -> None:
    for method, url, status, kind in (
        ("GET", "/nothing", 404, "not-found"),
        ("POST", "/v2/ask", 404, "not-found"),
        ("GET", "/v1/ask", 405, "method-not-allowed"),
        ("PUT", "/healthz", 405, "method-not-allowed"),
        ("POST", "/v1/jobs/x", 405, "method-not-allowed"),
    ):
        response = small.http.request(method, url)
        assert (response.status_code, problem_of(response)) == (status, kind)
        if status == 405:
            assert response.headers["allow"]


class TestFilesOfTheApiPage:
    FILE = "/docs/assets/swagger-ui.css"

    @pytest.mark.parametrize(
        "address",
        ["../main.py", "..%2fmain.py", "%2e%2e/main.py", "%2e%2e%2fmain.py", "x/../../main.py", "%00", "."],
    )
    def test_no_address_leaves_their_folder(self, small: Service, address: str) -> None:
        assert (Path(fastapi_swagger.__file__).parent / "main.py").is_file()  # beside their folder
        url = small.http.base_url
        with socket.create_connection((url.host, url.port or 80), timeout=5) as raw:
            raw.sendall(f"GET /docs/assets/{address} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            reply = b"".join(iter(lambda: raw.recv(65536), b""))
        assert reply.startswith(b"HTTP/1.1 404")

    def test_a_thousand_ranges_cost_no_more_than_the_file(self, small: Service) -> None:
        whole = small.http.get(self.FILE)
        assert whole.status_code == 200
        ranges = "bytes=" + ",".join(f"{start}-{start + 1}" for start in range(0, 4000, 4))
        started = time.perf_counter()
        reply = small.http.get(self.FILE, headers={"Range": ranges})
        assert reply.status_code in (200, 206, 400, 416)
        assert len(reply.content) <= 2 * len(whole.content)
        assert time.perf_counter() - started < 1


def test_an_unexpected_error_tells_nothing(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: object) -> None:
        raise RuntimeError("secret /etc/path")

    monkeypatch.setattr("service.submission.prepare", explode)
    response = service.ask(headers={"X-Request-ID": "r1"})
    assert (response.status_code, problem_of(response)) == (500, "internal")
    assert response.headers["x-request-id"] == "r1"
    assert "secret" not in response.text


def test_what_was_sent_does_not_come_back_in_errors(small: Service) -> None:
    response = small.ask("my secret question", max_tokens="my secret number")
    assert "secret" not in response.text


def worker_info(now_ms: int, **changes: Any) -> WorkerInfo:
    values: dict[str, Any] = {
        "worker": "w1",
        "contract": 1,
        "model": "demo",
        "model_revision": "1",
        "device": "cpu",
        "dtype": "float32",
        "context_length": 1024,
        "cell": 28,
        "max_image_pixels": 5_000,
        "policies": ("demo", "none"),
        "default_policy": "demo",
        "slots": 4,
        "running": 1,
        "started_ms": now_ms,
        "heartbeat_ms": now_ms,
    }
    return WorkerInfo.model_validate({**values, **changes})


def test_what_no_worker_can_do_is_refused(service: Service, worker: FakeWorker) -> None:
    seconds, _ = worker.client.time()  # type: ignore[misc]
    worker.client.hset(WORKERS_KEY, "w1", worker_info(seconds * 1000).model_dump_json())
    worker.client.hset(WORKERS_KEY, "old", worker_info(1, worker="old", policies=("ancient",)).model_dump_json())
    response = service.ask(pruning={"policy": "ancient"})
    assert problem_of(response) == "unknown-policy"
    assert "demo, none" in response.json()["detail"]
    response = service.ask(images=[{"data": base64.b64encode(picture(100, 100)).decode()}])
    assert problem_of(response) == "too-large"
    assert service.ask(pruning={"policy": "demo"}, headers={"Prefer": "respond-async"}).status_code == 202
