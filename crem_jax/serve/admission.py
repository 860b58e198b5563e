"""Admission of requests: bounds their number, and sets each one's deadline."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from typing import TypeVar

from crem_jax.serve.errors import DeadlineExceeded, Overloaded
from crem_jax.serve.limits import Limits
from crem_jax.serve.metrics import Metrics

T = TypeVar("T")
_LONGEST_WAIT = 60  # seconds in Retry-After
_deadline: contextvars.ContextVar[float] = contextvars.ContextVar("deadline")


def deadline() -> float:
    """The deadline of the current request, as `time.monotonic`."""
    return _deadline.get()


async def in_thread(threads: Executor, call: Callable[..., T], *args: object) -> T:
    """Calls a function in another thread; raises TimeoutError at the request's deadline."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(deadline() - time.monotonic()):
        return await loop.run_in_executor(threads, functools.partial(call, *args))


class Admission:
    """Admits requests up to a limit.

    Args:
      job_seconds: returns the mean seconds of a request, for `Retry-After`.
    """

    def __init__(self, limits: Limits, metrics: Metrics, job_seconds: Callable[[], float]):
        self._limits, self._metrics, self._job_seconds = limits, metrics, job_seconds
        self.inside = 0

    @contextlib.contextmanager
    def admitted(self) -> Iterator[Callable[[], None]]:
        """Admits one request and sets its deadline.

        Yields:
          A function that releases its place early.

        Raises:
          Overloaded: too many requests are admitted.
        """
        if self.inside >= self._limits.requests:
            seconds = math.ceil(self.inside * self._job_seconds())
            raise Overloaded(min(max(seconds, 1), _LONGEST_WAIT))
        counted = [1]

        def leave() -> None:
            if counted:
                self._count(-counted.pop())

        self._count(1)
        token = _deadline.set(time.monotonic() + self._limits.deadline)
        try:
            yield leave
        except TimeoutError as error:
            raise DeadlineExceeded(self._limits.deadline) from error
        finally:
            _deadline.reset(token)
            leave()

    def _count(self, change: int) -> None:
        self.inside += change
        self._metrics.inside.set(self.inside)
