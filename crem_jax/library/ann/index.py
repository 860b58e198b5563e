"""Approximate nearest-neighbour search: binary codes of one bit per dimension, then re-ranking.

The index is derived from the library and can be deleted. Vectors are centred, randomly rotated and
stored as sign bits; the Hamming distances of a query's code to all rows select candidates, which
are re-ranked by exact cosine with the vectors, stored in float16:

    DIRECTORY/stamp.json   table version that it mirrors, rows, candidates, measured recall
              mean.npy  keys.i64  signs.u8  vectors.f16

Rows are identified by `Entry.key`, which changes with the vector. For a new version of the table,
keys are compared: new rows are appended, removed ones are skipped, and if much has changed the
index is rebuilt.

Other threads and processes search memory maps of the files meanwhile, so a row that a state counts
is never overwritten or truncated: building makes new files, appending adds rows at the end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from crem_jax.files import write_json
from crem_jax.library.ann.snapshot import ROWS, IndexState, Sample, Scanners, Snapshot

CANDIDATES = (500, 700, 1000, 1400, 2000, 2800, 4000, 5600, 8000)
"""Numbers of candidates to try, in order, until recall is high enough."""

WANTED_RECALL = 0.985
_TUNING = 64  # queries
_STATE = "stamp.json"

Vectors = Callable[[np.ndarray | None], Iterator[tuple[np.ndarray, np.ndarray]]]
"""Gives batches of (keys int64 [n], vectors float16 [n, D]) of the given keys, or of all (None)."""


class Neighbours:
    """The index in a directory. One thread at a time may update it; all may search `current`.

    Args:
      dim: D. threads: number of threads for scanning and re-ranking; None is chosen here.

    Attributes:
      current: the snapshot after the last `update`, or the one found in the directory.
    """

    current: Snapshot

    def __init__(self, directory: Path, dim: int, threads: int | None = None):
        self._directory, self._dim = directory, dim
        threads = threads or min(8, len(os.sched_getaffinity(0)))
        self._scanners = Scanners(dim, threads)
        self.current = self._read()

    def update(self, version: int, keys: np.ndarray, vectors: Vectors) -> Snapshot:
        """Brings the index to a version of a table whose rows are `keys`; returns `current`."""
        if self.current.version == version:  # the directory may be read-only then
            return self.current
        self._directory.mkdir(parents=True, exist_ok=True)
        with _locked(self._directory):
            self.current = self._updated(self._read(), version, keys, vectors)
        return self.current

    def _updated(self, old: Snapshot, version: int, keys: np.ndarray, vectors: Vectors) -> Snapshot:
        if old.version == version:
            return old
        live = np.ones(old.state.rows, bool)
        live[list(old.state.gone)] = False
        gone = np.flatnonzero(~(np.isin(old.keys, keys) & live))
        new = keys[~np.isin(keys, old.keys[live])]
        if not len(old.keys) or len(gone) > len(old.keys) // 10 or len(keys) > 2 * old.state.built:
            return self._build(version, vectors)
        return self._append(
            old, version, vectors(new) if len(new) else iter(()), tuple(gone.tolist())
        )

    def _build(self, version: int, vectors: Vectors) -> Snapshot:
        self._file(_STATE).unlink(missing_ok=True)  # first: the other files are invalid without it
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
        mean = (total / max(rows, 1)).astype(np.float32)
        np.save(self._file("mean.npy"), mean)
        unsigned = dataclasses.replace(self._empty(), mean=mean)
        stored = self._map("vectors.f16", np.float16, rows, self._dim)
        with open(self._file("signs.u8"), "wb") as signs:
            for first in range(0, rows, ROWS):
                signs.write(unsigned.encode(stored[first : first + ROWS]).tobytes())
        state = IndexState(version, rows, built=rows, candidates=CANDIDATES[0])
        built = self._tuned(self._mapped(state, mean))
        self._write(built.state)
        return built

    def _append(
        self, old: Snapshot, version: int, batches: Iterator, gone: tuple[int, ...]
    ) -> Snapshot:
        rows = old.state.rows
        widths = {"keys.i64": 8, "vectors.f16": 2 * self._dim, "signs.u8": self._bytes}
        with contextlib.ExitStack() as stack:
            files = {n: stack.enter_context(open(self._file(n), "r+b")) for n in widths}
            for name, file in files.items():  # truncate what an interrupted append left behind
                file.truncate(rows * widths[name])
                file.seek(0, os.SEEK_END)
            for key, batch in batches:
                files["keys.i64"].write(key.astype(np.int64).tobytes())
                files["vectors.f16"].write(np.ascontiguousarray(batch, np.float16).tobytes())
                files["signs.u8"].write(old.encode(batch).tobytes())
                rows += len(key)
        state = dataclasses.replace(old.state, version=version, rows=rows, gone=gone)
        self._write(state)
        return self._mapped(state, old.mean)

    def _tuned(self, built: Snapshot) -> Snapshot:
        """Chooses the number of candidates by recall, measured with stored vectors as queries."""
        top = min(10, built.state.rows - 1)
        if top < 1:
            return built
        sample = Sample(built, top, _TUNING, 0)
        for candidates in CANDIDATES:
            state = dataclasses.replace(built.state, candidates=candidates)
            tuned = dataclasses.replace(built, state=state)
            recall = sample.recall(tuned)
            if recall >= WANTED_RECALL:
                break
        return dataclasses.replace(built, state=dataclasses.replace(state, recall=recall))

    def _read(self) -> Snapshot:
        """The snapshot stored in the files; an empty one if they are missing or inconsistent."""
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            text = self._file(_STATE).read_text(encoding="utf-8")
            values = json.loads(text)
            state = IndexState(**{**values, "gone": tuple(values["gone"])})
            snapshot = self._mapped(state, np.load(self._file("mean.npy")))
            # Another process that builds removes the state before it makes new files.
            same = self._file(_STATE).read_text(encoding="utf-8") == text
            if same and snapshot.mean.shape == (self._dim,) and state.rows:
                return snapshot
        return self._empty()

    def _empty(self) -> Snapshot:
        return Snapshot(
            self._scanners,
            IndexState(version=-1, rows=0),
            np.zeros(self._dim, np.float32),
            np.zeros(0, np.int64),
            np.zeros((0, self._dim), np.float16),
            np.zeros((0, self._bytes), np.uint8),
        )

    def _mapped(self, state: IndexState, mean: np.ndarray) -> Snapshot:
        return Snapshot(
            self._scanners,
            state,
            mean,
            np.asarray(self._map("keys.i64", np.int64, state.rows)),
            self._map("vectors.f16", np.float16, state.rows, self._dim),
            self._map("signs.u8", np.uint8, state.rows, self._bytes),
        )

    def _map(self, name: str, dtype: type, *shape: int) -> np.ndarray:
        if not shape[0]:  # an empty file cannot be mapped
            return np.zeros(shape, dtype)
        return np.memmap(self._file(name), dtype, "r", shape=shape)

    def _write(self, state: IndexState) -> None:
        write_json(self._file(_STATE), dataclasses.asdict(state))

    def _file(self, name: str) -> Path:
        return self._directory / name

    @property
    def _bytes(self) -> int:
        return -(-self._dim // 8)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Locks a directory against other processes."""
    with open(directory / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
