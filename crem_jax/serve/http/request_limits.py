"""Reads requests within their bounds, admits so many at a time, and ends them in time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crem_jax.serve.errors import ApiError, DeadlineExceeded, Overloaded, answer_for
from crem_jax.serve.http.access import refuse
from crem_jax.serve.http.json_bounds import check_json
from crem_jax.serve.service import Service

T = TypeVar("T")
_SMALL = 1 << 16
"""Bytes of a body that is looked at between two other requests; larger ones are on a thread."""
_GRACE = 5.0
"""Seconds after the deadline in which a stream may still say that it has passed."""


class RequestLimits:
    """ASGI middleware between the gate and the routes.

    A body is read whole, and what it holds is counted, before its route sees it. Requests of the
    interface (POST /v1/…) are counted, and cancelled when their time is over or nobody listens any
    more; others run freely, until the server drains.
    """

    def __init__(self, app: ASGIApp, service: Service):
        self._app, self._service, self._limits = app, service, service.limits
        self._buffered = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began, sent, rest = time.monotonic(), _Sent(send), receive
        try:
            async with self._body(scope, receive) as body:
                rest = _nothing_more
                await at_leisure(body, check_json, body, self._limits.elements)
                if scope["method"] == "POST" and scope["path"].startswith("/v1/"):
                    await self._counted(scope, receive, sent, body)
                else:
                    await self._free(scope, receive, sent, body)
        except Exception as error:
            answer = answer_for(error, self._limits.deadline)
            if not sent.status:
                await refuse(rest, sent, answer)
        finally:
            route = getattr(scope.get("route"), "path", "") or "other"
            self._service.metrics.requests.labels(route, sent.status or "none").inc()
            self._service.metrics.seconds.labels(route).observe(time.monotonic() - began)

    @contextlib.asynccontextmanager
    async def _body(self, scope: Scope, receive: Receive) -> AsyncIterator[bytes]:
        """The whole body, within its bounds of size, memory and time."""
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > self._limits.body_bytes:
            raise self._too_large()
        body, size = bytearray(), 0
        try:
            try:
                async with asyncio.timeout(self._limits.body_seconds):
                    await self._read(receive, body)
            except TimeoutError as error:
                raise ApiError(408, "the body took too long to arrive", code="slow_body") from error
            size, whole = len(body), bytes(body)
            body.clear()
            yield whole
        finally:
            self._buffered -= size or len(body)

    async def _read(self, receive: Receive, body: bytearray) -> None:
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ApiError(400, "the connection ended within the body")
            part = message.get("body", b"")
            body += part
            self._buffered += len(part)
            if len(body) > self._limits.body_bytes:
                raise self._too_large()
            if self._buffered > self._limits.buffered_bytes:
                raise Overloaded(1, "too many large requests at one time; try again later")
            more = message.get("more_body", False)

    def _too_large(self) -> ApiError:
        most = self._limits.body_bytes
        return ApiError(413, f"the body has more than {most} bytes", code="too_large")

    async def _counted(self, scope: Scope, receive: Receive, sent: _Sent, body: bytes) -> None:
        gone = asyncio.Event()
        with self._service.admission.admitted() as sent.at_end:
            app = asyncio.create_task(self._app(scope, _replay(body, gone), sent))
            watch = asyncio.create_task(_until_gone(receive))
            try:
                most = self._limits.deadline + _GRACE
                await asyncio.wait((app, watch), timeout=most, return_when="FIRST_COMPLETED")
                if app.done():
                    return app.result()
                if not watch.done():
                    raise DeadlineExceeded(self._limits.deadline)
            finally:
                await _ended(app, watch)

    async def _free(self, scope: Scope, receive: Receive, sent: _Sent, body: bytes) -> None:
        gone = asyncio.Event()

        async def watch() -> None:
            ends = [asyncio.create_task(_until_gone(receive))]
            if "/queue/" not in scope["path"]:  # an answer on the page is still waited for
                ends.append(asyncio.create_task(self._service.drains.wait()))
            try:
                await asyncio.wait(ends, return_when="FIRST_COMPLETED")
                gone.set()
            finally:
                await _ended(*ends)

        watching = asyncio.create_task(watch())
        try:
            await self._app(scope, _replay(body, gone), sent)
        finally:
            await _ended(watching)
            if self._service.draining:
                await sent.complete()


class _Sent:
    """`send`, and what was sent. at_end: called before the last of the response."""

    def __init__(self, send: Send):
        self._send, self.status, self._open = send, 0, False
        self.at_end: Callable[[], None] = lambda: None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        self._open = message.get("more_body", message["type"] == "http.response.start")
        if not self._open:
            self.at_end()  # before the caller can have all of it, and send the next request
        await self._send(message)

    async def complete(self) -> None:
        """Ends a response that was cut off."""
        if self._open:
            await self({"type": "http.response.body", "body": b""})


async def at_leisure(body: bytes, call: Callable[..., T], *args: object) -> T:
    """What a function of a body returns; of a large one it is called in another thread."""
    if len(body) <= _SMALL:
        return call(*args)
    return await run_in_threadpool(call, *args)


async def _nothing_more() -> Message:
    """A `receive` after a body that has been read whole: a refusal need not wait for the rest."""
    return {"type": "http.request", "body": b"", "more_body": False}


async def _until_gone(receive: Receive) -> None:
    """Ends when the caller has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _ended(*tasks: asyncio.Task) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _replay(body: bytes, gone: asyncio.Event) -> Receive:
    """A `receive` that gives the whole body, and then waits for the caller to leave."""
    given = False

    async def receive() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    return receive
