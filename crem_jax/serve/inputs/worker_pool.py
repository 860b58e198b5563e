"""A pool of warm processes for calls that may crash, hang, or use too much memory.

A call that takes too long is killed together with its process, which is replaced.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from crem_jax.errors import Unavailable
from crem_jax.processes import DONE, READY, Raised, Sent, WorkerLimits, start_worker

_START = 30.0
"""Timeout in seconds for starting a process."""
_GRACE = 2.0
"""Seconds a process gets beyond its time before the system ends it, if its owner does not."""


class CallLost(Exception):
    """The process ended during a call.

    Attributes:
      timeout: True if it was killed because it took too long, False if it crashed.
    """

    def __init__(self, message: str, timeout: bool):
        super().__init__(message)
        self.timeout = timeout


class NoWorkerError(Unavailable):
    """No process is available: none can be started, or the pool is closed."""


class WorkerPool:
    """Calls `work(task)` in other processes; threads may call concurrently.

    Args:
      work: a picklable function.
      workers: number of processes, and so of concurrent calls; further calls wait.
      seconds: timeout of a call.
      memory: bytes of address space by which a process may grow after its start; None is no limit.
    """

    def __init__(
        self, work: Callable[[Any], Any], workers: int, seconds: float, memory: int | None = None
    ):
        limits = WorkerLimits(seconds + _GRACE, memory, signals=False)
        self._all = [_Worker(_Yielded(work), seconds, limits) for _ in range(workers)]
        self._idle = list(self._all)
        self._changed = threading.Condition()
        self._closed = False
        # They outlive SIGTERM, by which multiprocessing would end them.
        atexit.register(self.close)
        self.check()

    def call(self, task: Any) -> Any:
        """Returns `work(task)`.

        Raises:
          CallLost: it took too long or crashed. NoWorkerError: it was not started.
          Exceptions of `work` are raised as they are.
        """
        with self._taken() as worker:
            try:
                return worker.call(task)
            except (CallLost, NoWorkerError) as error:
                if self._closed:
                    raise NoWorkerError("the pool is closed") from error
                if isinstance(error, CallLost):
                    worker.restart()
                raise

    def check(self) -> bool:
        """Replaces idle processes that have ended; False if none is usable. Does not wait."""
        with self._changed:
            if self._closed:
                return False
            for worker in self._idle:
                worker.revive()
            return any(worker.usable for worker in self._all)

    @property
    def pids(self) -> list[int]:
        """The process ids."""
        return [process.pid for worker in self._all if (process := worker.process) is not None]

    def close(self) -> None:
        """Kills all processes, and with them the running calls."""
        atexit.unregister(self.close)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            for worker in self._all:
                worker.kill()

    @contextlib.contextmanager
    def _taken(self) -> Iterator[_Worker]:
        with self._changed:
            while not self._idle and not self._closed:
                self._changed.wait()
            if self._closed:
                raise NoWorkerError("the pool is closed")
            worker = self._idle.pop()  # the most recently used one, whose caches are warm
        try:
            yield worker
        finally:
            with self._changed:
                if self._closed:
                    worker.kill()
                self._idle.append(worker)
                self._changed.notify()


@dataclasses.dataclass(frozen=True)
class _Yielded:
    work: Callable[[Any], Any]

    def __call__(self, task: Any) -> Iterator[Any]:
        yield self.work(task)


class _Worker:
    """A process and its successors."""

    def __init__(self, work: _Yielded, seconds: float, limits: WorkerLimits):
        self._work, self._seconds, self._limits = work, seconds, limits
        self._ready = self._busy = False
        self._failed = False  # at its last start
        self._late = 0.0  # deadline for the process to respond
        self.process = self._pipe = None

    @property
    def usable(self) -> bool:
        """Whether it is idle, or still within its time to start or to work."""
        if self._ready and not self._busy:
            return True
        return (self._ready or not self._failed) and time.monotonic() < self._late

    def revive(self) -> None:
        """Starts the process if it has ended, and notes when it is ready; does not wait."""
        if self.process is None or not self.process.is_alive():
            self.restart()
        elif not self._ready:
            self._hear(0)

    def restart(self) -> None:
        """Replaces the process."""
        self._failed = (not self._ready and self.process is not None) or self._failed
        self.kill()
        self._ready, self._late = False, time.monotonic() + _START
        try:
            self._pipe, self.process = start_worker(self._work, self._limits)
        except OSError:
            self._failed = True

    def kill(self) -> None:
        """Kills the process, which also ends reads from its pipe."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.join(_GRACE)

    def call(self, task: Any) -> Any:
        self.revive()
        process = self.process
        while not self._ready:
            if process is None or not self._hear(self._late - time.monotonic()):
                self._failed = True
                self.kill()
                raise NoWorkerError("no process can be started")
        began = time.monotonic()
        self._busy, self._late = True, began + self._seconds + _GRACE
        try:
            self._pipe.send(task)
            return self._result(began + self._seconds)
        except (EOFError, OSError) as error:
            process.join(_GRACE)
            message = f"its process ended with code {process.exitcode}"
            raise CallLost(message, timeout=False) from error
        finally:
            self._busy = False

    def _result(self, end: float) -> Any:
        value = None
        while self._pipe.poll(max(0.0, end - time.monotonic())):
            message = self._pipe.recv()
            if isinstance(message, Raised):
                raise message.error
            if isinstance(message, Sent):
                value = message.value
            elif message == DONE:
                return value
        raise CallLost(f"took more than {self._seconds:g} seconds", timeout=True)

    def _hear(self, seconds: float) -> bool:
        """Waits for the process to be ready; False if it has ended or is late."""
        with contextlib.suppress(EOFError, OSError):
            if self._pipe.poll(max(0.0, seconds)):
                self._ready = self._pipe.recv() == READY
                self._failed = self._failed and not self._ready
        return self._ready
