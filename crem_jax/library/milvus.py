"""Entries on a Milvus server, or in a Milvus Lite file; memories stay in the library's own place.

Milvus holds no binary values and limits a text to 65,535 bytes, so that memories and thumbnails
are not for it: thumbnails are left out there, memories are in LanceDB beside. Conditions (`where`)
are Milvus expressions, such as `width > 640 and metadata["kind"] == "cat"`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from pymilvus import DataType, MilvusClient
from pymilvus.exceptions import MilvusException

from crem_jax.library.entry import About, Entry, Hit, LibraryError, check_unique

_LONGEST = 65_535
_TEXTS = {"id": 1024, "content": 64, "uri": 4096, "text": _LONGEST, "source": 4096}
_FIELDS = (*_TEXTS, "metadata", "width", "height")
_AT_ONCE = 512


class MilvusEntries:
    """`store.Entries` in a Milvus collection, which is made if need be.

    Args:
      about: its `vectors` is the server's URI, or the path of a Milvus Lite file. The environment's
        MILVUS_TOKEN opens a server that wants one.
      index: of the vectors, by Milvus's name. AUTOINDEX is the server's choice; FLAT is exact.
    """

    def __init__(self, about: About, index: str = "AUTOINDEX"):
        self._about = about
        try:
            token = os.environ.get("MILVUS_TOKEN", "")
            self._client = MilvusClient(about.vectors, **({"token": token} if token else {}))
            self._name = f"crem_{about.fingerprint}"
            if not self._client.has_collection(self._name):
                self._create(index)
            self._client.load_collection(self._name)
        except MilvusException as error:
            raise LibraryError(f"Milvus at {about.vectors}: {error.message}") from error

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
            for i, k in enumerate(self._about.prefixes):
                row[self._about.column(k)] = entry.vectors[i].astype(np.float32)
            rows.append(row)
        for first in range(0, len(rows), _AT_ONCE):
            self._client.upsert(self._name, rows[first : first + _AT_ONCE])

    def delete(self, ids: Sequence[str]) -> None:
        for first in range(0, len(ids), _AT_ONCE):
            self._client.delete(self._name, filter=_named(ids[first : first + _AT_ONCE]))

    def get(self, ids: Sequence[str]) -> list[Entry | None]:
        columns = [self._about.column(k) for k in self._about.prefixes]
        found = {}
        for first in range(0, len(ids), _AT_ONCE):
            named = _named(ids[first : first + _AT_ONCE])
            for row in self._client.query(self._name, named, output_fields=[*_FIELDS, *columns]):
                vectors = np.stack([_vector(row[column]) for column in columns])
                found[row["id"]] = _entry(row, vectors)
        return [found.get(name) for name in ids]

    def scan(
        self, columns: Sequence[str], where: str | None = None
    ) -> Iterator[Mapping[str, np.ndarray]]:
        pages = self._client.query_iterator(
            self._name, batch_size=_AT_ONCE, filter=where or "", output_fields=list(columns)
        )
        try:
            while rows := pages.next():
                yield {name: _column(name, rows) for name in columns}
        finally:
            pages.close()

    def search(
        self, vector: np.ndarray, k: int | None, top: int, where: str | None = None
    ) -> list[Hit]:
        try:
            (rows,) = self._client.search(
                self._name,
                [np.asarray(vector, np.float32)],
                anns_field=self._about.column(k),
                limit=top,
                filter=where or "",
                output_fields=list(_FIELDS),
            )
        except MilvusException as error:
            if where is None:
                raise
            reason = str(error.message).split("\n")[0][:300]
            raise LibraryError(f"the condition {where!r} cannot be used: {reason}") from error
        return [Hit(_entry(row["entity"]), float(row["distance"])) for row in rows]

    def count(self, where: str | None = None) -> int:
        (row,) = self._client.query(self._name, filter=where or "", output_fields=["count(*)"])
        return int(row["count(*)"])

    def stats(self) -> dict[str, Any]:
        return {"entries": self.count(), "milvus": self._about.vectors, "collection": self._name}

    def compact(self) -> None:
        """Milvus compacts by itself."""

    def recall(self, k: int | None, top: int, queries: int) -> dict[str, Any]:
        column = self._about.column(k)
        batches = list(self.scan(["id", column]))
        if not batches:
            return {"search": "Milvus", "recall": 1.0, "queries": 0}
        ids = np.concatenate([batch["id"] for batch in batches])
        vectors = np.concatenate([batch[column] for batch in batches]).astype(np.float32)
        count = min(queries, len(ids))
        chosen = np.random.default_rng(1).choice(len(ids), count, replace=False)
        top, found = min(top, len(ids)), 0
        for row in chosen:
            exact = ids[np.argsort(-(vectors @ vectors[row]))[:top]]
            found += len({h.entry.id for h in self.search(vectors[row], k, top)} & set(exact))
        return {
            "search": "Milvus",
            "recall": round(found / (count * top), 4),
            "top": top,
            "queries": count,
        }

    def _create(self, index: str) -> None:
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        for name, limit in _TEXTS.items():
            schema.add_field(name, DataType.VARCHAR, max_length=limit, is_primary=name == "id")
        schema.add_field("metadata", DataType.JSON)
        schema.add_field("width", DataType.INT64)
        schema.add_field("height", DataType.INT64)
        indexes = self._client.prepare_index_params()
        for k in self._about.prefixes:
            column = self._about.column(k)
            schema.add_field(column, DataType.FLOAT_VECTOR, dim=self._about.dim)
            indexes.add_index(column, index_type=index, metric_type="IP")
        self._client.create_collection(
            self._name, schema=schema, index_params=indexes, consistency_level="Strong"
        )


def _named(ids: Sequence[str]) -> str:
    """The expression for these ids; pymilvus's own does not escape quotes."""
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
    """Stored in float32, as Milvus Lite has no float16; the values are float16's."""
    return np.asarray(value, np.float32).astype(np.float16)
