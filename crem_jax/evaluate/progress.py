"""How an evaluation reports its progress."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

Counting = Callable[[int, str], AbstractContextManager[Callable[[int], None]]]
"""(total, what) -> a context that gives a function to call with the number of newly finished items,
as `commands.output.counting` does."""


@contextlib.contextmanager
def quiet(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """Reports to nobody."""
    yield lambda count: None
