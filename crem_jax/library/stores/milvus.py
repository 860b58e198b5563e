"""Entries on a Milvus server or in a Milvus Lite file; memories stay in the library's directory.

Milvus has no binary fields and limits a text to 65,535 bytes, so thumbnails are left out and
memories are stored in LanceDB. Filters (`where`) are Milvus expressions, such as
`width > 640 and metadata["kind"] == "cat"`.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pymilvus import DataType, MilvusClient
from pymilvus.exceptions import MilvusException

from crem_jax.library.ann.recall import share_found, true_neighbours
from crem_jax.library.conditions import SECONDS
from crem_jax.library.entry import Entry, Hit, LibraryError, LibraryInfo, StoreError, check_unique

_LONGEST = 65_535
_TEXTS = {"id": 1024, "content": 64, "uri": 4096, "text": _LONGEST, "source": 4096}
_FIELDS = (*_TEXTS, "metadata", "width", "height")
_AT_ONCE = 512


def create(info: LibraryInfo, index: str = "AUTOINDEX") -> None:
    """Creates the collection of a new library.

    Args:
      index: Milvus's name of the index type. AUTOINDEX is the server's choice; FLAT is exact.

    Raises:
      LibraryError: Milvus cannot be reached, or refuses.
    """
    with _milvus_errors(info):
        client = _client(info)
        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        for name, limit in _TEXTS.items():
            schema.add_field(name, DataType.VARCHAR, max_length=limit, is_primary=name == "id")
        schema.add_field("metadata", DataType.JSON)
        schema.add_field("width", DataType.INT64)
        schema.add_field("height", DataType.INT64)
        indexes = client.prepare_index_params()
        for k in info.prefixes:
            column = info.column(k)
            schema.add_field(column, DataType.FLOAT_VECTOR, dim=info.dim)
            indexes.add_index(column, index_type=index, metric_type="IP")
        client.create_collection(
            _collection(info), schema=schema, index_params=indexes, consistency_level="Strong"
        )


def drop(info: LibraryInfo) -> None:
    """Deletes the collection of a library."""
    with _milvus_errors(info):
        _client(info).drop_collection(_collection(info))


class MilvusEntries:
    """`protocols.Entries` in the Milvus collection that `create` made for a library.

    Args:
      info: its `vectors` is the server's URI or the path of a Milvus Lite file. The environment
        variable MILVUS_TOKEN is the token of a server that requires one.

    Raises:
      LibraryError: Milvus cannot be reached, or the collection does not exist. Every method raises
        it if Milvus refuses.
    """

    searches_exactly = False

    def __init__(self, info: LibraryInfo):
        self._info, self._name = info, _collection(info)
        # Opening a Milvus Lite file that does not exist creates it.
        there = "://" in info.vectors or Path(info.vectors).exists()
        with _milvus_errors(info):
            if there:
                self._client = _client(info)
                there = self._client.has_collection(self._name)
            if not there:
                raise LibraryError(
                    f"Milvus at {info.vectors} has no collection {self._name}, where the library "
                    "has its entries"
                )
            self._client.load_collection(self._name)

    def put(self, entries: Sequence[Entry]) -> None:
        check_unique([entry.id for entry in entries])
        rows = []
        for entry in entries:
            row = {name: getattr(entry, name) for name in _FIELDS}
            row["metadata"] = dict(entry.metadata)
            for name, limit in _TEXTS.items():
                if len(row[name].encode()) > limit:
                    raise LibraryError(
                        f"{entry.id}: its {name} has more than {limit} bytes, Milvus's limit"
                    )
            for i, k in enumerate(self._info.prefixes):
                row[self._info.column(k)] = entry.vectors[i].astype(np.float32)
            rows.append(row)
        with _milvus_errors(self._info):
            for first in range(0, len(rows), _AT_ONCE):
                self._client.upsert(self._name, rows[first : first + _AT_ONCE])

    def delete(self, ids: Sequence[str]) -> None:
        with _milvus_errors(self._info):
            for first in range(0, len(ids), _AT_ONCE):
                self._client.delete(self._name, filter=_id_filter(ids[first : first + _AT_ONCE]))

    def get(self, ids: Sequence[str]) -> list[Entry | None]:
        columns = [self._info.column(k) for k in self._info.prefixes]
        found = {}
        for first in range(0, len(ids), _AT_ONCE):
            named = _id_filter(ids[first : first + _AT_ONCE])
            with _milvus_errors(self._info):
                rows = self._client.query(self._name, named, output_fields=[*_FIELDS, *columns])
            for row in rows:
                vectors = np.stack([_vector(row[column]) for column in columns])
                found[row["id"]] = _entry(row, vectors)
        return [found.get(name) for name in ids]

    def scan(
        self, columns: Sequence[str], where: str | None = None, seconds: float = SECONDS
    ) -> Iterator[Mapping[str, np.ndarray]]:
        with _milvus_errors(self._info, where):
            pages = self._client.query_iterator(
                self._name,
                batch_size=_AT_ONCE,
                filter=where or "",
                output_fields=list(columns),
                timeout=seconds if where else None,
            )
            try:
                while rows := pages.next():
                    yield {name: _column(name, rows) for name in columns}
            finally:
                pages.close()

    def search(
        self,
        vector: np.ndarray,
        k: int | None,
        top: int,
        where: str | None = None,
        exact: bool = False,
        seconds: float = SECONDS,
    ) -> list[Hit]:
        if exact:
            raise LibraryError("Milvus searches as its index does; expected exact=False")
        with _milvus_errors(self._info, where):
            (rows,) = self._client.search(
                self._name,
                [np.asarray(vector, np.float32)],
                anns_field=self._info.column(k),
                limit=top,
                filter=where or "",
                output_fields=list(_FIELDS),
                timeout=seconds if where else None,
            )
        return [Hit(_entry(row["entity"]), float(row["distance"])) for row in rows]

    def count(self) -> int:
        with _milvus_errors(self._info):
            (row,) = self._client.query(self._name, filter="", output_fields=["count(*)"])
        return int(row["count(*)"])

    def version(self) -> None:
        """None: Milvus has no versions."""

    def stats(self) -> dict[str, Any]:
        return {"entries": self.count(), "milvus": self._info.vectors, "collection": self._name}

    def compact(self) -> None:
        """Does nothing: Milvus compacts by itself."""

    def recall(self, top: int, queries: int) -> dict[str, Any]:
        ids = np.concatenate([b["id"] for b in self.scan(["id"])] or [np.zeros(0, np.str_)])
        if len(ids) < 2:
            return {"search": "Milvus", "recall": {}}
        chosen = np.random.default_rng(1).choice(ids, min(queries, len(ids)), replace=False)
        vectors = np.stack(
            [entry.vectors for entry in self.get(chosen.tolist()) if entry is not None]
        )
        shares = {
            k: self._recall(k, chosen, vectors[:, row].astype(np.float32), top)
            for row, k in enumerate(self._info.prefixes)
        }
        return {"search": "Milvus", "recall": shares, "top": top, "queries": len(chosen)}

    def _recall(self, k: int, ids: np.ndarray, queries: np.ndarray, top: int) -> float:
        column = self._info.column(k)
        rows = ((batch["id"], batch[column]) for batch in self.scan(["id", column]))
        found = []
        for name, query in zip(ids, queries, strict=True):
            names = [hit.entry.id for hit in self.search(query, k, top + 1)]
            found.append([other for other in names if other != name][:top])
        return round(share_found(found, true_neighbours(queries, ids, rows, top)), 4)


def _collection(info: LibraryInfo) -> str:
    """The collection's name, unique to the library."""
    return "_".join(filter(None, ("crem", info.fingerprint, info.id)))


def _client(info: LibraryInfo) -> MilvusClient:
    token = os.environ.get("MILVUS_TOKEN", "")
    try:
        return MilvusClient(info.vectors, **({"token": token} if token else {}))
    except ValueError as error:  # pymilvus raises a plain one for an address that it cannot parse
        raise StoreError(f"Milvus at {info.vectors}: {error}") from error


@contextlib.contextmanager
def _milvus_errors(info: LibraryInfo, where: str | None = None) -> Iterator[None]:
    """Turns errors of Milvus into LibraryError, which names the server or the filter."""
    try:
        yield
    except MilvusException as error:
        reason = str(error.message).split("\n")[0][:300]
        if where is None:
            raise StoreError(f"Milvus at {info.vectors}: {reason}") from error
        raise LibraryError(f"the condition {where!r} cannot be used: {reason}") from error


def _id_filter(ids: Sequence[str]) -> str:
    """The filter expression for these ids; pymilvus's own does not escape quotes."""
    return f"id in {json.dumps(list(ids), ensure_ascii=False)}"


def _entry(row: Mapping[str, Any], vectors: np.ndarray | None = None) -> Entry:
    fields = {name: row[name] for name in _FIELDS}
    if isinstance(fields["metadata"], str | bytes):
        fields["metadata"] = json.loads(fields["metadata"])
    return Entry(vectors=np.zeros((0, 0), np.float16) if vectors is None else vectors, **fields)


def _column(name: str, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    if name.startswith("vector_"):
        return np.stack([_vector(row[name]) for row in rows])
    return np.asarray([row[name] for row in rows])


def _vector(value: Any) -> np.ndarray:
    """The vector as float16; it is stored as float32, because Milvus Lite has no float16."""
    return np.asarray(value, np.float32).astype(np.float16)
