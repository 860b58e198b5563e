"""What of Gradio is reachable. It can take and give files, fetch URLs and more; the page does not.

Gradio reads whatever file or URL an input names if it is shaped like a file of its own (the check
that it was uploaded is not made in a mounted app). No component of the page takes a file, so inputs
that are not plain values are refused, and so is every route that the page does not use.
"""

from __future__ import annotations

import json
import re

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crem_jax.serve.errors import ApiError

_OURS = re.compile(r"/(v1/.*|healthz|metrics|openapi\.json)")
_READ = re.compile(
    r"/((config|theme\.css|manifest\.json|favicon\.ico|robots\.txt)?|(assets|static|svelte)/.+"
    r"|gradio_api/(startup-events|app_id|info|theme\.css|queue/data|heartbeat/\w+))/?"
)
_WRITE = re.compile(r"/gradio_api/(queue/join|reset|cancel)/?")
_JOIN = "/gradio_api/queue/join"

_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class PageGuard:
    """ASGI middleware that lets through what the page needs."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _OURS.fullmatch(scope["path"]):
            return await self._app(scope, receive, send)
        read = scope["method"] in ("GET", "HEAD") and _READ.fullmatch(scope["path"])
        write = scope["method"] == "POST" and _WRITE.fullmatch(scope["path"])
        if not (read or write):
            return await _refused(404, "there is no such page")(scope, receive, send)
        if write:
            body = await Request(scope, receive).body()
            if scope["path"].startswith(_JOIN) and not _plain(body):
                return await _refused(400, "expected plain values")(scope, receive, send)
            receive = _again(body, receive)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await self._app(scope, receive, with_headers)


def _plain(body: bytes) -> bool:
    """Whether the inputs of an event are numbers, texts and the like."""
    try:
        data = json.loads(body)["data"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
    return isinstance(data, list) and not any(isinstance(one, dict | list) for one in data)


def _refused(status: int, message: str) -> JSONResponse:
    return JSONResponse(ApiError(status, message).to_json(), status)


def _again(body: bytes, receive: Receive) -> Receive:
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
