"""One version of the table of entries, with derived indexes of its rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from crem_jax.library.ann.snapshot import Snapshot
from crem_jax.library.stores import lance_tables as tables

_ROWS_AT_ONCE = 8192


class View:
    """The rows of one table version, and indexes of exactly these rows.

    Args:
      table: a handle that stays at one version.

    Attributes:
      keys: int64 [n], keys of all rows, sorted. indexes: by column; the user of the view adds them.
    """

    def __init__(self, table: Any):
        self.version, self._table = table.version, table
        with tables.lance_errors(table.uri):
            rows = table.search().select(["key"]).with_row_id(True).to_arrow()
        order = np.argsort(rows["key"].to_numpy())
        self.keys, self._row_ids = (rows[name].to_numpy()[order] for name in ("key", "_rowid"))
        self.indexes: dict[str, Snapshot] = {}
        self._last: tuple[Any, np.ndarray] = (None, np.zeros(0, np.int64))

    def rows(self, keys: np.ndarray, columns: list[str]) -> pa.Table:
        """The rows with these keys, in any order."""
        row_ids = self._row_ids[np.searchsorted(self.keys, keys)]
        with tables.lance_errors(self._table.uri):
            return self._table.take_row_ids(row_ids.tolist()).select(["key", *columns]).to_arrow()

    def vectors(
        self, column: str, keys: np.ndarray | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The `ann.index.Vectors` of a column."""
        if keys is None:
            query = self._table.search().select(["key", column])
            for batch in tables.batches(self._table, query):
                yield batch["key"].to_numpy(), tables.matrix(batch[column])
            return
        for first in range(0, len(keys), _ROWS_AT_ONCE):
            rows = self.rows(keys[first : first + _ROWS_AT_ONCE], [column])
            yield rows["key"].to_numpy(), tables.matrix(rows[column])

    def chosen(self, column: str, where: str | None, seconds: float) -> np.ndarray | None:
        """Indices of an index's rows that match a filter, None without one; the last is cached.

        Args:
          seconds: that the filter may take.
        """
        if where is None:
            return None
        key, last = (column, where), self._last  # threads may search at once
        if last[0] != key:
            query = self._table.search().select(["key"])
            found = tables.matching(self._table, query, where, seconds)
            rows = self.indexes[column].rows(found["key"].to_numpy())
            self._last = last = (key, rows)
        return last[1]
