"""Nearest neighbours among many vectors: one bit a dimension first, then exactly.

The index is derived from the library and can be thrown away. Vectors, less their mean and randomly
rotated, are kept as signs; the Hamming distance of a query's signs, computed for all rows, chooses
candidates, and those are compared exactly by the vectors themselves, kept beside in float16:

    DIRECTORY/stamp.json   version of the table it mirrors, rows, candidates, recall measured
              mean.npy  keys.i64  signs.u8  vectors.f16

Rows are known by `Entry.key`, which changes with the vector. A table of another version is compared
key by key: new ones are appended, gone ones are skipped, and if much has changed all is built anew.

Searches go on in maps of the files meanwhile, in other threads and processes. So a row that a state
has counted is never overwritten or cut off: building makes new files, appending adds rows behind.
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
"""Numbers of candidates to try, until enough of the true neighbours are among them."""

WANTED_RECALL = 0.985
_TUNING = 64  # queries
_STATE = "stamp.json"

Vectors = Callable[[np.ndarray | None], Iterator[tuple[np.ndarray, np.ndarray]]]
"""Batches of (keys, float16 vectors [n, D]) of the given keys, or of all."""


class Neighbours:
    """The index in a directory. One thread at a time may update it; any may search `current`.

    Args:
      dim: D. threads: that scan signs and rank.

    Attributes:
      current: what the last `update` has left, or what was there before the first.
    """

    current: Snapshot

    def __init__(self, directory: Path, dim: int, threads: int | None = None):
        self._directory, self._dim = directory, dim
        threads = threads or min(8, len(os.sched_getaffinity(0)))
        self._scanners = Scanners(dim, threads)
        self.current = self._read()

    def update(self, version: int, keys: np.ndarray, vectors: Vectors) -> Snapshot:
        """Mirrors version `version` of a table that holds `keys`; returns `current`."""
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
        self._file(_STATE).unlink(missing_ok=True)  # first: the others are nothing without it
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
            for name, file in files.items():  # what an interrupted append left behind is cut off
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
        """With the number of candidates that recall on the library's own vectors asks for."""
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
        """What the files hold; anything odd means nothing."""
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
        if not shape[0]:  # no file of nothing can be mapped
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
    """One process at a time."""
    with open(directory / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
