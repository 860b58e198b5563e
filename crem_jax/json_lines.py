"""Logs of JSON lines that survive a kill: one object a line, a torn last line being cut off."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from crem_jax.errors import CremError
from crem_jax.files import json_bytes, write_bytes

_BLOCK = 1 << 16


class JsonLinesLog:
    """A file of JSON lines, open for appending; a torn last line is cut off when it is opened.

    Args:
      path: made if it is not there, with its folder.
      fsync: lines are on the disk when `append` returns; otherwise they outlive the process only.
      exclusive: refuse a file that another process has open so.

    Raises:
      CremError: another process has it open, or it ends in something that is no JSON line.
    """

    def __init__(self, path: str | os.PathLike, *, fsync: bool = False, exclusive: bool = False):
        self.path, self._fsync = Path(path), fsync
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115
        try:
            if exclusive:
                self._lock()
            _mend_tail(self._file, self.path)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> JsonLinesLog:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def append(self, values: Iterable[Mapping[str, Any]]) -> None:
        """Adds a line for each value."""
        data = memoryview(_lines(values))
        while data:  # a write to a file may be cut short when the disk is about to be full
            data = data[self._file.write(data) :]
        if self._fsync:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CremError(f"{self.path} is being written by another process") from None


def read_lines(path: str | os.PathLike, *, skip_damaged: bool = False) -> Iterator[Any]:
    """The values of a file's lines, without a torn last one; none if there is no file.

    Args:
      skip_damaged: leave out other lines that are no JSON.

    Raises:
      CremError: another line than the last is no JSON.
    """
    path = Path(path)
    if not path.exists():
        return
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                value = json.loads(line)
            except ValueError as error:
                if skip_damaged or not line.endswith(b"\n"):
                    continue
                raise CremError(f"{path} line {number} is no JSON: {error}") from error
            yield value


def write_lines(path: str | os.PathLike, values: Iterable[Any]) -> None:
    """Writes a whole file, a line for each value."""
    write_bytes(path, _lines(values))


def keep_lines(path: str | os.PathLike, keep: Callable[[Any], bool]) -> None:
    """Leaves in a file, where it is there, the lines with such values."""
    if Path(path).exists():
        kept = [value for value in read_lines(path, skip_damaged=True) if keep(value)]
        write_lines(path, kept)


def _lines(values: Iterable[Any]) -> bytes:
    return b"".join(json_bytes(value) + b"\n" for value in values)


def _mend_tail(file: BinaryIO, path: Path) -> None:
    """Cuts off a line that is not whole; one that lacks its newline alone gets it."""
    end = file.seek(0, os.SEEK_END)
    start, tail = end, b""
    while start and b"\n" not in tail:
        first = max(0, start - _BLOCK)
        file.seek(first)
        tail, start = file.read(start - first) + tail, first
    tail = tail.rpartition(b"\n")[2]
    if not tail:
        return
    try:
        json.loads(tail)
    except ValueError:
        if not tail.startswith(b"{"):  # not ours to cut
            raise CremError(f"{path} ends in something that is no JSON line") from None
        file.truncate(end - len(tail))
    else:
        file.write(b"\n")
