"""An immutable snapshot of the index, which searches read while updates make later ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from crem_jax.library.ann.recall import share_found, true_neighbours
from crem_jax.library.ann.rotation import Rotation

ROWS = 32768
"""Rows in a batch when all rows are read."""

_RANKED = 512  # rows that a thread re-ranks at once


@dataclasses.dataclass(frozen=True)
class IndexState:
    """What an index stores about itself.

    Attributes:
      version: the table version that is mirrored. rows: number of rows in the files.
      gone: indices of removed rows, which searches skip.
      built: number of rows when the mean was computed.
      candidates: number of rows that are re-ranked exactly.
      recall: measured with this number of candidates when the index was built.
    """

    version: int
    rows: int
    gone: tuple[int, ...] = ()
    built: int = 0
    candidates: int = 0
    recall: float = 0.0


class Scanners:
    """Threads for scanning and re-ranking, and the rotation that precedes taking signs."""

    def __init__(self, dim: int, threads: int):
        self.threads, self.pool = threads, ThreadPoolExecutor(threads)
        self.rotation = Rotation(dim)


@dataclasses.dataclass(frozen=True, eq=False)
class Snapshot:
    """One state of an index. Threads may search it while a later one is made.

    Attributes:
      mean: float32 [D]. keys: int64 [n]. vectors: float16 [n, D].
      signs: uint8 [n, bytes], the binary codes.
    """

    scanners: Scanners
    state: IndexState
    mean: np.ndarray
    keys: np.ndarray
    vectors: np.ndarray
    signs: np.ndarray

    @property
    def version(self) -> int:
        """The table version that is mirrored; -1 if none is."""
        return self.state.version

    def rows(self, keys: np.ndarray) -> np.ndarray:
        """Indices of the rows with these keys, for `search`'s `only`."""
        return np.flatnonzero(np.isin(self.keys, keys))

    def search(
        self, query: np.ndarray, top: int, only: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The nearest rows, best first: keys int64 [≤ top] and cosines float32 [≤ top].

        Args:
          query: float32 [D]. only: indices of the rows to search (see `rows`); None is all.
        """
        query = np.asarray(query, np.float32)
        candidates = max(self.state.candidates, 2 * top)
        signs = self.signs if only is None else self.signs[only]
        wanted = candidates + (len(self.state.gone) if only is None else 0)
        rows = self._nearest_signs(self.encode(query[None])[0], signs, wanted)
        rows = rows if only is None else only[rows]
        if self.state.gone:
            rows = rows[~np.isin(rows, self.state.gone)]
        rows = np.sort(rows)
        scores = self._cosines(rows, query)
        best = np.argsort(-scores, kind="stable")[:top]
        return self.keys[rows[best]], scores[best]

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """Binary codes of vectors [n, D]: uint8 [n, bytes]."""
        turned = self.scanners.rotation(vectors.astype(np.float32) - self.mean)
        return np.packbits(turned > 0, axis=1)

    def measure(self, top: int, queries: int, seed: int = 1) -> float:
        """Recall of `search`, with a random sample of `queries` stored vectors as queries."""
        return round(Sample(self, top, queries, seed).recall(self), 4)

    def live(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Batches of (keys, vectors) of all rows that have not been removed."""
        here = np.ones(self.state.rows, bool)
        here[list(self.state.gone)] = False
        for first in range(0, self.state.rows, ROWS):
            span = slice(first, first + ROWS)
            yield self.keys[span][here[span]], self.vectors[span][here[span]]

    def _cosines(self, rows: np.ndarray, query: np.ndarray) -> np.ndarray:
        """Exact cosines float32 [n] of the rows with these indices."""

        def part(own: np.ndarray) -> np.ndarray:
            # einsum, not BLAS: BLAS threads that spin would double the latency.
            return np.einsum("RD,D->R", self.vectors[own].astype(np.float32), query)

        parts = np.array_split(rows, max(1, -(-len(rows) // _RANKED)))
        return np.concatenate(list(self.scanners.pool.map(part, parts)))

    def _nearest_signs(self, code: np.ndarray, signs: np.ndarray, count: int) -> np.ndarray:
        """Indices of the `count` rows at the smallest Hamming distance."""
        import faiss

        if not len(signs):
            return np.zeros(0, np.int64)
        threads = self.scanners.threads
        edges = np.linspace(0, len(signs), threads + 1).astype(int)

        def part(i: int) -> tuple[np.ndarray, np.ndarray]:
            own = signs[edges[i] : edges[i + 1]]
            if not len(own):
                return np.zeros(0, np.int32), np.zeros(0, np.int64)
            distance, row = faiss.knn_hamming(code[None], own, min(count, len(own)), variant="mc")
            return distance[0], row[0] + edges[i]

        parts = list(self.scanners.pool.map(part, range(threads)))
        distance, row = (np.concatenate(column) for column in zip(*parts, strict=True))
        if len(row) <= count:
            return row
        return row[np.argpartition(distance, count)[:count]]


class Sample:
    """A sample of a snapshot's rows as queries, with their true nearest neighbours."""

    def __init__(self, snapshot: Snapshot, top: int, queries: int, seed: int):
        live = np.setdiff1d(np.arange(snapshot.state.rows), snapshot.state.gone)
        rng = np.random.default_rng(seed)
        chosen = np.sort(rng.choice(live, min(queries, len(live)), replace=False))
        self._own, self._top = snapshot.keys[chosen], top
        self._queries = snapshot.vectors[chosen].astype(np.float32)
        self._true = true_neighbours(self._queries, self._own, snapshot.live(), top)

    def recall(self, snapshot: Snapshot) -> float:
        """Recall of `snapshot.search` on the sample."""
        found = []
        for query, key in zip(self._queries, self._own, strict=True):
            keys = snapshot.search(query, self._top + 1)[0]
            found.append(keys[keys != key][: self._top])
        return share_found(found, self._true)
