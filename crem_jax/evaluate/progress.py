"""Progress reports of evaluations."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

Counting = Callable[[int, str], AbstractContextManager[Callable[[int], None]]]
"""(total, what) -> a context manager that yields a function, to be called with the number of items
finished since the last call; see `commands.output.counting`."""


@contextlib.contextmanager
def quiet(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """Reports no progress."""
    yield lambda count: None
