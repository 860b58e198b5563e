"""Entries and memories in LanceDB: two tables in a directory or at an object-store URI.

Memories are blobs in their own table, so that compacting entries does not rewrite them. Rows are
merged by id (`merge_insert`), so that repeating the writes of an interrupted run is idempotent.
"""

from __future__ import annotations

import functools
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa

from crem_jax.library.ann.index import Neighbours
from crem_jax.library.conditions import SECONDS
from crem_jax.library.entry import Entry, Hit, LibraryError, LibraryInfo, check_unique
from crem_jax.library.stores import lance_tables as tables
from crem_jax.library.stores.lance_view import View

ENTRIES, MEMORIES = "entries", "memories"
EXACT_UP_TO = 20_000
"""Up to this number of rows a search is exact; beyond it uses `ann.index.Neighbours`."""

_INFO_KEY = b"crem"
_ENTRIES_FORMAT = "2.1"  # 2.2 packs columns of few values so that reading a row takes 5 ms for each
_INDEXED = {ENTRIES: ("id", "key", "source"), MEMORIES: ("id",)}
_ROWS_AT_ONCE = 8192
_FIELDS = ("id", "uri", "text", "metadata", "thumbnail", "width", "height", "source", "content")


def connect(uri: str | os.PathLike) -> Any:
    """The database at a path or URI (s3://, gs://, az://)."""
    with tables.lance_errors(os.fspath(uri)):
        return lancedb.connect(os.fspath(uri))


def exists(uri: str) -> bool:
    """Whether there is a library at an object-store URI."""
    db = connect(uri)
    with tables.lance_errors(uri):
        return MEMORIES in db.table_names(limit=1000)


def create(db: Any, info: LibraryInfo) -> None:
    """Creates the tables of a new library, ending with the one that `exists` looks for.

    Several processes may do so at the same time.
    """
    if not info.vectors:
        table = tables.open_or_create(db, ENTRIES, _schema(info), _ENTRIES_FORMAT)
        if _vector_types(table.schema) != _vector_types(_schema(info)):
            db.drop_table(ENTRIES)  # empty, left by a killed process
            table = tables.open_or_create(db, ENTRIES, _schema(info), _ENTRIES_FORMAT)
        tables.index_columns(table, _INDEXED[ENTRIES])
    columns = [("id", pa.string()), ("content", pa.string()), lancedb.blob("memory")]
    schema = pa.schema(columns, metadata={_INFO_KEY: info.to_json().encode()})
    table = tables.open_or_create(db, MEMORIES, schema)
    tables.index_columns(table, _INDEXED[MEMORIES])


def read_info(db: Any) -> LibraryInfo:
    """The library's description of itself.

    Raises:
      LibraryError: the database is not a library.
    """
    note = (tables.open_table(db, MEMORIES).schema.metadata or {}).get(_INFO_KEY)
    if note is None:
        raise LibraryError(f"{db.uri} is a LanceDB database but no library")
    return LibraryInfo.from_json(note)


class LanceEntries:
    """`protocols.Entries` in a LanceDB table. Threads may search concurrently.

    Args:
      cache: the directory of derived indexes.
      exact_up_to: up to this number of rows a search is exact.
    """

    searches_exactly = True

    def __init__(self, db: Any, info: LibraryInfo, cache: Path, exact_up_to: int = EXACT_UP_TO):
        self._db, self._table = db, tables.open_table(db, ENTRIES)
        self._info, self._cache, self._exact_up_to = info, cache, exact_up_to
        self._lock = threading.Lock()  # guards the two below
        self._neighbours: dict[str, Neighbours] = {}
        self._last_view: View | None = None

    def put(self, entries: Sequence[Entry]) -> None:
        check_unique([entry.id for entry in entries])
        columns = {
            "id": [entry.id for entry in entries],
            "key": [entry.key for entry in entries],
            "metadata": [json.dumps(dict(entry.metadata)) for entry in entries],
            **{
                name: [getattr(entry, name) for entry in entries]
                for name in _FIELDS
                if name not in ("id", "metadata")
            },
        }
        for i, k in enumerate(self._info.prefixes):
            flat = np.stack([entry.vectors[i] for entry in entries]).astype(np.float16)
            values = pa.array(flat.reshape(-1))
            columns[self._info.column(k)] = pa.FixedSizeListArray.from_arrays(
                values, self._info.dim
            )
        tables.merge(self._table, pa.table(columns, schema=_schema(self._info)))

    def delete(self, ids: Sequence[str]) -> None:
        tables.delete(self._table, ids)

    def get(self, ids: Sequence[str]) -> list[Entry | None]:
        vectors = [self._info.column(k) for k in self._info.prefixes]
        columns, found = [*_FIELDS, *vectors], {}
        for rows in tables.read_newest(
            lambda: list(tables.rows_by_id(self._latest(), ids, columns))
        ):
            stacked = np.stack([tables.matrix(rows[name]) for name in vectors], axis=1)
            for row, own in zip(rows.select(_FIELDS).to_pylist(), stacked, strict=True):
                found[row["id"]] = _entry(row, own)
        return [found.get(name) for name in ids]

    def scan(
        self, columns: Sequence[str], where: str | None = None, seconds: float = SECONDS
    ) -> Iterator[Mapping[str, np.ndarray]]:
        if where is None:
            found = tables.batches(self._table, self._latest().search().select(list(columns)))
        else:
            found = self._matching(columns, where, seconds)
        for rows in found:
            yield {name: tables.to_numpy(rows.column(name)) for name in columns}

    def _matching(self, columns: Sequence[str], where: str, seconds: float) -> Iterator[pa.Table]:
        """First which rows, which takes its time, and then the rows, for whoever reads them."""
        table = tables.open_table(self._db, ENTRIES)  # row ids are of one version
        query = table.search().select(["key"]).with_row_id(True)
        row_ids = tables.matching(table, query, where, seconds)["_rowid"].to_pylist()
        for first in range(0, len(row_ids), _ROWS_AT_ONCE):
            with tables.lance_errors(table.uri):
                some = table.take_row_ids(row_ids[first : first + _ROWS_AT_ONCE])
                rows = some.select(list(columns)).to_arrow()
            yield rows

    def search(
        self,
        vector: np.ndarray,
        k: int | None,
        top: int,
        where: str | None = None,
        exact: bool = False,
        seconds: float = SECONDS,
    ) -> list[Hit]:
        column = self._info.column(k)
        return tables.read_newest(lambda: self._search(vector, column, top, where, exact, seconds))

    def count(self) -> int:
        return tables.count(self._latest())

    def version(self) -> int:
        return int(self._latest().version)

    def stats(self) -> dict[str, Any]:
        return {"entries": self.count(), **tables.sizes(self._latest())}

    def compact(self) -> None:
        tables.optimize(self._latest(), _INDEXED[ENTRIES], timedelta(0))
        if self.count() > self._exact_up_to:
            self._view(self._info.column(None))

    def recall(self, top: int, queries: int) -> dict[str, Any]:
        count = self.count()
        if count <= self._exact_up_to:
            return {"search": "exact", "recall": {}}
        found = {}
        for k in self._info.prefixes:
            column = self._info.column(k)
            if k == self._info.num_chorus or (self._cache / column).exists():
                found[k] = self._view(column).indexes[column].measure(top, queries)
        return {
            "search": "sign bits, re-ranked",
            "recall": found,
            "top": top,
            "queries": min(queries, count),
        }

    def tidy(self) -> None:
        """The part of `compact` that is safe while other processes read and write."""
        tables.optimize(self._latest(), _INDEXED[ENTRIES], timedelta(minutes=10))

    def _search(
        self,
        vector: np.ndarray,
        column: str,
        top: int,
        where: str | None,
        exact: bool,
        seconds: float,
    ) -> list[Hit]:
        if self.count() <= self._exact_up_to or exact:
            if where is not None:
                return self._exact_where(vector, column, top, where, seconds)
            return self._exact(vector, column, top)
        view = self._view(column)
        keys, scores = view.indexes[column].search(vector, top, view.chosen(column, where, seconds))
        if not len(keys):
            return []
        rows = view.rows(keys, list(_FIELDS)).to_pylist()
        found = {row["key"]: _entry(row) for row in rows}
        pairs = zip(keys.tolist(), scores.tolist(), strict=True)
        return [Hit(found[key], score) for key, score in pairs]

    def _exact(self, vector: np.ndarray, column: str, top: int) -> list[Hit]:
        query = self._table.search(np.asarray(vector, np.float32), vector_column_name=column)
        query = query.distance_type("dot").select([*_FIELDS, "_distance"]).limit(top)
        with tables.lance_errors(self._table.uri):
            rows = query.to_arrow().to_pylist()
        return [Hit(_entry(row), 1.0 - row["_distance"]) for row in rows]

    def _exact_where(
        self, vector: np.ndarray, column: str, top: int, where: str, seconds: float
    ) -> list[Hit]:
        table = tables.open_table(self._db, ENTRIES)  # row ids are of one version
        query = table.search().select(["key", column]).with_row_id(True)
        found = tables.matching(table, query, where, seconds)
        if not len(found):
            return []
        # As Lance compares them: both in float16, summed in float32.
        asked = np.asarray(vector, np.float16).astype(np.float32)
        scores = tables.matrix(found[column]).astype(np.float32) @ asked
        best = np.argsort(-scores, kind="stable")[:top]
        row_ids = found["_rowid"].to_numpy()[best].tolist()
        fields = ["key", *_FIELDS]
        with tables.lance_errors(table.uri):
            rows = table.take_row_ids(row_ids).select(fields).to_arrow().to_pylist()
        known = {row["key"]: _entry(row) for row in rows}
        keys = found["key"].to_numpy()[best].tolist()
        return [Hit(known[key], float(scores[i])) for key, i in zip(keys, best, strict=True)]

    def _view(self, column: str) -> View:
        """A view of the table's newest version, with an index of the column."""
        with self._lock:
            if self._last_view is None or self._last_view.version != self._latest().version:
                self._last_view = View(tables.open_table(self._db, ENTRIES))
            view = self._last_view
            if column not in view.indexes:
                if column not in self._neighbours:
                    self._neighbours[column] = Neighbours(self._cache / column, self._info.dim)
                vectors = functools.partial(view.vectors, column)
                near = self._neighbours[column]
                view.indexes[column] = near.update(view.version, view.keys, vectors)
            return view

    def _latest(self) -> Any:
        return tables.newest(self._table)


class LanceMemories:
    """`protocols.Memories` in a LanceDB table."""

    def __init__(self, db: Any):
        self._db, self._table = db, tables.open_table(db, MEMORIES)

    def put(self, ids: Sequence[str], contents: Sequence[str], blobs: Sequence[bytes]) -> None:
        check_unique(list(ids))
        memory = pa.array(list(blobs), pa.large_binary())
        tables.merge(self._table, pa.table({"id": ids, "content": contents, "memory": memory}))

    def delete(self, ids: Sequence[str]) -> None:
        tables.delete(self._table, ids)

    def get(self, ids: Sequence[str]) -> list[bytes | None]:
        return tables.read_newest(lambda: self._get(ids))

    def _get(self, ids: Sequence[str]) -> list[bytes | None]:
        # Row ids are of one version, and other threads move `_table` on.
        table = tables.open_table(self._db, MEMORIES)
        found: dict[str, bytes] = {}
        for where in tables.in_lists("id", ids):
            with tables.lance_errors(table.uri):
                rows = table.search().where(where).select(["id"]).with_row_id(True).to_arrow()
                if not len(rows):
                    continue
                blobs = table.fetch_blobs("memory", rows["_rowid"].to_pylist())
            found |= dict(zip(rows["id"].to_pylist(), blobs.to_pylist(), strict=True))
        return [found.get(name) for name in ids]

    def contents(self) -> dict[str, str]:
        tables.newest(self._table)
        with tables.lance_errors(self._table.uri):
            rows = self._table.search().select(["id", "content"]).to_arrow()
        return dict(zip(rows["id"].to_pylist(), rows["content"].to_pylist(), strict=True))

    def stats(self) -> dict[str, Any]:
        tables.newest(self._table)
        return {"memories": tables.count(self._table), **tables.sizes(self._table)}

    def compact(self) -> None:
        tables.newest(self._table)
        tables.optimize(self._table, _INDEXED[MEMORIES], timedelta(0))

    def tidy(self) -> None:
        """The part of `compact` that is safe while other processes read and write."""
        tables.newest(self._table)
        tables.optimize(self._table, _INDEXED[MEMORIES], timedelta(minutes=10))


def _schema(info: LibraryInfo) -> pa.Schema:
    """The schema of entries for writing; the stored one has JSON in binary form."""
    vectors = [pa.field(info.column(k), pa.list_(pa.float16(), info.dim)) for k in info.prefixes]
    return pa.schema(
        [
            ("id", pa.string()),
            ("key", pa.int64()),
            ("content", pa.string()),
            ("uri", pa.string()),
            ("text", pa.string()),
            ("metadata", pa.json_()),
            ("thumbnail", pa.binary()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("source", pa.string()),
            *vectors,
        ]
    )


def _vector_types(schema: pa.Schema) -> dict[str, pa.DataType]:
    return {f.name: f.type for f in schema if pa.types.is_fixed_size_list(f.type)}


def _entry(row: Mapping[str, Any], vectors: np.ndarray | None = None) -> Entry:
    fields = {name: row[name] for name in _FIELDS}
    fields["metadata"] = json.loads(fields["metadata"] or "{}")
    return Entry(vectors=np.zeros((0, 0), np.float16) if vectors is None else vectors, **fields)
