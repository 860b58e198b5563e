"""Fetches remote pictures: only below allowed URL prefixes, and only from public addresses.

A name is resolved once, all its addresses are checked, and the connection goes to a checked one, so
a name server cannot answer differently the second time. Redirects are checked in the same way.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urljoin, urlsplit

import httpcore

from crem_jax.errors import CremError
from crem_jax.serve.errors import ApiError

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""Resolves a host and port to addresses."""

_PORTS = {"http": 80, "https": 443}
_REDIRECTS = 3
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_COMPATIBLE = ipaddress.ip_network("::/96")
_NO_HOSTS = tuple(
    # IANA's special-purpose registries, as far as Python calls them global, and a cloud's own.
    ipaddress.ip_network(block)
    for block in (
        *("192.88.99.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.175.48.0/24"),
        *("192.0.0.0/24", "100.64.0.0/10", "198.18.0.0/15", "240.0.0.0/4", "168.63.129.16/32"),
        *("64:ff9b:1::/48", "100::/32", "2001::/23", "2001:db8::/32", "2620:4f:8000::/48"),
        *("3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8"),
    )
)
# A path that could be read in two ways is none.
_ODD = re.compile(r"[^!-~]|\\|%2[eEfF]|%5[cC]|%00|/\.\.?(/|$)")


def is_public(address: str) -> bool:
    """Whether an address is on the public internet, also if embedded in another (such as 6to4)."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if ip in _NAT64 or ip in _COMPATIBLE:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner:
            return is_public(str(inner))
    if any(ip in block for block in _NO_HOSTS):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


async def resolve(host: str, port: int) -> list[str]:
    """Resolves a host with the system's resolver."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(entry[4][0] for entry in found))


class Fetcher:
    """Fetches files below the URL prefixes that the operator allows.

    Args:
      prefixes: URLs such as https://pictures.example.com/public/.
      max_bytes: largest size of a response. seconds: timeout of a whole fetch.
      resolver: resolves names to addresses. allowed: whether an address may be contacted.

    Raises:
      ValueError: a prefix is no URL.
    """

    def __init__(
        self,
        prefixes: Sequence[str],
        max_bytes: int,
        seconds: float = 10.0,
        resolver: Resolve = resolve,
        allowed: Callable[[str], bool] = is_public,
    ):
        self._prefixes = []
        for prefix in prefixes:
            parts = _parts(prefix)
            if parts is None:
                raise CremError(
                    f"{prefix!r} is no URL prefix such as https://example.com/pictures/"
                )
            self._prefixes.append(parts)
        self._max_bytes, self._seconds = max_bytes, seconds
        self._backend = _Checked(resolver, allowed)

    async def fetch(self, url: str, where: str) -> bytes:
        """Fetches a remote file.

        Args:
          where: the part of the request, for errors.

        Raises:
          ApiError: 400, it is not allowed or cannot be fetched.
        """
        try:
            async with (
                asyncio.timeout(self._seconds),
                httpcore.AsyncConnectionPool(network_backend=self._backend) as pool,
            ):
                for _ in range(_REDIRECTS + 1):
                    if not self.allows(url):
                        raise _Refused("is at no allowed address")
                    body, url = await self._get(pool, url)
                    if body is not None:
                        return body
                raise _Refused("redirects too often")
        except _Refused as error:
            raise ApiError(400, f"{where}: the URL {error}", where, "invalid_image_url") from error
        except (OSError, httpcore.ConnectError, httpcore.TimeoutException) as error:
            raise ApiError(
                400, f"{where}: the URL cannot be reached", where, "invalid_image_url"
            ) from error
        except (httpcore.NetworkError, httpcore.ProtocolError, ValueError) as error:
            raise ApiError(
                400, f"{where}: the URL cannot be read", where, "invalid_image_url"
            ) from error

    def allows(self, url: str) -> bool:
        """Whether a URL is below an allowed prefix."""
        parts = _parts(url)
        if parts is None:
            return False
        for scheme, host, port, path in self._prefixes:
            below = parts[3] == path or parts[3].startswith(path.rstrip("/") + "/")
            if parts[:3] == (scheme, host, port) and below:
                return True
        return False

    async def _get(self, pool: httpcore.AsyncConnectionPool, url: str) -> tuple[bytes | None, str]:
        """(body, ""), or (None, URL) for a redirect."""
        headers = {"Host": urlsplit(url).netloc, "Accept": "image/*", "Accept-Encoding": "identity"}
        async with pool.stream("GET", url, headers=headers) as response:
            if response.status in (301, 302, 303, 307, 308):
                found = {name.lower(): value for name, value in response.headers}
                return None, urljoin(url, found.get(b"location", b"").decode("latin-1"))
            if response.status != 200:
                raise _Refused(f"answers with status {response.status}")
            body = bytearray()
            async for chunk in response.aiter_stream():
                body += chunk
                if len(body) > self._max_bytes:
                    raise _Refused(f"has more than {self._max_bytes} bytes")
            return bytes(body), url


class _Refused(Exception):
    """A URL is refused; the message is the rest of a sentence that begins with it."""


class _Checked(httpcore.AsyncNetworkBackend):
    """A network backend that connects to checked addresses, never to names."""

    def __init__(self, resolver: Resolve, allowed: Callable[[str], bool]):
        self._resolver, self._allowed = resolver, allowed
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(self, host, port, timeout=None, local_address=None, socket_options=None):
        addresses = await self._resolver(host, port)
        if not addresses or not all(map(self._allowed, addresses)):
            raise _Refused("leads to an address that is not public")
        return await self._network.connect_tcp(
            addresses[0], port, timeout, local_address, socket_options
        )


def _parts(url: str) -> tuple[str, str, int, str] | None:
    """(scheme, host, port, path) of a plain HTTP URL, or None."""
    try:
        split = urlsplit(url)
        port = split.port
    except ValueError:
        return None
    host = (split.hostname or "").rstrip(".")
    plain = split.scheme in _PORTS and host and "@" not in split.netloc
    if not plain or port == 0 or _ODD.search(url.partition("?")[0]):
        return None
    return split.scheme, host, port or _PORTS[split.scheme], split.path or "/"
