"""Work spread over processes, none of which can take the others down; and read ahead in threads.

A worker that crashes or is stuck costs what it was doing at that moment and nothing else; workers
end with the process that started them, however that ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import multiprocessing
import os
import pickle
import resource
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from multiprocessing import connection
from pathlib import Path
from typing import Any, TypeVar

Task = TypeVar("Task")
Message = TypeVar("Message")
Result = TypeVar("Result")
_POLL = 0.5
READY, DONE = "ready", "done"


@dataclasses.dataclass(frozen=True)
class WorkerLost:
    """A worker ended within a task.

    Attributes:
      after: how many messages of the task came before. reason: what happened to it.
    """

    after: int
    reason: str


def spread(
    work: Callable[[Task], Iterable[Message]],
    tasks: Iterable[Task],
    workers: int,
    timeout: float | None = None,
) -> Iterator[tuple[Task, Message | WorkerLost]]:
    """Runs `work(task)` for all tasks in `workers` processes.

    Args:
      work: picklable; what it yields is sent back as it comes.
      timeout: seconds within a task from one message to the next, after which a worker is stopped.

    Yields:
      (task, message) in the order they come; a task's messages are in order. (task, Lost) as a
      task's last, where its worker was lost.

    Raises:
      RuntimeError: a process cannot start. Also what `work` raises, its traceback as a note.
    """
    waiting = deque(tasks)
    running: dict[connection.Connection, _Running] = {}

    def start() -> None:
        pipe, process = start_worker(work)
        running[pipe] = _Running(process)

    def give(pipe: connection.Connection) -> None:
        state = running[pipe]
        state.task, state.count, state.since = waiting.popleft(), 0, time.monotonic()
        state.busy = True
        with contextlib.suppress(OSError):  # it has just ended: the loop will see
            pipe.send(state.task)

    def stop(pipe: connection.Connection) -> None:
        state = running.pop(pipe)
        pipe.close()
        state.process.kill()
        state.process.join()

    def lose(pipe: connection.Connection, reason: str) -> tuple[Task, WorkerLost]:
        state = running[pipe]
        if not state.busy:
            state.process.join()
            raise RuntimeError(f"a worker ended with code {state.process.exitcode} at its start")
        if "{}" in reason:
            state.process.join()
            reason = reason.format(state.process.exitcode)
        stop(pipe)
        if waiting:
            start()
        return state.task, WorkerLost(state.count, reason)

    try:
        for _ in range(min(workers, len(waiting))):
            start()
        while running:
            ready: list[Any] = connection.wait(list(running), _POLL)
            for pipe in ready:
                state = running[pipe]
                try:
                    message = pipe.recv()
                except (EOFError, OSError):
                    yield lose(pipe, "the process reading it ended with code {}")
                    continue
                state.since = time.monotonic()
                if isinstance(message, Raised):
                    raise message.error
                if isinstance(message, Sent):
                    state.count += 1
                    yield state.task, message.value
                elif waiting:
                    give(pipe)
                else:
                    stop(pipe)
            for pipe, state in list(running.items()):
                if timeout and state.busy and time.monotonic() - state.since > timeout:
                    yield lose(pipe, f"took more than {timeout:g} s")
    finally:
        for pipe in list(running):
            stop(pipe)


@dataclasses.dataclass(frozen=True)
class WorkerLimits:
    """What a worker may take, beyond which the system ends it; None is no limit.

    Attributes:
      seconds: for a task. It holds even where the worker's owner is gone.
      memory: bytes of address space above what it has at its start.
      signals: whether it ends by SIGINT and SIGTERM, which a terminal or a service manager sends to
        all of a group, its owner included.
    """

    seconds: float | None = None
    memory: int | None = None
    signals: bool = True


def start_worker(
    work: Callable[[Task], Iterable[Any]], limits: WorkerLimits | None = None
) -> tuple[connection.Connection, multiprocessing.process.BaseProcess]:
    """A new process, and the pipe to it.

    It sends READY, and from then on takes tasks: for each it sends what `work` yields as `Sent`,
    and then DONE, or what was raised as `Raised`.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_serve, args=(work, theirs, limits or WorkerLimits()), daemon=True
    )
    process.start()
    theirs.close()
    return ours, process


@functools.cache
def end_with_parent() -> None:
    """Has this process end when the one that started it does, however that ends.

    A parent that is killed cannot end its workers: they would wait forever to be asked for more,
    and hold their memory. Does nothing in a process that no other has started.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def allow_open_files() -> None:
    """Raises this process's limit of open files as far as it may.

    A batch has all its pictures open between their headers and their pixels; the usual limit of
    1,024 is for programs that `select`.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def default_workers() -> int:
    """One for each core this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclasses.dataclass
class _Running:
    process: Any
    busy: bool = False
    task: Any = None
    count: int = 0
    since: float = 0.0


@dataclasses.dataclass(frozen=True)
class Sent:
    """What a worker sends. value: what `work` has yielded."""

    value: Any


@dataclasses.dataclass(frozen=True)
class Raised:
    """What a worker sends. error: what `work` has raised."""

    error: Exception


def _serve(
    work: Callable[[Any], Iterable[Any]], pipe: connection.Connection, limits: WorkerLimits
) -> None:
    end_with_parent()
    if not limits.signals:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if limits.memory is not None:
        _limit_memory(limits.memory)
    with contextlib.suppress(EOFError, KeyboardInterrupt, BrokenPipeError):
        pipe.send(READY)
        while True:
            task = pipe.recv()
            # No handler: a decoder need not come back to Python for the system to end it.
            signal.setitimer(signal.ITIMER_REAL, limits.seconds or 0)
            last: Any = DONE
            try:
                for message in work(task):
                    pipe.send(Sent(message))
            except (BrokenPipeError, KeyboardInterrupt):
                raise
            except Exception as error:
                last = Raised(_portable(error))
            signal.setitimer(signal.ITIMER_REAL, 0)
            pipe.send(last)


def _limit_memory(more: int) -> None:
    """Lets this process have so many bytes of address space more; only Linux says what it has."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    wanted = pages * resource.getpagesize() + more
    if most == resource.RLIM_INFINITY or wanted < most:
        resource.setrlimit(resource.RLIMIT_AS, (wanted, most))


def read_ahead(
    threads: Executor, call: Callable[[Task], Result], batches: Iterable[Iterable[Task]]
) -> Iterator[list[Result]]:
    """The results of `call` for the tasks of each batch, in order.

    The tasks of the next batch are worked on in `threads` while those of one are in use; so the
    results of two batches are in memory.
    """
    waiting: list[Future[Result]] | None = None
    following: list[Future[Result]] = []
    try:
        for batch in batches:
            following = [threads.submit(call, task) for task in batch]
            if waiting is not None:
                yield [future.result() for future in waiting]
            waiting = following
        if waiting is not None:
            yield [future.result() for future in waiting]
    finally:  # where a task has failed, or nobody wants more
        for future in following:
            future.cancel()


def _portable(error: Exception) -> Exception:
    """The error as another process can raise it, with the traceback that it would lose."""
    where = f"in a worker process:\n{traceback.format_exc()}"
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(where)
    return error
