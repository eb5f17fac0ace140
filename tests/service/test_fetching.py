"""Images by URL: from named hosts only, never out of the private network, within bytes and time."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from service import fetching
from service.fetching import AllowedHosts, ImageFetcher, is_allowed, parse_networks
from service.intake import Ask, RemoteImage
from service.problems import InvalidRequestError, TooLargeError, UnavailableError, UnreachableImageError
from tests.service.conftest import FakeWorker, make_settings, picture, running_service
from worker.contract import GenerationOptions, PruningOptions
from worker.settings import Settings

LOCAL = "127.0.0.0/8"
PICTURE = picture()
NOT_PUBLIC = """
127.0.0.1 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1 255.255.255.255 198.18.0.1
192.0.2.1 ::1 :: fe80::1 fc00::1 ff02::1 ::ffff:127.0.0.1 ::ffff:169.254.169.254 64:ff9b::7f00:1 2002:7f00:1::
2001:0:1::1 fec0::1 ::127.0.0.1 ::ffff:0:127.0.0.1 192.0.0.192 168.63.129.16 3fff::1 5f00::1
"""


class ImageServer:
    """A web server on loopback; `replies` maps a path to what answers it."""

    def __init__(self, certificate: trustme.LeafCert | None = None) -> None:
        outer = self
        self.asked: list[tuple[str, str]] = []
        self.replies: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {"/a.png": body(PICTURE)}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append((self.headers["Host"], self.path))
                outer.replies.get(self.path, status(404))(self)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            certificate.configure_cert(context)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def body(data: bytes, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)

    return reply


def status(code: int, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return reply


@contextmanager
def serving(certificate: trustme.LeafCert | None = None) -> Iterator[ImageServer]:
    running = ImageServer(certificate)
    yield running
    running.server.shutdown()
    running.server.server_close()


@pytest.fixture
def web() -> Iterator[ImageServer]:
    with serving() as running:
        yield running


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[list[str]]]:
    """A name server: each question takes the next list of addresses of a name, the last one for ever."""
    known: dict[str, list[list[str]]] = {}
    real = socket.getaddrinfo

    def resolve(host: Any, port: Any, *args: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name not in known:
            return real(host, port, *args, **options)
        addresses = known[name].pop(0) if len(known[name]) > 1 else known[name][0]
        return [entry for address in addresses for entry in real(address, port, type=socket.SOCK_STREAM)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return known


def fetch(settings: Settings, *urls: str, take: Callable[[int], None] = lambda _: None) -> Ask:
    """What a question with these images becomes."""

    async def run() -> Ask:
        fetcher = ImageFetcher(settings)
        images = tuple(RemoteImage(url, f"images.{index}.url") for index, url in enumerate(urls))
        try:
            return await fetcher.fetch(Ask(GenerationOptions(), PruningOptions(), images, prompt="?"), take)
        finally:
            await fetcher.close()

    return asyncio.run(run())


def allowing(web: ImageServer, host: str = "127.0.0.1", **changes: Any) -> Settings:
    return Settings(image_hosts=f"{host}:{web.port}", image_networks=LOCAL, **changes)


@contextmanager
def refused(web: ImageServer, asked: int = 0) -> Iterator[None]:
    with pytest.raises(UnreachableImageError):
        yield
    assert len(web.asked) == asked


def test_nothing_is_fetched_unless_hosts_are_named(web: ImageServer) -> None:
    with pytest.raises(InvalidRequestError, match="not fetched"):
        fetch(Settings(), f"http://127.0.0.1:{web.port}/a.png")
    assert web.asked == []


def test_images_come_from_a_named_host_in_order(web: ImageServer) -> None:
    second = picture(80, 80)
    web.replies["/b.png"] = body(second)
    url = f"http://127.0.0.1:{web.port}"
    fetched = fetch(allowing(web), f"{url}/a.png", f"{url}/b.png")
    assert fetched.images == (PICTURE, second)
    assert fetched.urls == (f"{url}/a.png", f"{url}/b.png")


def test_the_bytes_that_come_are_told_and_may_be_too_many_for_the_process(web: ImageServer) -> None:
    url = f"http://127.0.0.1:{web.port}/a.png"
    taken: list[int] = []
    fetch(allowing(web), url, url, take=taken.append)
    assert sum(taken) == 2 * len(PICTURE)

    def refuse(size: int) -> None:
        raise UnavailableError("full")

    with pytest.raises(UnavailableError, match="full"):
        fetch(allowing(web), url, take=refuse)


def test_the_host_is_named_to_the_server_and_resolved_once(web: ImageServer, names: dict[str, list[list[str]]]) -> None:
    names["img.test"] = [["127.0.0.1"], ["10.0.0.1"]]
    url = f"http://img.test:{web.port}/a.png"
    assert fetch(allowing(web, "img.test"), url).images == (PICTURE,)
    assert web.asked == [(f"img.test:{web.port}", "/a.png")]
    assert names["img.test"] == [["10.0.0.1"]]


@pytest.mark.parametrize(
    "address",
    NOT_PUBLIC.split(),
)
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    assert not is_allowed(ipaddress.ip_address(address), ())


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses_are_allowed_and_private_ones_where_their_network_is_named(address: str) -> None:
    assert is_allowed(ipaddress.ip_address(address), ())
    networks = parse_networks("10.0.0.0/8, fc00::/7")
    assert is_allowed(ipaddress.ip_address("10.1.2.3"), networks)
    assert is_allowed(ipaddress.ip_address("::ffff:10.1.2.3"), networks)
    assert not is_allowed(ipaddress.ip_address("192.168.0.1"), networks)


def test_a_name_that_leads_into_the_private_network_is_refused(
    web: ImageServer, names: dict[str, list[list[str]]]
) -> None:
    names["img.test"] = [["127.0.0.1"]]
    settings = Settings(image_hosts=f"img.test:{web.port}")
    with refused(web):
        fetch(settings, f"http://img.test:{web.port}/a.png")


def test_one_private_address_among_public_ones_is_enough_to_refuse(
    web: ImageServer, names: dict[str, list[list[str]]]
) -> None:
    names["img.test"] = [["8.8.8.8", "127.0.0.1"]]
    with refused(web):
        fetch(Settings(image_hosts="img.test"), "http://img.test/a.png")


@pytest.mark.parametrize(
    "url",
    [
        "http://other.test:PORT/a.png",
        "http://127.0.0.1/a.png",
        "http://127.0.0.1:1/a.png",
        "http://user:secret@127.0.0.1:PORT/a.png",
        "http://127.0.0.1:PORT@other.test/a.png",
        "http://0x7f000001:PORT/a.png",
        "http://2130706433:PORT/a.png",
        "http://[::ffff:127.0.0.1]:PORT/a.png",
        "http:///a.png",
        "http://127.0.0.1:PORT\\@other.test/a.png",
        "http://127.0.0.1:99999/a.png",
        "http://" + "a" * 3000,
        "http://xn--a/",
    ],
)
def test_only_what_is_named_is_asked(web: ImageServer, url: str) -> None:
    with refused(web):
        fetch(allowing(web), url.replace("PORT", str(web.port)))


def test_redirects_are_followed_within_the_named_hosts_and_checked_like_the_first_url(web: ImageServer) -> None:
    url = f"http://127.0.0.1:{web.port}"
    web.replies["/moved"] = status(302, Location="/a.png")
    assert fetch(allowing(web), f"{url}/moved").images == (PICTURE,)
    web.asked.clear()
    for target in ("http://localhost/a.png", f"http://localhost:{web.port}/a.png", "file:///etc/passwd", "gopher://x/"):
        web.replies["/moved"] = status(307, Location=target)
        with refused(web, asked=1):
            fetch(allowing(web), f"{url}/moved")
        web.asked.clear()


def test_a_redirect_to_a_name_that_leads_into_the_private_network_is_refused(
    web: ImageServer, names: dict[str, list[list[str]]]
) -> None:
    names["inner.test"] = [["10.0.0.1"]]
    web.replies["/moved"] = status(302, Location=f"http://inner.test:{web.port}/a.png")
    settings = Settings(image_hosts=f"127.0.0.1:{web.port},inner.test:{web.port}", image_networks=LOCAL)
    with refused(web, asked=1):
        fetch(settings, f"http://127.0.0.1:{web.port}/moved")


def test_redirects_in_a_circle_end(web: ImageServer) -> None:
    web.replies["/moved"] = status(302, Location="/moved")
    with refused(web, asked=fetching.MOST_REDIRECTS + 1):
        fetch(allowing(web), f"http://127.0.0.1:{web.port}/moved")


def test_an_image_that_is_too_large_is_not_read_to_its_end(web: ImageServer) -> None:
    sent = 0

    def endless(handler: BaseHTTPRequestHandler) -> None:
        nonlocal sent
        handler.send_response(200)
        handler.end_headers()
        try:
            for _ in range(1000):
                handler.wfile.write(bytes(100_000))
                sent += 100_000
        except OSError:
            pass

    web.replies["/endless"] = endless
    web.replies["/announced"] = body(bytes(20_000))
    for path in ("/endless", "/announced"):
        with pytest.raises(TooLargeError):
            fetch(allowing(web, max_image_bytes=10_000), f"http://127.0.0.1:{web.port}{path}")
    assert sent < 50_000_000


def test_a_slow_host_costs_a_bounded_time(web: ImageServer) -> None:
    def slow(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            for _ in range(100):
                handler.wfile.write(b"x")
                time.sleep(0.05)
        except OSError:
            pass

    web.replies["/slow"] = slow
    started = time.monotonic()
    with refused(web, asked=1):
        fetch(allowing(web, image_fetch_s=0.5), f"http://127.0.0.1:{web.port}/slow")
    assert time.monotonic() - started < 3


@pytest.mark.parametrize("reply", [status(404), status(500), status(206), body(b"x", Content_Encoding="gzip")])
def test_whatever_goes_wrong_behind_an_allowed_name_looks_the_same(
    web: ImageServer, reply: Callable[[BaseHTTPRequestHandler], None], names: dict[str, list[list[str]]]
) -> None:
    web.replies["/x"] = reply
    names["inner.test"] = [["10.0.0.1"]]

    def message(settings: Settings, url: str) -> str:
        with pytest.raises(UnreachableImageError) as caught:
            fetch(settings, url)
        return caught.value.detail

    failed = message(allowing(web), f"http://127.0.0.1:{web.port}/x")
    assert message(Settings(image_hosts="inner.test"), "http://inner.test/x") == failed
    assert message(Settings(image_hosts="nowhere.invalid"), "http://nowhere.invalid/x") == failed
    assert message(Settings(image_hosts="127.0.0.1:9", image_networks=LOCAL), "http://127.0.0.1:9/x") == failed


def test_cookies_are_not_kept(web: ImageServer) -> None:
    cookies: list[str | None] = []

    def reply(handler: BaseHTTPRequestHandler) -> None:
        cookies.append(handler.headers["Cookie"])
        body(PICTURE, Set_Cookie="session=1; Path=/")(handler)

    web.replies["/a.png"] = reply
    web.replies["/moved"] = status(302, Location="/a.png", **{"Set-Cookie": "session=2; Path=/"})
    fetch(allowing(web), *[f"http://127.0.0.1:{web.port}/{path}" for path in ("a.png", "moved", "moved")])
    assert cookies == [None] * 3


def test_all_images_of_a_request_together_are_no_larger_than_a_body(web: ImageServer) -> None:
    web.replies["/a.png"] = body(bytes(800))
    url = f"http://127.0.0.1:{web.port}/a.png"
    assert len(fetch(allowing(web, max_body_bytes=2000), url, url).images) == 2
    with pytest.raises(TooLargeError):
        fetch(allowing(web, max_body_bytes=2000), url, url, url)


def test_the_next_address_is_tried_when_one_does_not_answer(
    web: ImageServer, names: dict[str, list[list[str]]]
) -> None:
    names["img.test"] = [["127.0.0.2", "127.0.0.1"]]
    assert fetch(allowing(web, "img.test"), f"http://img.test:{web.port}/a.png").images == (PICTURE,)


def test_international_names_are_the_same_in_both_forms() -> None:
    for known in ("bücher.example", "xn--bcher-kva.example"):
        for asked in ("bücher.example", "xn--bcher-kva.example", "BÜCHER.example"):
            assert AllowedHosts.parse(known).allow(httpx.URL(f"http://{asked}/")), (known, asked)
            assert AllowedHosts.parse(f"*.{known}").allow(httpx.URL(f"http://www.{asked}/")), (known, asked)


@pytest.mark.parametrize(
    ("known", "certified", "taken"),
    [(True, "pictures.test", True), (True, "other.test", False), (False, "pictures.test", False)],
    ids=["good", "another name", "unknown authority"],
)
def test_a_certificate_must_be_known_and_the_hosts(
    names: dict[str, list[list[str]]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    known: bool,
    certified: str,
    taken: bool,
) -> None:
    authority = trustme.CA()
    (authority if known else trustme.CA()).cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setattr("certifi.where", lambda: str(tmp_path / "ca.pem"))
    names["pictures.test"] = [["127.0.0.1"]]
    with serving(authority.issue_cert(certified)) as web:
        url = f"https://pictures.test:{web.port}/a.png"
        with nullcontext() if taken else pytest.raises(UnreachableImageError):
            assert fetch(allowing(web, "pictures.test"), url).images == (PICTURE,)
        assert len(web.asked) == taken


@pytest.mark.parametrize("hosts", ["a b", "http://a", "a/b", "a:0", "a:x", ":80", "*", "*.", "a..b"])
def test_hosts_that_cannot_be_read_stop_the_start(hosts: str) -> None:
    with pytest.raises(ValueError, match="ERASE_IMAGE_HOSTS"):
        ImageFetcher(Settings(image_hosts=hosts))


def test_networks_that_cannot_be_read_stop_the_start() -> None:
    with pytest.raises(ValueError, match="ERASE_IMAGE_NETWORKS"):
        parse_networks("10.0.0.1/8")


def test_names_below_a_domain_and_ports_are_told_apart() -> None:
    hosts = AllowedHosts.parse("example.com, *.cdn.example.com, [2606:4700::1111]:8443, other.test:8080")
    for url in (
        "http://example.com/",
        "https://EXAMPLE.com./x",
        "https://a.cdn.example.com/",
        "https://a.b.cdn.example.com/",
        "https://[2606:4700::1111]:8443/",
        "http://other.test:8080/",
    ):
        assert hosts.allow(httpx.URL(url)), url
    for url in (
        "https://www.example.com/",
        "https://cdn.example.com/",
        "https://evilcdn.example.com/",
        "https://example.com.evil.test/",
        "https://example.com:8443/",
        "http://other.test/",
    ):
        assert not hosts.allow(httpx.URL(url)), url


def test_through_the_service_on_both_ways_to_ask(web: ImageServer, redis_url: str, worker: FakeWorker) -> None:
    url = f"http://127.0.0.1:{web.port}/a.png"
    settings = make_settings(redis_url, image_hosts=f"127.0.0.1:{web.port}", image_networks=LOCAL)
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "?"}]
    with running_service(settings) as service:
        headers = {"Prefer": "respond-async", "Idempotency-Key": "k"}
        first = service.ask(images=[{"url": url}], headers=headers)
        assert first.status_code == 202, first.text
        job = worker.take()
        assert (job.request.images[0].width, job.request.images[0].height) == (64, 48)
        web.replies["/a.png"] = status(404)
        asked = len(web.asked)
        assert service.ask(images=[{"url": url}], headers=headers).json()["id"] == first.json()["id"]
        assert len(web.asked) == asked
        web.replies["/a.png"] = body(PICTURE)
        chat = service.later(
            service.http.post,
            "/v1/chat/completions",
            json={"model": "demo", "messages": [{"role": "user", "content": content}]},
        )
        worker.succeed(worker.take())
        assert chat.result().status_code == 200
        reply = service.ask(images=[{"url": url + "x"}])
        assert (reply.status_code, reply.json()["type"]) == (422, "urn:erase:problem:unreachable-image")
