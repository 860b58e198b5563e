"""Restricts Gradio to what the page needs: it could also serve files, fetch URLs and more.

Gradio reads whatever file or URL an input names if it is shaped like a file of its own (the check
that it was uploaded is not made in a mounted app). No component of the page takes a file, so inputs
that are not plain values are refused, and so is every route that the page does not use.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Literal

from starlette.concurrency import run_in_threadpool
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
_NAME = re.compile(r"[\w-]{1,64}")

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
    """ASGI middleware that passes only the requests that the page needs.

    Args:
      events: returns event number -> number of inputs, for the events of the page.
    """

    def __init__(self, app: ASGIApp, events: Callable[[], Mapping[int, int]]):
        self._app, self._events = app, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if _OURS.fullmatch(scope["path"]):  # Gradio gets those with a method of no route
            return await self._app(scope, receive, _without_cors(send))
        read = scope["method"] in ("GET", "HEAD") and _READ.fullmatch(scope["path"])
        write = scope["method"] == "POST" and _WRITE.fullmatch(scope["path"])
        if not (read or write):
            return await _refused(404, "there is no such page")(scope, receive, send)
        if write:
            body = await Request(scope, receive).body()
            joins = scope["path"].startswith(_JOIN)
            if not await run_in_threadpool(_expected, body, joins and self._events()):
                return await _refused(400, "expected an event of the page")(scope, receive, send)
            receive = _again(body, receive)

        await self._app(scope, receive, _without_cors(send, _HEADERS))


def _without_cors(send: Send, more: Mapping[str, str] = {}) -> Send:
    """`send` without Gradio's CORS headers: it lets every site in when the server has a name.

    Args:
      more: headers that are added.
    """

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name in [n for n in headers if n.startswith("access-control-")]:
                del headers[name]
            headers.update(more)
        await send(message)

    return sending


def _expected(body: bytes, events: Mapping[int, int] | Literal[False]) -> bool:
    """Whether a body is one that the page sends: to join the queue of an event, or to cancel one.

    Args:
      events: event number -> number of inputs; False if the body is to cancel.
    """
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError):
        return False
    if not isinstance(payload, dict):
        return False
    for name in ("session_hash", "event_id"):
        text = payload.get(name)
        if text is not None and not (isinstance(text, str) and _NAME.fullmatch(text)):
            return False
    number = payload.get("fn_index", 0)
    if type(number) is not int or events is False:
        return type(number) is int
    data, event = payload.get("data"), payload.get("event_data")
    plain = isinstance(data, list) and not any(isinstance(one, dict | list) for one in data)
    # Only `choose` has event data, which identifies a hit.
    named = event is None or (
        isinstance(event, dict) and all(not isinstance(one, dict | list) for one in event.values())
    )
    return (
        plain
        and named
        and payload.get("session_hash") is not None
        and (len(data) == events.get(number, -1))
    )


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
