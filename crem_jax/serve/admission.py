"""How many requests are inside at one time, and how long each may stay."""

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
    """`time.monotonic` at which the request that is worked on here is too late."""
    return _deadline.get()


async def in_thread(threads: Executor, call: Callable[..., T], *args: object) -> T:
    """What a function returns, called in another thread; TimeoutError at the deadline."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(deadline() - time.monotonic()):
        return await loop.run_in_executor(threads, functools.partial(call, *args))


class Admission:
    """Lets requests in, up to a limit.

    Args:
      job_seconds: gives the mean time of a request, for `Retry-After`.
    """

    def __init__(self, limits: Limits, metrics: Metrics, job_seconds: Callable[[], float]):
        self._limits, self._metrics, self._job_seconds = limits, metrics, job_seconds
        self.inside = 0

    @contextlib.contextmanager
    def admitted(self) -> Iterator[Callable[[], None]]:
        """Counts one request in, and sets its deadline.

        Yields:
          What counts it out, if that is known before the end.

        Raises:
          Busy: too many are inside.
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
