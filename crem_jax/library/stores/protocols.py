"""Protocols of the databases behind a library: one of searchable entries, one of memories.

`lance.py` implements both, in a directory or object store; `milvus.py` the first, on a server.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from crem_jax.library.conditions import SECONDS
from crem_jax.library.entry import Entry, Hit


class Entries(Protocol):
    """Entries with their vectors. Calls that write return when the data is stored durably.

    Attributes:
      searches_exactly: whether `search` supports `exact`.
    """

    searches_exactly: bool

    def put(self, entries: Sequence[Entry]) -> None:
        """Adds entries, replacing those with the same ids; idempotent."""

    def delete(self, ids: Sequence[str]) -> None:
        """Removes entries; unknown ids are no error."""

    def get(self, ids: Sequence[str]) -> list[Entry | None]:
        """The entries with these ids, in order, with their vectors; None for unknown ids."""

    def scan(
        self, columns: Sequence[str], where: str | None = None, seconds: float = SECONDS
    ) -> Iterator[Mapping[str, np.ndarray]]:
        """Yields all entries in batches, column -> values; a vector column is float16 [n, D].

        Args:
          where, seconds: as for `search`.
        """

    def search(
        self,
        vector: np.ndarray,
        k: int | None,
        top: int,
        where: str | None = None,
        exact: bool = False,
        seconds: float = SECONDS,
    ) -> list[Hit]:
        """The entries nearest to a float32 [D] query by cosine, best first.

        Args:
          k: chorus tokens of the embeddings; None is all K. top: number of hits.
          where: a filter in the database's own language. seconds: that it may take.
          exact: compare the query with every entry; only if `searches_exactly`.

        Raises:
          LibraryError: no embeddings are stored for k, or the filter is invalid or takes too long.
        """

    def count(self) -> int: ...

    def version(self) -> int | None:
        """A number that changes with every write; None if the database has no versions."""

    def stats(self) -> dict[str, Any]: ...

    def compact(self) -> None:
        """Merges small files and deletes old versions."""

    def recall(self, top: int, queries: int) -> dict[str, Any]:
        """Measures the recall of `search`, with stored vectors as queries.

        Returns:
          search: the kind of search. recall: by k, for those with an index; empty if the search
          is exact, else with top and queries: the arguments.
        """


class Memories(Protocol):
    """Encoded chorus memories (`memory_codec`) by id."""

    def put(self, ids: Sequence[str], contents: Sequence[str], blobs: Sequence[bytes]) -> None: ...

    def delete(self, ids: Sequence[str]) -> None: ...

    def get(self, ids: Sequence[str]) -> list[bytes | None]: ...

    def contents(self) -> dict[str, str]:
        """Content hash of every stored memory by id."""

    def stats(self) -> dict[str, Any]: ...

    def compact(self) -> None: ...
