"""Images by http(s) URL, from hosts that the operator has named and from no other; off unless some are named.

An image server must not become a way into the network that it stands in (server-side request forgery). So one parser
serves check and request; a name is resolved once and those addresses are connected to, not resolved again; private,
loopback and link-local addresses are refused unless the operator named their network; every redirect is checked like
the first URL; bytes and time are limited; no cookies are kept; and a client learns the same of every name that cannot
be resolved, leads to a refused address, does not answer or answers anything but an image's bytes.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING

import httpx

from service.intake import Ask, RemoteImage
from service.problems import InvalidRequestError, TooLargeError, UnavailableError, UnreachableImageError

if TYPE_CHECKING:
    from worker.settings import Settings

logger = logging.getLogger("erase.service")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MOST_REDIRECTS = 3
MOST_AT_ONCE = 16
LONGEST_URL = 2048
_RESOLVERS = 4
_PORTS = {"http": 80, "https": 443}
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_UNICAST = ipaddress.ip_network("2000::/3")
_NEVER = tuple(
    map(
        ipaddress.ip_network,
        # Tunnels: what they lead to depends on the network. Then documentation, and two clouds' services for guests.
        ("2001::/23", "2002::/16", "2001:db8::/32", "3fff::/20", "192.0.0.0/24", "168.63.129.16/32"),
    )
)


@dataclass(frozen=True)
class AllowedHosts:
    """Names of `ERASE_IMAGE_HOSTS`: HOST (ports 80 and 443), HOST:PORT, or *.DOMAIN for all names below a domain."""

    names: frozenset[tuple[str, int | None]]

    @classmethod
    def parse(cls, text: str) -> AllowedHosts:
        """Read the setting. Raises ValueError."""
        names = set()
        for entry in filter(None, (part.strip().lower() for part in text.split(","))):
            host, colon, port = entry.rpartition(":") if not entry.endswith("]") else (entry, "", "")
            if not colon:
                host, port = entry, ""
            number = int(port) if port.isdigit() and 0 < int(port) < 65536 else None
            domain = host.removeprefix("*.")
            if not _is_name(domain) or (colon and number is None):
                raise ValueError(f"ERASE_IMAGE_HOSTS: {entry!r} is not HOST, HOST:PORT or *.DOMAIN")
            try:
                ascii_name = _host(httpx.URL(f"http://{domain}/"))
            except (httpx.InvalidURL, ValueError):
                raise ValueError(f"ERASE_IMAGE_HOSTS: {entry!r} is not a host's name") from None
            names.add((f"*.{ascii_name}" if domain != host else ascii_name, number))
        return cls(frozenset(names))

    def allow(self, url: httpx.URL) -> bool:
        """Whether this URL's host and port are named."""
        host = _host(url)
        usual = url.port in (None, _PORTS[url.scheme])
        port = url.port or _PORTS[url.scheme]
        parents = [host[at + 1 :] for at, letter in enumerate(host) if letter == "."]
        candidates = [host, *(f"*.{parent}" for parent in parents)]
        return any((name, port) in self.names or (usual and (name, None) in self.names) for name in candidates)


def _host(url: httpx.URL) -> str:
    """The host as it goes over the wire: lower case, international names in their ASCII form."""
    return url.raw_host.decode().lower().rstrip(".")


def _is_name(host: str) -> bool:
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        return _is_address(host)
    return bool(host) and all(label.replace("-", "").replace("_", "").isalnum() for label in host.split("."))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def parse_networks(text: str) -> tuple[Network, ...]:
    """Networks of `ERASE_IMAGE_NETWORKS`. Raises ValueError."""
    try:
        return tuple(ipaddress.ip_network(part.strip()) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ValueError(f"ERASE_IMAGE_NETWORKS: {error}") from None


def is_allowed(address: Address, networks: Sequence[Network]) -> bool:
    """Whether an image may come from this address: a public one, or one in these networks."""
    plain = getattr(address, "ipv4_mapped", None) or address
    if any(plain in network for network in networks):
        return True
    if plain.version == 6 and plain not in _UNICAST:
        return False
    return plain.is_global and not plain.is_multicast and not any(plain in network for network in _NEVER)


class _Room:
    """Bytes that the fetched images of one request may have together; `take` counts those of the whole process."""

    def __init__(self, most: int, take: Callable[[int], None]) -> None:
        self._most = self._left = most
        self._take = take

    def take(self, size: int) -> None:
        """Raises `TooLargeError`, or what `take` raises, when there is no room for so many more."""
        self._take(size)
        self._left -= size
        if self._left < 0:
            raise TooLargeError(f"The images at the given URLs have more than {self._most} bytes together.")


class ImageFetcher:
    """Fetches the images of a question that are given by URL."""

    def __init__(self, settings: Settings) -> None:
        """Raises ValueError for hosts or networks that cannot be read."""
        self._hosts = AllowedHosts.parse(settings.image_hosts)
        self._networks = parse_networks(settings.image_networks)
        self._settings = settings
        self._places = asyncio.Semaphore(MOST_AT_ONCE)
        self._client: httpx.AsyncClient | None = None
        self._resolvers: ThreadPoolExecutor | None = None

    async def close(self) -> None:
        """Close all connections."""
        if self._client is not None:
            await self._client.aclose()
        if self._resolvers is not None:
            self._resolvers.shutdown(wait=False, cancel_futures=True)

    async def fetch(self, ask: Ask, take: Callable[[int], None]) -> Ask:
        """The question with all images as bytes; it still knows the URLs. `take` is told how many came.

        Raises:
            InvalidRequestError: URLs are not fetched here, or there are too many images.
            UnreachableImageError: a URL is not allowed, or no image came from it in time.
            TooLargeError: it is larger than an image may be, or all are together larger than a body may be.
            UnavailableError: too many requests are fetching images, or `take` says so.
        """
        if not ask.remote:
            return ask
        if not self._hosts.names:
            name = ask.remote[0].name
            raise InvalidRequestError(f"{name}: http and https are not fetched; send the file or a data: URL")
        try:
            async with asyncio.timeout(self._settings.image_fetch_s):
                await self._places.acquire()
        except TimeoutError:
            raise UnavailableError("Too many requests are fetching images.") from None
        try:
            return await self._fetch_all(ask, take)
        finally:
            self._places.release()

    async def _fetch_all(self, ask: Ask, take: Callable[[int], None]) -> Ask:
        room = _Room(self._settings.max_body_bytes, take)
        try:
            async with asyncio.timeout(self._settings.image_fetch_s), asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._get(image, room)) if isinstance(image, RemoteImage) else image
                    for image in ask.images
                ]
        except TimeoutError:
            limit = f"{self._settings.image_fetch_s:g} seconds"
            raise UnreachableImageError(f"The images at the given URLs did not arrive within {limit}.") from None
        except ExceptionGroup as group_error:
            # One failure ends the others; the client gets the first.
            raise group_error.exceptions[0] from None
        images = tuple(task if isinstance(task, bytes) else task.result() for task in tasks)
        urls = tuple(image.url if isinstance(image, RemoteImage) else None for image in ask.images)
        return replace(ask, images=images, urls=urls)

    async def _get(self, image: RemoteImage, room: _Room) -> bytes:
        url = self._parse(image.url, image.name)
        for _ in range(MOST_REDIRECTS + 1):
            async with self._open(url, image.name) as reply:
                if reply.status_code not in _REDIRECTS:
                    return await self._read(reply, image.name, room)
                url = self._redirected(url, reply.headers.get("location", ""), image.name)
        raise UnreachableImageError(f"{image.name}: more than {MOST_REDIRECTS} redirects.")

    def _parse(self, text: str, name: str) -> httpx.URL:
        try:
            url = httpx.URL(text)
        except (httpx.InvalidURL, ValueError):
            raise UnreachableImageError(f"{name}: this is not a URL.") from None
        return self._checked(url, name)

    def _checked(self, url: httpx.URL, name: str) -> httpx.URL:
        if url.scheme not in _PORTS or not url.raw_host or url.userinfo or len(str(url)) > LONGEST_URL:
            raise UnreachableImageError(
                f"{name}: expected http(s)://HOST/PATH without a user, at most {LONGEST_URL} characters."
            )
        if not self._hosts.allow(url):
            raise UnreachableImageError(f"{name}: images are not fetched from this host.")
        return url

    def _redirected(self, url: httpx.URL, location: str, name: str) -> httpx.URL:
        try:
            target = url.join(location)
        except (httpx.InvalidURL, ValueError):
            raise self._unreachable(name) from None
        if (url.scheme, target.scheme) == ("https", "http"):
            raise self._unreachable(name)
        return self._checked(target, name)

    @asynccontextmanager
    async def _open(self, url: httpx.URL, name: str) -> AsyncIterator[httpx.Response]:
        """Ask the first address of the host's that answers."""
        reply = None
        for address in await self._resolve(url, name):
            try:
                reply = await self._http().send(self._request(url, address), stream=True)
                break
            except httpx.ConnectError:
                continue
            except (httpx.HTTPError, OSError, ValueError):
                break
        if reply is None:
            raise self._unreachable(name)
        try:
            yield reply
        finally:
            await reply.aclose()

    def _http(self) -> httpx.AsyncClient:
        if self._client is None:
            self._client = httpx.AsyncClient(
                trust_env=False,
                # No connection and no cookie is ever used for another host that has the same address.
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
                timeout=self._settings.image_fetch_s,
            )
        return self._client

    def _request(self, url: httpx.URL, address: Address) -> httpx.Request:
        """For this address, in the name of the URL's host."""
        return self._http().build_request(
            "GET",
            url.copy_with(host=str(address)),
            headers={"Host": url.netloc.decode(), "Accept": "image/*", "Accept-Encoding": "identity"},
            extensions={"sni_hostname": _host(url)},
        )

    async def _resolve(self, url: httpx.URL, name: str) -> list[Address]:
        """The addresses of the host. Raises `UnreachableImageError` if any of them is not allowed."""
        if self._resolvers is None:
            # Threads of their own: a name server that does not answer must not hold up anything else.
            self._resolvers = ThreadPoolExecutor(_RESOLVERS, thread_name_prefix="resolve")
        port = url.port or _PORTS[url.scheme]
        lookup = partial(socket.getaddrinfo, _host(url), port, type=socket.SOCK_STREAM)
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._resolvers, lookup)
            addresses = [ipaddress.ip_address(entry[4][0]) for entry in found]
        except (OSError, ValueError):
            raise self._unreachable(name) from None
        if not all(is_allowed(address, self._networks) for address in addresses):
            logger.warning("an image URL leads to an address that is not allowed")
            raise self._unreachable(name)
        return addresses

    async def _read(self, reply: httpx.Response, name: str, room: _Room) -> bytes:
        most = self._settings.max_image_bytes
        if reply.status_code != 200 or reply.headers.get("content-encoding", "identity") != "identity":
            raise self._unreachable(name)
        announced = reply.headers.get("content-length", "")
        data = bytearray()
        try:
            async for chunk in reply.aiter_raw():
                data += chunk
                room.take(len(chunk))
                if len(data) > most or (announced.isdigit() and int(announced) > most):
                    raise TooLargeError(f"{name} has more than {most} bytes, which is the most that is allowed.")
        except (httpx.HTTPError, OSError):
            raise self._unreachable(name) from None
        return bytes(data)

    @staticmethod
    def _unreachable(name: str) -> UnreachableImageError:
        return UnreachableImageError(f"{name}: no image could be fetched from this URL.")
