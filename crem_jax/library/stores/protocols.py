"""What a library asks of the databases behind it: one for what is searched, one for memories.

`lance.py` has both in a directory or object store; `milvus.py` has the first on a cluster.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from crem_jax.library.entry import Entry, Hit


class Entries(Protocol):
    """Vectors and what is known of them. Every call returns when the data is safe.

    Attributes:
      searches_exactly: whether `search` can be asked to.
    """

    searches_exactly: bool

    def put(self, entries: Sequence[Entry]) -> None:
        """Adds entries; those of known ids are replaced. The same call twice changes nothing."""

    def delete(self, ids: Sequence[str]) -> None:
        """Removes entries; unknown ids are no error."""

    def get(self, ids: Sequence[str]) -> list[Entry | None]:
        """Entries in the order of the ids, with their vectors."""

    def scan(
        self, columns: Sequence[str], where: str | None = None
    ) -> Iterator[Mapping[str, np.ndarray]]:
        """All entries in batches of columns; a vector column is float16 [n, D]."""

    def search(
        self,
        vector: np.ndarray,
        k: int | None,
        top: int,
        where: str | None = None,
        exact: bool = False,
    ) -> list[Hit]:
        """The entries nearest to a float32 [D] query by cosine, best first.

        Args:
          k: which prefix's embeddings. where: a condition in the database's own language.
          exact: compare the query with every entry; only where `searches_exactly`.

        Raises:
          LibraryError: no such k, or a condition it cannot read.
        """

    def count(self, where: str | None = None) -> int: ...

    def version(self) -> int | None:
        """Another number after every change; None if the database does not tell."""

    def stats(self) -> dict[str, Any]: ...

    def compact(self) -> None:
        """Merges small files and drops what is no longer referred to."""

    def recall(self, top: int, queries: int) -> dict[str, Any]:
        """How many of the true neighbours of the library's own vectors `search` finds.

        Returns:
          search: its kind. recall: by k, for those that have an index; empty where it is exact.
          Unless it is empty, top and queries: what was asked for.
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
