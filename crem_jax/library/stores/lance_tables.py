"""Helpers for LanceDB tables: writes by id with retries, reads, compaction, columns as arrays."""

from __future__ import annotations

import contextlib
import functools
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from lancedb.index import BTree

from crem_jax.library.entry import LibraryError, StoreError

_IDS_AT_ONCE = 500
_ROWS_AT_ONCE = 1024  # small enough to stop in time, large enough to cost nothing
_TRIES = 20

Read = TypeVar("Read")


def open_or_create(db: Any, name: str, schema: pa.Schema, version: str | None = None) -> Any:
    """Opens a table, or creates it.

    Args:
      version: of Lance's file format; None is the newest.
    """
    # `exist_ok` compares schemas, and a stored one has other types for JSON and blobs.
    with contextlib.suppress(ValueError, OSError):
        return db.open_table(name)
    try:
        options = {"new_table_data_storage_version": version} if version else None
        return db.create_table(name, schema=schema, storage_options=options)
    except (ValueError, OSError, RuntimeError):  # another process was first
        return open_table(db, name)


def open_table(db: Any, name: str) -> Any:
    """Opens a table.

    Raises:
      StoreError: the table does not exist or is damaged.
    """
    with lance_errors(db.uri):
        return db.open_table(name)


def index_columns(table: Any, columns: Sequence[str]) -> None:
    """Creates scalar indexes on columns that have none."""
    with lance_errors(table.uri):
        known = {column for index in table.list_indices() for column in index.columns}
    for column in columns:
        if column not in known:
            _with_retries(table, functools.partial(table.create_index, column, config=BTree()))


def merge(table: Any, rows: pa.Table) -> None:
    """Writes rows, replacing those with the same ids."""

    def write() -> None:
        merge = table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        merge.execute(rows)

    _with_retries(table, write)


def delete(table: Any, ids: Sequence[str]) -> None:
    """Deletes rows; unknown ids are no error."""
    for where in in_lists("id", ids):
        _with_retries(table, functools.partial(table.delete, where))


def _with_retries(table: Any, write: Callable[[], Any]) -> None:
    """Writes, and retries when another process has committed first."""
    for attempt in range(_TRIES):
        try:
            with lance_errors(table.uri):
                return write()
        except (OSError, LibraryError) as error:
            conflict = "conflict" in str(error).lower() or "contention" in str(error).lower()
            if not conflict or attempt == _TRIES - 1:
                raise
            time.sleep(0.05 * (1 + attempt) * (1 + np.random.default_rng().random()))
            newest(table)


def optimize(table: Any, columns: Sequence[str], keep: timedelta) -> None:
    """Indexes `columns`, merges small files, and drops versions older than `keep`."""
    index_columns(table, columns)
    try:
        with warnings.catch_warnings(), lance_errors(table.uri):
            warnings.simplefilter("ignore")
            table.optimize(cleanup_older_than=keep)
    except (OSError, LibraryError) as error:  # another process is writing: the next call will do it
        if "conflict" not in str(error).lower():
            raise


def read_newest(read: Callable[[], Read]) -> Read:
    """Calls `read`, and once more on the newest version if another process compacted the old one
    away.
    """
    for _ in range(_TRIES):
        try:
            return read()
        except (OSError, StoreError) as error:
            if "not found" not in str(error).lower():
                raise
    return read()


def rows_by_id(table: Any, ids: Sequence[str], columns: Sequence[str]) -> Iterator[pa.Table]:
    """The rows with these ids, in any order; unknown ids are left out."""
    for where in in_lists("id", ids):
        with lance_errors(table.uri):
            rows = table.search().where(where).select(list(columns)).to_arrow()
        yield rows


def batches(table: Any, query: Any) -> Iterator[pa.RecordBatch]:
    """Yields the rows of a query, in batches."""
    with lance_errors(table.uri):
        rows = iter(query.to_batches())
    while True:
        with lance_errors(table.uri):
            batch = next(rows, None)
        if batch is None:
            return
        yield batch


def newest(table: Any) -> Any:
    """Moves a table handle to the newest version and returns it."""
    with lance_errors(table.uri):
        table.checkout_latest()
    return table


def count(table: Any) -> int:
    """The number of rows."""
    with lance_errors(table.uri):
        return table.count_rows()


def in_lists(column: str, values: Sequence[Any]) -> list[str]:
    """SQL filters that together match all values, each with a limited number of them."""
    quoted = [
        "'" + value.replace("'", "''") + "'" if isinstance(value, str) else str(value)
        for value in values
    ]
    spans = range(0, len(quoted), _IDS_AT_ONCE)
    return [f"{column} IN ({', '.join(quoted[i : i + _IDS_AT_ONCE])})" for i in spans]


def matching(table: Any, query: Any, where: str, seconds: float) -> pa.Table:
    """What a condition leaves of the rows of a query that scans them.

    Nobody looks at the time within a batch of rows, and Lance's search for neighbours takes all
    rows as one. So this is a scan in small batches: it is given up at the end of the one it is at.

    Raises:
      LibraryError: the condition cannot be used, or takes more than so many seconds. StoreError:
        the table cannot be used.
    """
    late = time.monotonic() + seconds
    found: list[pa.RecordBatch] = []
    query, limit = query.where(where), timedelta(seconds=max(seconds, 0.001))
    try:
        with lance_errors(table.uri):
            rows = query.to_batches(batch_size=_ROWS_AT_ONCE, timeout=limit)
        while True:
            with lance_errors(table.uri):
                batch = next(rows, None)
            if time.monotonic() > late:
                break
            if batch is None:
                return pa.Table.from_batches(found, rows.schema)
            found.append(batch)
    except (OSError, StoreError) as error:
        if "query timeout" not in str(error).lower():
            if not _is_at_fault(query, error):
                raise
            reason = _reason(error.__cause__ or error)
            raise LibraryError(f"the condition {where!r} cannot be used: {reason}") from error
    raise LibraryError(f"the condition {where!r} takes more than {seconds:g} seconds")


def _is_at_fault(query: Any, error: Exception) -> bool:
    """Whether it is a query's condition that an error is about, and not the table's files."""
    if "filter expression" in str(error):
        return True
    try:
        query.explain_plan()  # reads no rows
    except (ValueError, RuntimeError, OSError, pa.ArrowException):
        return True
    return False


@contextlib.contextmanager
def lance_errors(uri: str) -> Iterator[None]:
    """Turns errors of Lance, which have no common class, into StoreError; only calls to Lance
    belong inside.

    Args:
      uri: the table's.

    Raises:
      StoreError: the table cannot be used. OSError passes.
    """
    try:
        yield
    except OSError:
        raise
    except (ValueError, RuntimeError, pa.ArrowException) as error:
        raise StoreError(f"{uri} cannot be used: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """What an error of Lance says, without where in its source."""
    return str(error).split("\n")[0].split(", rust/")[0][:300]


def matrix(column: Any) -> np.ndarray:
    """A fixed-size-list column as an array [n, D]."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    width = column.type.list_size
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(-1, width)


def to_numpy(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """A column as an array, [n] or [n, D]."""
    if pa.types.is_fixed_size_list(column.type):
        return matrix(column)
    return column.to_numpy(zero_copy_only=False)


def sizes(table: Any) -> dict[str, Any]:
    """A table's size in bytes and its version."""
    if "://" in table.uri:
        with lance_errors(table.uri):
            size = int(table.stats()["total_bytes"])  # without blobs
    else:
        files = (path.stat() for path in Path(table.uri).rglob("*") if path.is_file())
        size = sum(file.st_size for file in files)
    return {"bytes": size, "version": int(table.version)}
