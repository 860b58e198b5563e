"""Entries and memories in LanceDB: one directory or object-store URI, two tables.

Memories are blobs in a table of their own, so that compacting entries does not rewrite them. Both
tables are written by id (`merge_insert`), so that writing again what an interrupted run may have
written already changes nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa

from crem_jax.library import lance_tables as tables
from crem_jax.library.ann import Neighbours
from crem_jax.library.entry import About, Entry, Hit, LibraryError, check_unique

ENTRIES, MEMORIES = "entries", "memories"
EXACT_UP_TO = 20_000
"""Rows that are compared one by one; more of them go through `ann.Neighbours`."""

_ABOUT = b"crem"
_ROWS_AT_ONCE = 8192
_ENTRIES_FORMAT = "2.1"  # 2.2 packs columns of few values so that reading a row takes 5 ms for each
_INDEXED = {ENTRIES: ("id", "key", "source"), MEMORIES: ("id",)}
_FIELDS = ("id", "uri", "text", "metadata", "thumbnail", "width", "height", "source", "content")


def connect(uri: str | os.PathLike) -> Any:
    """The database at a path or URI (s3://, gs://, az://)."""
    return lancedb.connect(os.fspath(uri))


def exists(uri: str) -> bool:
    """Whether a library is at an object-store URI."""
    return MEMORIES in connect(uri).table_names(limit=1000)


def create(db: Any, about: About) -> None:
    """Makes the tables of a new library; the one that `exists` looks for last.

    Several processes may do so at once.
    """
    if not about.vectors:
        table = tables.open_or_create(db, ENTRIES, _schema(about), _ENTRIES_FORMAT)
        if _vector_types(table.schema) != _vector_types(_schema(about)):
            db.drop_table(ENTRIES)  # it is empty: whoever began to make another library was killed
            table = tables.open_or_create(db, ENTRIES, _schema(about), _ENTRIES_FORMAT)
        tables.index_columns(table, _INDEXED[ENTRIES])
    columns = [("id", pa.string()), ("content", pa.string()), lancedb.blob("memory")]
    schema = pa.schema(columns, metadata={_ABOUT: about.to_json().encode()})
    table = tables.open_or_create(db, MEMORIES, schema)
    tables.index_columns(table, _INDEXED[MEMORIES])


def about(db: Any) -> About:
    """What the library says of itself."""
    note = (db.open_table(MEMORIES).schema.metadata or {}).get(_ABOUT)
    if note is None:
        raise LibraryError(f"{db.uri} is a LanceDB database but no library")
    return About.from_json(note)


class LanceEntries:
    """`store.Entries` in a LanceDB table.

    Args:
      cache: the directory of derived indexes.
      exact_up_to: rows compared one by one.
    """

    def __init__(self, db: Any, about: About, cache: Path, exact_up_to: int = EXACT_UP_TO):
        self._table = db.open_table(ENTRIES)
        self._about, self._cache, self._exact_up_to = about, cache, exact_up_to
        self._neighbours: dict[str, Neighbours] = {}
        self._last: tuple[Any, np.ndarray] = (None, np.zeros(0, np.int64))
        self._places: tuple[int, np.ndarray, np.ndarray] = (-1, *(np.zeros(0, np.int64),) * 2)

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
        for i, k in enumerate(self._about.prefixes):
            flat = np.stack([entry.vectors[i] for entry in entries]).astype(np.float16)
            values = pa.array(flat.reshape(-1))
            columns[self._about.column(k)] = pa.FixedSizeListArray.from_arrays(
                values, self._about.dim
            )
        tables.merge(self._table, pa.table(columns, schema=_schema(self._about)))

    def delete(self, ids: Sequence[str]) -> None:
        tables.delete(self._table, ids)

    def get(self, ids: Sequence[str]) -> list[Entry | None]:
        vectors = [self._about.column(k) for k in self._about.prefixes]
        found = {}
        for rows in tables.rows_by_id(self._latest(), ids, [*_FIELDS, *vectors]):
            stacked = np.stack([tables.matrix(rows[name]) for name in vectors], axis=1)
            for row, own in zip(rows.select(_FIELDS).to_pylist(), stacked, strict=True):
                found[row["id"]] = _entry(row, own)
        return [found.get(name) for name in ids]

    def scan(
        self, columns: Sequence[str], where: str | None = None
    ) -> Iterator[Mapping[str, np.ndarray]]:
        query = self._latest().search().select(list(columns))
        with tables.condition(where):
            for batch in (query.where(where) if where else query).to_batches():
                yield {name: tables.to_numpy(batch.column(name)) for name in columns}

    def search(
        self, vector: np.ndarray, k: int | None, top: int, where: str | None = None
    ) -> list[Hit]:
        column = self._about.column(k)
        self._latest()
        if self.count() <= self._exact_up_to:
            return self._exact(vector, column, top, where)
        near = self._near(column)
        keys, scores = near.search(vector, top, self._chosen(near, column, where))
        if not len(keys):
            return []
        rows = self._rows(keys, _FIELDS).to_pylist()
        found = {row["key"]: _entry(row) for row in rows}
        pairs = zip(keys.tolist(), scores.tolist(), strict=True)
        return [Hit(found[key], score) for key, score in pairs if key in found]

    def count(self, where: str | None = None) -> int:
        with tables.condition(where):
            return self._latest().count_rows(where)

    def stats(self) -> dict[str, Any]:
        return {"entries": self.count(), **tables.sizes(self._latest())}

    def compact(self) -> None:
        tables.optimize(self._latest(), _INDEXED[ENTRIES], timedelta(0))
        for k in self._about.prefixes[:1]:
            if self.count() > self._exact_up_to:
                self._near(self._about.column(k))

    def recall(self, k: int | None, top: int, queries: int) -> dict[str, Any]:
        if self.count() <= self._exact_up_to:
            return {"search": "exact", "recall": 1.0, "queries": 0}
        return self._near(self._about.column(k)).measure(top, queries)

    def tidy(self) -> None:
        """A light `compact` while others may be reading and writing."""
        tables.optimize(self._latest(), _INDEXED[ENTRIES], timedelta(minutes=10))

    def _exact(self, vector: np.ndarray, column: str, top: int, where: str | None) -> list[Hit]:
        query = self._table.search(np.asarray(vector, np.float32), vector_column_name=column)
        query = query.distance_type("dot").select([*_FIELDS, "_distance"]).limit(top)
        with tables.condition(where):
            rows = (query.where(where) if where else query).to_arrow().to_pylist()
        return [Hit(_entry(row), 1.0 - row["_distance"]) for row in rows]

    def _chosen(self, near: Neighbours, column: str, where: str | None) -> np.ndarray | None:
        """The rows of an index that a condition leaves; the last answer is kept."""
        if where is None:
            return None
        asked = (column, near.version, where)
        last = self._last  # threads may search at once
        if last[0] != asked:
            found = [batch["key"] for batch in self.scan(["key"], where)]
            keys = np.concatenate([np.zeros(0, np.int64), *found])
            self._last = last = (asked, near.rows(keys))
        return last[1]

    def _rows(self, keys: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """Rows by key, in any order; row ids, of one version of the table, are the quickest way."""
        if self._places[0] != self._table.version:
            rows = self._table.search().select(["key"]).with_row_id(True).to_arrow()
            order = np.argsort(rows["key"].to_numpy())
            places = (rows[name].to_numpy()[order] for name in ("key", "_rowid"))
            self._places = (self._table.version, *places)
        _, known, row_ids = self._places
        at = np.searchsorted(known, keys)
        at = at[at < len(known)]
        columns = ["key", *columns]
        rows = self._table.take_row_ids(row_ids[at].tolist()).select(columns).to_arrow()
        if np.isin(keys, rows["key"].to_numpy()).all():
            return rows
        wheres = tables.in_lists("key", keys.tolist())  # someone has just written
        found = [self._table.search().where(w).select(columns).to_arrow() for w in wheres]
        return pa.concat_tables(found)

    def _near(self, column: str) -> Neighbours:
        """The derived index of a column, brought up to date."""
        if column not in self._neighbours:
            self._neighbours[column] = Neighbours(self._cache / column, self._about.dim)
        near = self._neighbours[column]
        if near.version != self._table.version:

            def vectors(keys: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
                if keys is None:
                    for batch in self.scan(["key", column]):
                        yield batch["key"], batch[column]
                    return
                for first in range(0, len(keys), _ROWS_AT_ONCE):
                    rows = self._rows(keys[first : first + _ROWS_AT_ONCE], [column])
                    yield rows["key"].to_numpy(), tables.matrix(rows[column])

            version = self._table.version
            keys = np.concatenate([b["key"] for b in self.scan(["key"])] or [np.zeros(0, np.int64)])
            near.update(version, keys, vectors)
        return near

    def _latest(self) -> Any:
        self._table.checkout_latest()
        return self._table


class LanceMemories:
    """`store.Memories` in a LanceDB table."""

    def __init__(self, db: Any):
        self._table = db.open_table(MEMORIES)

    def put(self, ids: Sequence[str], contents: Sequence[str], blobs: Sequence[bytes]) -> None:
        check_unique(list(ids))
        memory = pa.array(list(blobs), pa.large_binary())
        tables.merge(self._table, pa.table({"id": ids, "content": contents, "memory": memory}))

    def delete(self, ids: Sequence[str]) -> None:
        tables.delete(self._table, ids)

    def get(self, ids: Sequence[str]) -> list[bytes | None]:
        self._table.checkout_latest()
        found = {}
        for where in tables.in_lists("id", ids):
            rows = self._table.search().where(where).select(["id"]).with_row_id(True).to_arrow()
            if len(rows):
                blobs = self._table.fetch_blobs("memory", rows["_rowid"].to_pylist())
                found |= dict(zip(rows["id"].to_pylist(), blobs.to_pylist(), strict=True))
        return [found.get(name) for name in ids]

    def contents(self) -> dict[str, str]:
        self._table.checkout_latest()
        rows = self._table.search().select(["id", "content"]).to_arrow()
        return dict(zip(rows["id"].to_pylist(), rows["content"].to_pylist(), strict=True))

    def stats(self) -> dict[str, Any]:
        self._table.checkout_latest()
        return {"memories": self._table.count_rows(), **tables.sizes(self._table)}

    def compact(self) -> None:
        self._table.checkout_latest()
        tables.optimize(self._table, _INDEXED[MEMORIES], timedelta(0))

    def tidy(self) -> None:
        """A light `compact` while others may be reading and writing."""
        self._table.checkout_latest()
        tables.optimize(self._table, _INDEXED[MEMORIES], timedelta(minutes=10))


def _schema(about: About) -> pa.Schema:
    """Of the entries, as they are written: the table's own has JSON in its binary form."""
    vectors = [pa.field(about.column(k), pa.list_(pa.float16(), about.dim)) for k in about.prefixes]
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
