"""uvicorn with a timeout for the head of a request, and with graceful draining."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from crem_jax.errors import CremError
from crem_jax.serve.service import Service

_SLOW = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_GRACE = 10.0
"""Seconds after the deadline for which a draining server waits for its connections."""
_CLOSING = 5.0
"""Further seconds for ending its threads, after which the process is ended."""


def listen(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet.

    Raises:
      CremError: the address cannot be used.
    """
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, UnicodeError) as error:  # UnicodeError: an invalid host name
        reason = getattr(error, "strerror", None) or error
        raise CremError(f"cannot listen on {host} port {port}: {reason}") from error
    return listener


def make_server(app: ASGIApp, service: Service) -> DrainingServer:
    """Makes a server, not yet running.

    `run([listener])` blocks until SIGTERM, SIGINT or `should_exit` has drained it.
    """

    class Protocol(_ImpatientProtocol):
        head_seconds = service.limits.head_seconds

    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=service.limits.connections,
        timeout_graceful_shutdown=int(service.limits.deadline + _GRACE),
    )
    return DrainingServer(config, service)


class _ImpatientProtocol(H11Protocol):
    """Closes connections on which a request's head does not arrive within `head_seconds`."""

    head_seconds: float
    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._watch()

    def handle_events(self) -> None:
        super().handle_events()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watch()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_watch()  # a request has arrived: RequestLimits applies now
        elif self._waiting is None:
            self._waiting = self.loop.call_later(self.head_seconds, self._close)

    def _stop_watch(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _close(self) -> None:
        self._waiting = None
        if not self.transport.is_closing():
            self.transport.write(_SLOW)
            self.transport.close()


class DrainingServer(uvicorn.Server):
    """A server that reports its port on start-up and drains the service on shutdown.

    The process ends at the latest `drain_seconds` after a signal, by SIGALRM if necessary, and
    immediately after a second signal.
    """

    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self._service = service
        self.drain_seconds = service.limits.deadline + _GRACE + _CLOSING
        self.on_start: Callable[[int], None] = lambda port: None

    async def startup(self, sockets=None) -> None:
        await super().startup(sockets)
        if self.started:
            self.on_start(self.servers[0].sockets[0].getsockname()[1])

    async def shutdown(self, sockets=None) -> None:
        self._service.drains.set()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame) -> None:
        if self.should_exit:
            os._exit(128 + sig)
        super().handle_exit(sig, frame)
        # The system sends it, whatever the threads of this process do.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, self.drain_seconds)

    @contextlib.contextmanager
    def capture_signals(self):
        # uvicorn raises the signal again when it has drained, which would end the process as if it
        # had not; an interrupt stays one.
        with contextlib.suppress(ValueError):  # not in the main thread: no signals here
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        with super().capture_signals():
            yield
