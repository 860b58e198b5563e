"""Workers fail alone."""

from __future__ import annotations

import os
import time
import traceback

import pytest

from crem_jax.processes import WorkerLost, spread


def misbehave(task: int):
    for step in range(4):
        if (task, step) == (2, 3):
            os.abort()
        if (task, step) == (3, 1):
            time.sleep(60)
        yield step


def test_a_crashed_or_stuck_worker_costs_its_task_alone():
    got: dict[int, list] = {}
    for task, message in spread(misbehave, range(6), 2, timeout=2):
        got.setdefault(task, []).append(message)
    assert all(got[task] == [0, 1, 2, 3] for task in (0, 1, 4, 5))
    assert got[2] == [0, 1, 2, WorkerLost(3, "the process reading it ended with code -6")]
    assert got[3] == [0, WorkerLost(1, "took more than 2 s")]


def refuse(task: int):
    raise ValueError(f"not {task}")


def test_what_the_work_raises_is_raised():
    with pytest.raises(ValueError, match="not 0") as met:
        list(spread(refuse, [0, 0], 2))
    assert "in refuse" in "".join(traceback.format_exception(met.value))


class Odd(Exception):
    def __init__(self, one: int, two: int):
        super().__init__(f"{one} and {two}")


def be_odd(task: int):
    raise Odd(1, 2)


def test_an_error_that_cannot_leave_its_process_is_told_of():
    with pytest.raises(RuntimeError, match="Odd: 1 and 2"):
        list(spread(be_odd, [0], 1))
