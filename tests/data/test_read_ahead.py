"""The next batch is worked on while one is in use."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from crem_jax.processes import read_ahead


def test_the_next_batch_is_begun_before_one_is_handed_out_and_no_later_one():
    begun = [threading.Event() for _ in range(5)]

    def call(task: int) -> int:
        begun[task].set()
        return 10 * task

    with ThreadPoolExecutor(2) as threads:
        got = read_ahead(threads, call, [[0, 1], [2], [3, 4]])
        assert next(got) == [0, 10]
        assert begun[2].wait(10)
        assert not begun[3].is_set() and not begun[4].is_set()
        assert list(got) == [[20], [30, 40]]
        assert list(read_ahead(threads, call, [])) == []


def test_a_task_that_fails_raises_where_its_batch_is_taken_and_leaves_nothing_waiting():
    held, called = threading.Event(), []

    def call(task: int) -> int:
        called.append(task)
        if task == 1:
            held.wait(10)
        return 1 // task

    with ThreadPoolExecutor(1) as threads:
        got = read_ahead(threads, call, [[0], [1, 2, 3]])
        with pytest.raises(ZeroDivisionError):
            next(got)
        held.set()
    assert called in ([0], [0, 1])
