"""Rows of a file by number, read when asked for: only offsets are held in memory."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn, Protocol

import numpy as np

from crem_jax.data.records import RecordError
from crem_jax.errors import CremError

_CHUNK = 1 << 24
_JSON_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)
_PARQUET_CACHE_BYTES = 1 << 28


class Rows(Protocol):
    """Random access to the rows of one or several files."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...

    def where(self, index: int) -> str:
        """Names a row in errors."""
        ...


def scan(rows: Rows, columns: Sequence[str]) -> Iterator[Any]:
    """All rows in order, as fast as the format allows; None for one that cannot be read.

    Args:
      columns: those needed, where the format has columns.
    """
    if isinstance(rows, ParquetRows):
        yield from rows.scan(columns)
        return
    for index in range(len(rows)):
        try:
            yield rows[index]
        except RecordError:
            yield None


class _Spans:
    """Values written in one file from byte `start[i]` to byte `stop[i]`."""

    def where(self, index: int) -> str:
        """The place of value `index`, for errors."""
        raise TypeError(f"{type(self).__name__} has no places")

    def _spans(self) -> tuple[np.ndarray, np.ndarray]:
        raise TypeError(f"{type(self).__name__} finds no values")

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        _require_file(self.path)
        self.start, self.stop = self._spans()

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, index: int) -> Any:
        start, stop = int(self.start[index]), int(self.stop[index])
        with _naming(self.where(index)):
            data = os.pread(self._file.fileno(), stop - start, start)
            return parse_json(data.decode("utf-8-sig" if start == 0 else "utf-8"))

    def __getstate__(self) -> dict[str, Any]:
        """For other processes, which open the file themselves."""
        return {key: value for key, value in self.__dict__.items() if key != "_file"}

    @functools.cached_property
    def _file(self):
        return open(self.path, "rb")


class JsonLines(_Spans):
    """The values of a JSONL file; lines that are empty do not count."""

    def where(self, index: int) -> str:
        return f"{self.path}:{self.lines[index]}"

    def _spans(self) -> tuple[np.ndarray, np.ndarray]:
        ends, size = [], 0
        with open(self.path, "rb") as file:
            while chunk := file.read(_CHUNK):
                ends.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == 10) + size)
                size += len(chunk)
            stop = np.concatenate([*ends, [size]]).astype(np.int64)
            start = np.concatenate([[0], stop[:-1] + 1]).astype(np.int64)
            kept = stop > start
            for i in np.flatnonzero((stop - start <= 4) & kept):  # "\r", spaces, a lone BOM
                kept[i] = bool(os.pread(file.fileno(), 4, start[i])[: stop[i] - start[i]].strip())
        self.lines = np.flatnonzero(kept) + 1
        return start[kept], stop[kept]


class JsonList(_Spans):
    """The values of a file that is one JSON list of objects."""

    def where(self, index: int) -> str:
        return f"{self.path}[{index}]"

    def _spans(self) -> tuple[np.ndarray, np.ndarray]:
        import mmap

        starts, stops, depth, ended = [], [], 0, False
        with (
            open(self.path, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            begin = 3 if data[:3] == b"\xef\xbb\xbf" else 0
            for token in _JSON_TOKEN.finditer(data, begin):
                mark = data[token.start()]
                if mark in b"[{":
                    if ended or (depth == 0 and mark != ord("[")):
                        self._refuse(f"byte {token.start()} begins something else")
                    if depth == 1:
                        starts.append(token.start())
                    depth += 1
                elif mark in b"]}":
                    depth -= 1
                    if depth == 1:
                        stops.append(token.end())
                    ended = depth == 0
                elif depth < 2:
                    self._refuse(f"byte {token.start()} begins a text")
        if not ended:
            self._refuse(f"it ends inside record {len(starts) - 1}" if starts else "it has no [")
        return np.asarray(starts, np.int64), np.asarray(stops, np.int64)

    def _refuse(self, why: str) -> NoReturn:
        raise RecordError(f"{self.path}: is not one JSON list of objects: {why}")


class ParquetRows:
    """The rows of parquet files, one after the other, as dicts.

    Row groups are read as they are needed and the latest kept, 256 MiB of them at most.

    Args:
      paths: in order. columns: what to read; a file may lack some, whose values are then None.
    """

    def __init__(self, paths: Sequence[str | os.PathLike], columns: Sequence[str]):
        self.paths, self.columns = [os.fspath(path) for path in paths], list(columns)
        self.groups: list[tuple[int, int, int]] = []  # (file, row group in it, bytes)
        starts, self.file_starts = [0], []
        for number, path in enumerate(self.paths):
            _require_file(path)
            self.file_starts.append(starts[-1])
            with self._opened(path) as file:
                for group in range(file.num_row_groups):
                    about = file.metadata.row_group(group)
                    self.groups.append((number, group, about.total_byte_size))
                    starts.append(starts[-1] + about.num_rows)
        self.starts = np.asarray(starts, np.int64)
        self._fresh()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        place = int(np.searchsorted(self.starts, index, side="right")) - 1
        with _naming(self.where(index)):
            table = self._table(place)
            row = int(index - self.starts[place])
            return {
                name: table[name][row].as_py() if name in table.column_names else None
                for name in self.columns
            }

    def where(self, index: int) -> str:
        place = int(np.searchsorted(self.starts, index, side="right")) - 1
        number = self.groups[place][0]
        return f"{self.paths[number]} row {index - self.file_starts[number]}"

    def scan(self, columns: Sequence[str]) -> Iterator[dict[str, Any] | None]:
        """These columns of all rows in order; None for a row that cannot be read."""
        nothing = dict.fromkeys(columns)
        for path in self.paths:
            with self._opened(path) as file:
                names = [name for name in columns if name in file.schema_arrow.names]
                for batch in file.iter_batches(columns=names):
                    try:
                        yield from [nothing | row for row in batch.to_pylist()]
                    except ValueError:  # invalid UTF-8
                        yield from [None] * batch.num_rows

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_kept")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._fresh()

    def _fresh(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, Any] = OrderedDict()

    def _table(self, place: int):
        with self._lock:
            if place in self._kept:
                self._kept.move_to_end(place)
                return self._kept[place]
        number, group, _ = self.groups[place]
        with self._opened(self.paths[number]) as file:
            names = [name for name in self.columns if name in file.schema_arrow.names]
            table = file.read_row_group(group, columns=names)
        with self._lock:
            self._kept[place] = table
            held = sum(self.groups[i][2] for i in self._kept)
            while held > _PARQUET_CACHE_BYTES and len(self._kept) > 1:
                oldest, _ = self._kept.popitem(last=False)
                held -= self.groups[oldest][2]
        return table

    @contextlib.contextmanager
    def _opened(self, path: str) -> Iterator[Any]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        with _naming(path, pa.ArrowException), pq.ParquetFile(path) as file:
            yield file


def parse_json(text: str) -> Any:
    """A JSON value.

    Raises:
      CremError: it is none, or nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise CremError("is nested too deeply") from None
    except ValueError as error:
        raise CremError(str(error)) from error


def _refuse_constant(name: str) -> NoReturn:
    raise CremError(f"has {name}, which is not JSON")


def _require_file(path: str) -> None:
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path} is a folder; expected a file")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} does not exist")
    if not os.path.getsize(path):
        raise RecordError(f"{path}: is empty")


@contextlib.contextmanager
def _naming(where: str, *errors: type[Exception]) -> Iterator[None]:
    """What goes wrong in reading a row, these errors too, becomes a RecordError that names it."""
    caught: tuple[type[Exception], ...] = (ValueError, OSError, *errors)
    try:
        yield
    except RecordError:
        raise
    except caught as error:
        raise RecordError(f"{where}: cannot be read: {error}") from error
