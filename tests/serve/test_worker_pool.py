"""A pool of processes: what a call does to its own costs that call alone."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from crem_jax.serve.inputs.worker_pool import CallLost, NoWorkerError, WorkerPool

HANG = 60.0
"""Seconds after which a test has hung."""


def until(true) -> None:
    end = time.monotonic() + HANG
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def lives(pid: int) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"
    return False


def end(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            os.kill(pid, signal.SIGKILL)
    until(lambda: not any(map(lives, pids)))


def behave(task):
    """A call that does what it is told."""
    what, value = task
    if what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "hang":  # and holds Python's lock, as some decoders do
        re.match(r"(a+)+$", "a" * 60 + "b")
    if what == "eat":
        return len(bytearray(value))
    if what == "raise":
        raise ValueError(value)
    return what, value


@pytest.fixture(scope="module")
def pool():
    pool = WorkerPool(behave, 2, seconds=3.0, memory=1 << 28)
    yield pool
    pids = pool.pids
    pool.close()
    assert not any(map(lives, pids))


def test_a_call_that_crashes_hangs_or_eats_memory_costs_itself_alone(pool):
    assert pool.call(("say", 1)) == ("say", 1)
    with pytest.raises(CallLost, match="ended with code -11") as crash:
        pool.call(("crash", 0))
    with pytest.raises(CallLost, match="took more than 3 seconds") as late:
        pool.call(("hang", 0))
    assert (crash.value.timeout, late.value.timeout) == (False, True)
    with pytest.raises(MemoryError):
        pool.call(("eat", 1 << 29))
    assert pool.call(("eat", 1 << 26)) == 1 << 26
    with pytest.raises(ValueError, match="not this"):
        pool.call(("raise", "not this"))
    assert [pool.call(("say", i)) for i in range(4)] == [("say", i) for i in range(4)]
    assert pool.check() and len(pool.pids) == 2


def test_processes_that_end_while_nothing_is_asked_of_them_are_replaced(pool):
    before = pool.pids
    end(before)
    until(lambda: pool.check() and not set(before) & set(pool.pids))
    assert pool.call(("say", 2)) == ("say", 2)


def test_a_pool_without_processes_says_so_until_it_has_some(pool, monkeypatch):
    monkeypatch.setattr(multiprocessing.spawn, "_python_exe", b"/bin/false")
    end(pool.pids)
    until(lambda: not pool.check())
    with pytest.raises(NoWorkerError, match="no process can be started"):
        pool.call(("say", 3))
    monkeypatch.undo()
    until(pool.check)
    assert pool.call(("say", 3)) == ("say", 3)


def test_closing_ends_the_calls_that_are_under_way():
    pool, ended = WorkerPool(behave, 1, seconds=HANG), []

    def call() -> None:
        with pytest.raises(NoWorkerError, match="closed"):
            pool.call(("hang", 0))
        ended.append(True)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    (pid,) = pool.pids
    pool.close()
    for thread in threads:
        thread.join(HANG)
    assert len(ended) == 3 and not lives(pid)


OWNER = """
import sys, threading, time
from crem_jax.serve.inputs.worker_pool import WorkerPool
from tests.serve.test_worker_pool import behave
if __name__ == "__main__":
    pool = WorkerPool(behave, 1, seconds=2.0)
    pool.call(("say", 1))
    threading.Thread(target=pool.call, args=(("hang", 0),), daemon=True).start()
    time.sleep(0.5)
    print(*pool.pids, flush=True)
    time.sleep(60)
"""


def test_a_process_that_hangs_ends_even_if_its_owner_is_gone(tmp_path):
    script = tmp_path / "owner.py"
    script.write_text(OWNER)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment
    ) as owner:
        pid = int(owner.stdout.readline())
        assert lives(pid)
        owner.kill()
    until(lambda: not lives(pid))
