"""Nearest neighbours among many vectors: one bit a dimension first, then exactly.

The index is derived from the library and can be thrown away. Vectors, less their mean and randomly
rotated, are kept as signs; the Hamming distance of a query's signs, computed for all rows, chooses
candidates, and those are compared exactly by the vectors themselves, kept beside in float16:

    DIRECTORY/stamp.json   version of the table it mirrors, rows, candidates, recall measured
              mean.npy  keys.i64  signs.u8  vectors.f16

Rows are known by `Entry.key`, which changes with the vector. A table of another version is compared
key by key: new ones are appended, gone ones are skipped, and if much has changed all is built anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from crem_jax.library.rotation import Rotation

CANDIDATES = (500, 700, 1000, 1400, 2000, 2800, 4000, 5600, 8000)
"""Numbers of candidates to try, until enough of the true neighbours are among them."""

WANTED_RECALL = 0.985
_TUNING = 64  # queries
_ROWS = 32768  # at once
_RANKED = 512  # rows of a thread at once
_STAMP = "stamp.json"

Vectors = Callable[[np.ndarray | None], Iterator[tuple[np.ndarray, np.ndarray]]]
"""Batches of (keys, float16 vectors [n, D]) of the given keys, or of all."""


@dataclasses.dataclass(frozen=True)
class Stamp:
    """version: of the table. rows: in the files. gone: row numbers to skip. built: rows when the
    mean was taken. candidates: compared exactly. recall: measured with them when built."""

    version: int
    rows: int
    gone: tuple[int, ...] = ()
    built: int = 0
    candidates: int = CANDIDATES[0]
    recall: float = 0.0


class Neighbours:
    """The index in a directory.

    Args:
      dim: D. threads: that scan signs and rank.
    """

    def __init__(self, directory: Path, dim: int, threads: int | None = None):
        self._directory, self._dim = directory, dim
        self._bytes = -(-dim // 8)
        self._rotation = Rotation(dim)
        self._threads = threads or min(8, len(os.sched_getaffinity(0)))
        self._pool = ThreadPoolExecutor(self._threads)
        self._stamp = Stamp(version=-1, rows=0)
        self._open()

    @property
    def version(self) -> int:
        """Of the table that is mirrored; -1 before the first `update`."""
        return self._stamp.version

    def rows(self, keys: np.ndarray) -> np.ndarray:
        """Numbers of the rows of these keys."""
        return np.flatnonzero(np.isin(self._keys, keys))

    def search(
        self, query: np.ndarray, top: int, only: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Keys int64 [≤ top] and cosines float32 of the nearest rows, best first.

        Args:
          query: float32 [D]. only: of these rows (see `rows`); None is all.
        """
        return self._search(query, top, max(self._stamp.candidates, 2 * top), only)

    def update(self, version: int, keys: np.ndarray, vectors: Vectors) -> None:
        """Mirrors version `version` of a table that holds `keys`."""
        self._directory.mkdir(parents=True, exist_ok=True)
        with _locked(self._directory):
            self._open()
            if self.version == version:
                return
            live = np.ones(self._stamp.rows, bool)
            live[list(self._stamp.gone)] = False
            gone = np.flatnonzero(~(np.isin(self._keys, keys) & live))
            new = keys[~np.isin(keys, self._keys[live])]
            changed = len(gone) > len(self._keys) // 10 or len(keys) > 2 * self._stamp.built
            if changed:
                self._build(version, vectors)
            else:
                self._append(version, vectors(new) if len(new) else iter(()), tuple(gone.tolist()))

    def measure(self, top: int, queries: int, seed: int = 1) -> dict[str, Any]:
        """Recall of `search` on so many of the rows, their own vectors as queries."""
        found, exact = self._compared(top, queries, seed, self._stamp.candidates)
        recall = np.mean([len(set(a) & set(b)) / top for a, b in zip(found, exact, strict=True)])
        return {
            "search": "sign bits, re-ranked",
            "recall": round(float(recall), 4),
            "top": top,
            "queries": len(exact),
            "candidates": self._stamp.candidates,
        }

    def _search(
        self, query: np.ndarray, top: int, candidates: int, only: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        query = np.asarray(query, np.float32)
        signs = self._signs if only is None else self._signs[only]
        wanted = candidates + (len(self._stamp.gone) if only is None else 0)
        rows = self._nearest_signs(self._encode(query[None])[0], signs, wanted)
        rows = rows if only is None else only[rows]
        if self._stamp.gone:
            rows = rows[~np.isin(rows, self._stamp.gone)]
        rows = np.sort(rows)
        scores = self._cosines(rows, query)
        best = np.argsort(-scores, kind="stable")[:top]
        return self._keys[rows[best]], scores[best]

    def _cosines(self, rows: np.ndarray, query: np.ndarray) -> np.ndarray:
        """Exact scores float32 [n] of the rows of these numbers."""

        def part(own: np.ndarray) -> np.ndarray:
            # einsum, not BLAS: BLAS threads that spin would double the latency.
            return np.einsum("RD,D->R", self._vectors[own].astype(np.float32), query)

        parts = np.array_split(rows, max(1, -(-len(rows) // _RANKED)))
        return np.concatenate(list(self._pool.map(part, parts)))

    def _nearest_signs(self, code: np.ndarray, signs: np.ndarray, count: int) -> np.ndarray:
        """Numbers of the `count` rows at the least Hamming distance."""
        import faiss

        if not len(signs):
            return np.zeros(0, np.int64)
        edges = np.linspace(0, len(signs), self._threads + 1).astype(int)

        def part(i: int) -> tuple[np.ndarray, np.ndarray]:
            own = signs[edges[i] : edges[i + 1]]
            if not len(own):
                return np.zeros(0, np.int32), np.zeros(0, np.int64)
            distance, row = faiss.knn_hamming(code[None], own, min(count, len(own)), variant="mc")
            return distance[0], row[0] + edges[i]

        parts = list(self._pool.map(part, range(self._threads)))
        distance, row = (np.concatenate(column) for column in zip(*parts, strict=True))
        if len(row) <= count:
            return row
        return row[np.argpartition(distance, count)[:count]]

    def _encode(self, vectors: np.ndarray) -> np.ndarray:
        """Signs as bits, uint8 [n, bytes]."""
        turned = self._rotation(vectors.astype(np.float32) - self._mean)
        return np.packbits(turned > 0, axis=1)

    def _build(self, version: int, vectors: Vectors) -> None:
        self._close()
        for file in self._directory.iterdir():
            if file.name != "lock":
                shutil.rmtree(file) if file.is_dir() else file.unlink()
        total, rows = np.zeros(self._dim, np.float64), 0
        with (
            open(self._file("keys.i64"), "wb") as keys,
            open(self._file("vectors.f16"), "wb") as out,
        ):
            for key, batch in vectors(None):
                keys.write(key.astype(np.int64).tobytes())
                out.write(np.ascontiguousarray(batch, np.float16).tobytes())
                total += batch.sum(axis=0, dtype=np.float32)
                rows += len(key)
        self._mean = (total / max(rows, 1)).astype(np.float32)
        np.save(self._file("mean.npy"), self._mean)
        stored = np.memmap(self._file("vectors.f16"), np.float16, "r", shape=(rows, self._dim))
        with open(self._file("signs.u8"), "wb") as signs:
            for first in range(0, rows, _ROWS):
                signs.write(self._encode(stored[first : first + _ROWS]).tobytes())
        self._commit(Stamp(version, rows, built=rows))
        self._tune()

    def _append(self, version: int, batches: Iterator, gone: tuple[int, ...]) -> None:
        rows = self._stamp.rows
        widths = {"keys.i64": 8, "vectors.f16": 2 * self._dim, "signs.u8": self._bytes}
        with contextlib.ExitStack() as stack:
            files = {n: stack.enter_context(open(self._file(n), "r+b")) for n in widths}
            for name, file in files.items():  # what an interrupted append left behind is cut off
                file.truncate(rows * widths[name])
                file.seek(0, os.SEEK_END)
            for key, batch in batches:
                files["keys.i64"].write(key.astype(np.int64).tobytes())
                files["vectors.f16"].write(np.ascontiguousarray(batch, np.float16).tobytes())
                files["signs.u8"].write(self._encode(batch).tobytes())
                rows += len(key)
        self._commit(dataclasses.replace(self._stamp, version=version, rows=rows, gone=gone))

    def _tune(self) -> None:
        """Chooses the number of candidates by recall on the library's own vectors."""
        top = min(10, self._stamp.rows - 1)
        if top < 1:
            return
        exact = None
        for candidates in CANDIDATES:
            found, exact = self._compared(top, _TUNING, 0, candidates, exact)
            recall = float(
                np.mean([len(set(a) & set(b)) / top for a, b in zip(found, exact, strict=True)])
            )
            if recall >= WANTED_RECALL:
                break
        self._commit(dataclasses.replace(self._stamp, candidates=candidates, recall=recall))

    def _compared(self, top: int, queries: int, seed: int, candidates: int, exact=None):
        """(found, exact) keys of the neighbours of rows chosen by the seed, themselves left out."""
        live = np.setdiff1d(np.arange(self._stamp.rows), self._stamp.gone)
        chosen = np.random.default_rng(seed).choice(live, min(queries, len(live)), replace=False)
        asked = self._vectors[np.sort(chosen)].astype(np.float32)
        own = self._keys[np.sort(chosen)]
        if exact is None:
            exact = [
                row[row != key][:top]
                for row, key in zip(self._exact(asked, top + 1), own, strict=True)
            ]
        found = []
        for query, key in zip(asked, own, strict=True):
            row = self._search(query, top + 1, candidates)[0]
            found.append(row[row != key][:top])
        return found, exact

    def _exact(self, queries: np.ndarray, top: int) -> list[np.ndarray]:
        """Keys of the true neighbours of float32 [q, D]."""
        scores, keys = (
            np.zeros((len(queries), 0), np.float32),
            np.zeros((len(queries), 0), np.int64),
        )
        for first in range(0, self._stamp.rows, _ROWS):
            part = self._vectors[first : first + _ROWS].astype(np.float32)
            near = queries @ part.T
            gone = [row - first for row in self._stamp.gone if first <= row < first + len(part)]
            near[:, gone] = -np.inf
            scores = np.concatenate([scores, near], axis=1)
            own = np.broadcast_to(self._keys[first : first + len(part)], near.shape)
            keys = np.concatenate([keys, own], axis=1)
            best = np.argsort(-scores, axis=1)[:, :top]
            scores, keys = (np.take_along_axis(x, best, axis=1) for x in (scores, keys))
        return list(keys)

    def _open(self) -> None:
        """Reads the files if there are any; anything odd means there are none."""
        self._close()
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            values = json.loads(self._file(_STAMP).read_text(encoding="utf-8"))
            stamp = Stamp(**{**values, "gone": tuple(values["gone"])})
            mean = np.load(self._file("mean.npy"))
            if mean.shape == (self._dim,) and stamp.rows:
                self._mean = mean
                self._map(stamp)

    def _map(self, stamp: Stamp) -> None:
        def mapped(name: str, dtype, *shape: int) -> np.ndarray:
            return np.memmap(self._file(name), dtype, "r", shape=(stamp.rows, *shape))

        files = (
            np.asarray(mapped("keys.i64", np.int64)),
            mapped("vectors.f16", np.float16, self._dim),
            mapped("signs.u8", np.uint8, self._bytes),
        )
        self._keys, self._vectors, self._signs = files
        self._stamp = stamp

    def _close(self) -> None:
        self._stamp = Stamp(version=-1, rows=0)
        self._keys = np.zeros(0, np.int64)
        self._vectors = np.zeros((0, self._dim), np.float16)
        self._signs = np.zeros((0, self._bytes), np.uint8)

    def _commit(self, stamp: Stamp) -> None:
        unfinished = self._file(f"{_STAMP}.tmp")
        unfinished.write_text(json.dumps(dataclasses.asdict(stamp)), encoding="utf-8")
        os.replace(unfinished, self._file(_STAMP))
        if stamp.rows:
            self._map(stamp)
        else:
            self._stamp = stamp

    def _file(self, name: str) -> Path:
        return self._directory / name


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One process at a time."""
    with open(directory / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
