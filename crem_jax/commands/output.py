"""What verbs print: one JSON document, or a table for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

_PIPED_WIDTH = 240


def print_json(value: Any) -> None:
    """One line on stdout."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> None:
    """A table on stdout; all columns but the last are aligned to the right."""
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
