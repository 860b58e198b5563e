"""Access control: the outermost layer of the server, before a request's body is read."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import dataclasses
import hmac
import re
from collections.abc import Collection
from ipaddress import ip_address
from urllib.parse import unquote

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from crem_jax.serve.errors import ApiError

OPEN = ("/healthz",)
"""Paths that need no token."""

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

_ODD_PATH = re.compile(r"(^|/)\.\.?(/|$)|[\\\x00-\x1f]")
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(?::\d+)?")
_CHALLENGE = {"WWW-Authenticate": 'Bearer, Basic realm="crem", charset="UTF-8"'}
_SAFE = ("GET", "HEAD")
_LINGER = 2.0  # seconds


@dataclasses.dataclass(frozen=True)
class Access:
    """The access rules of a server.

    Attributes:
      token: required of a request, as `Authorization: Bearer TOKEN` or, in a browser, as the
        password of any user; None requires none, but only admits the names in `hosts`.
      hosts: host names that are accepted without a token. Others may be a web site's attempt to
        reach this machine (DNS rebinding).
    """

    token: str | None = None
    hosts: Collection[str] = LOOPBACK_NAMES


def is_loopback(host: str) -> bool:
    """Whether an address is reachable from this machine only."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class AccessControl:
    """ASGI middleware that admits a request or refuses it."""

    def __init__(self, app: ASGIApp, access: Access):
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":
            return None
        try:
            self._check(scope)
        except ApiError as error:
            return await refuse(receive, send, error)
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        path = unquote(scope.get("raw_path", b"").decode("latin-1"))
        if _ODD_PATH.search(scope["path"]) or _ODD_PATH.search(path):
            raise ApiError(404, "there is no such page", code="not_found")
        if scope["path"] in OPEN:
            return
        if self._access.token is not None:
            if not _shows(headers.get("authorization", ""), self._access.token):
                raise ApiError(401, "a token is needed", code="token", headers=_CHALLENGE)
        elif _name(headers.get("host", "")) not in self._access.hosts:
            raise ApiError(403, "the server is not known by this name (--allow_host)", code="host")
        # A page of another site may make a browser send requests here, its credentials included;
        # all it may do is to link to the page.
        foreign = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        link = scope["method"] in _SAFE and headers.get("sec-fetch-mode") == "navigate"
        if foreign and not link:
            raise ApiError(403, "requests of other web sites are refused", code="cross_site")


async def refuse(receive: Receive, send: Send, error: ApiError) -> None:
    """Answers with an error and closes the connection.

    Data that the caller is still sending is read and discarded for a moment: closing a connection
    with unread data resets it, and the answer may be lost.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER):
            while (await receive()).get("more_body"):
                pass
    body = error.body()
    headers = {
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
        **error.headers,
    }
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _name(host: str) -> str | None:
    """The host name in a Host header, without its port; None if it is malformed."""
    found = _HOST.fullmatch(host)
    return found and found[1].strip("[]").lower()


def _shows(authorization: str, token: str) -> bool:
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "basic":
        try:
            value = base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return False
    elif scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(value.strip().encode(), token.encode())
