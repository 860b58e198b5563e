"""How an evaluation tells how far it is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

Counting = Callable[[int, str], AbstractContextManager[Callable[[int], None]]]
"""(total, what) -> a context that gives a function to be told how many more are done, as
`commands.output.counting` does."""


@contextlib.contextmanager
def quiet(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """Tells nobody."""
    yield lambda count: None
