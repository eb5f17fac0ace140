"""Images by http(s) URL, from hosts that the operator has named and from no other; off unless some are named.

An image server must not become a way into the network that it stands in (server-side request forgery). So one parser
serves check and request; a name is resolved once and that address is connected to, not resolved again; private,
loopback and link-local addresses are refused unless the operator named their network; every redirect is checked like
the first URL; bytes and time are limited; and a client learns the same of every failure behind an allowed name.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import httpx

from service.intake import Ask, RemoteImage
from service.problems import InvalidRequestError, TooLargeError, UnreachableImageError

if TYPE_CHECKING:
    from worker.settings import Settings

logger = logging.getLogger("erase.service")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MOST_REDIRECTS = 3
MOST_AT_ONCE = 16
LONGEST_URL = 2048
_PORTS = {"http": 80, "https": 443}
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# Addresses of IPv4 in IPv6's clothes: what they lead to depends on the network, so none of them is public.
_TRANSLATED = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")))


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
            if not _is_name(host.removeprefix("*.")) or (colon and number is None):
                raise ValueError(f"ERASE_IMAGE_HOSTS: {entry!r} is not HOST, HOST:PORT or *.DOMAIN")
            names.add((host.strip("[]"), number))
        return cls(frozenset(names))

    def allow(self, url: httpx.URL) -> bool:
        """Whether this URL's host and port are named."""
        host = url.host.lower().rstrip(".")
        usual = url.port in (None, _PORTS[url.scheme])
        port = url.port or _PORTS[url.scheme]
        parents = [host[at + 1 :] for at, letter in enumerate(host) if letter == "."]
        candidates = [host, *(f"*.{parent}" for parent in parents)]
        return any((name, port) in self.names or (usual and (name, None) in self.names) for name in candidates)


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
    translated = any(plain in network for network in _TRANSLATED)
    return plain.is_global and not plain.is_multicast and not translated


class ImageFetcher:
    """Fetches the images of a question that are given by URL."""

    def __init__(self, settings: Settings) -> None:
        """Raises ValueError for hosts or networks that cannot be read."""
        self._hosts = AllowedHosts.parse(settings.image_hosts)
        self._networks = parse_networks(settings.image_networks)
        self._settings = settings
        self._places = asyncio.Semaphore(MOST_AT_ONCE)
        self._client: httpx.AsyncClient | None = None

    async def close(self) -> None:
        """Close all connections."""
        if self._client is not None:
            await self._client.aclose()

    async def fetch(self, ask: Ask) -> Ask:
        """The question with all images as bytes; it still knows the URLs.

        Raises:
            InvalidRequestError: URLs are not fetched here, or there are too many images.
            UnreachableImageError: a URL is not allowed, or no image came from it in time.
            TooLargeError: it is larger than an image may be.
        """
        if not ask.remote:
            return ask
        if not self._hosts.names:
            name = ask.remote[0].name
            raise InvalidRequestError(f"{name}: http and https are not fetched; send the file or a data: URL")
        if len(ask.images) > self._settings.max_images:
            raise InvalidRequestError(
                f"images: {len(ask.images)} given, at most {self._settings.max_images} are allowed"
            )
        try:
            async with asyncio.timeout(self._settings.image_fetch_s), asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._get(image)) if isinstance(image, RemoteImage) else image
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

    async def _get(self, image: RemoteImage) -> bytes:
        async with self._places:
            url = self._parse(image.url, image.name)
            for _ in range(MOST_REDIRECTS + 1):
                async with self._open(url, image.name) as reply:
                    if reply.status_code not in _REDIRECTS:
                        return await self._read(reply, image.name)
                    url = self._redirected(url, reply.headers.get("location", ""), image.name)
            raise UnreachableImageError(f"{image.name}: more than {MOST_REDIRECTS} redirects.")

    def _parse(self, text: str, name: str) -> httpx.URL:
        try:
            url = httpx.URL(text)
        except httpx.InvalidURL:
            raise UnreachableImageError(f"{name}: this is not a URL.") from None
        return self._checked(url, name)

    def _checked(self, url: httpx.URL, name: str) -> httpx.URL:
        if url.scheme not in _PORTS or not url.host or url.userinfo or len(str(url)) > LONGEST_URL:
            raise UnreachableImageError(
                f"{name}: expected http(s)://HOST/PATH without a user, at most {LONGEST_URL} characters."
            )
        if not self._hosts.allow(url):
            raise UnreachableImageError(f"{name}: images are not fetched from this host.")
        return url

    def _redirected(self, url: httpx.URL, location: str, name: str) -> httpx.URL:
        try:
            target = url.join(location)
        except httpx.InvalidURL:
            raise self._unreachable(name) from None
        if (url.scheme, target.scheme) == ("https", "http"):
            raise self._unreachable(name)
        return self._checked(target, name)

    @asynccontextmanager
    async def _open(self, url: httpx.URL, name: str) -> AsyncIterator[httpx.Response]:
        """Ask the address that the name stands for now."""
        address = await self._resolve(url, name)
        if self._client is None:
            limits = httpx.Limits(max_connections=MOST_AT_ONCE, max_keepalive_connections=0)
            self._client = httpx.AsyncClient(trust_env=False, limits=limits, timeout=self._settings.image_fetch_s)
        request = self._client.build_request(
            "GET",
            url.copy_with(host=str(address)),
            headers={"Host": url.netloc.decode(), "Accept": "image/*", "Accept-Encoding": "identity"},
            extensions={"sni_hostname": url.raw_host.decode()},
        )
        try:
            reply = await self._client.send(request, stream=True)
        except (httpx.HTTPError, OSError, ValueError) as error:
            logger.info("an image could not be fetched: %s", type(error).__name__)
            raise self._unreachable(name) from None
        try:
            yield reply
        finally:
            await reply.aclose()

    async def _resolve(self, url: httpx.URL, name: str) -> Address:
        """The address of the host. Raises `UnreachableImageError` if any of its addresses is not allowed."""
        port = url.port or _PORTS[url.scheme]
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(url.raw_host.decode(), port, type=socket.SOCK_STREAM)
            addresses = [ipaddress.ip_address(entry[4][0]) for entry in found]
        except (OSError, ValueError):
            raise self._unreachable(name) from None
        if not addresses or not all(is_allowed(address, self._networks) for address in addresses):
            logger.warning("an image URL leads to an address that is not allowed")
            raise self._unreachable(name)
        return addresses[0]

    async def _read(self, reply: httpx.Response, name: str) -> bytes:
        most = self._settings.max_image_bytes
        if reply.status_code != 200 or reply.headers.get("content-encoding", "identity") != "identity":
            raise self._unreachable(name)
        announced = reply.headers.get("content-length", "")
        data = bytearray()
        try:
            async for chunk in reply.aiter_raw():
                data += chunk
                if len(data) > most or (announced.isdigit() and int(announced) > most):
                    raise TooLargeError(f"{name} has more than {most} bytes, which is the most that is allowed.")
        except (httpx.HTTPError, OSError):
            raise self._unreachable(name) from None
        return bytes(data)

    @staticmethod
    def _unreachable(name: str) -> UnreachableImageError:
        return UnreachableImageError(f"{name}: no image could be fetched from this URL.")
