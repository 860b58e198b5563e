"""Output of the verbs: JSON, tables and progress bars."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

_PIPED_WIDTH = 240


def print_json(value: Any) -> None:
    """Prints a value as one line of JSON on stdout."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> None:
    """Prints a table on stdout; all columns but the last are right-aligned."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:  # file names stay on one line
        console = Console(width=_PIPED_WIDTH)
    table = Table(title=Text(title) if title else None, title_justify="left")
    for column in columns[:-1]:
        table.add_column(column, justify="right")
    table.add_column(columns[-1], overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


@contextlib.contextmanager
def counting(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr; without a terminal, a line for every 10 %.

    Yields:
      A function to call with the number of items finished since the last call.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task, done, printed = bar.add_task(what, total=total), 0, 0

        def count(more: int) -> None:
            nonlocal done, printed
            done += more
            bar.advance(task, more)
            if not console.is_terminal and 10 * done // max(total, 1) > printed:
                printed = 10 * done // max(total, 1)
                console.print(f"{what} {done}/{total}", highlight=False, soft_wrap=True)

        yield count
