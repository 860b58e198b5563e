"""File digests, atomic writes of files and directories, and JSON-lines logs that survive a kill."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from crem_jax.errors import CremError

DIGEST = 16
"""Length of a digest in bytes."""

_BLOCK = 1 << 16  # bytes read at once, backwards, to find the last line


class WriteFailed(RuntimeError):
    """A result could not be written, for example to a full disk.

    Unlike an error in the input, this may pass: running the same command again continues the run.
    """


def file_digest(path: str | os.PathLike) -> bytes:
    """A digest of a file's contents, DIGEST bytes.

    Raises:
      OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST)).digest()


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, *, fsync: bool = False) -> Iterator[Path]:
    """Yields the path of a temporary file that replaces `path` when the block succeeds, and is
    removed otherwise.

    Each writer has its own hidden sibling, `.NAME.*.partial`; of several at once the last one wins.
    Missing folders are created.

    Args:
      fsync: flush the file and its directory entry to disk before returning.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
        if fsync:
            _fsync(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    if fsync:
        _fsync(path.parent)


def write_json(path: str | os.PathLike, value: Any) -> None:
    write_bytes(path, json_bytes(value, indent=1) + b"\n")


def write_text(path: str | os.PathLike, text: str) -> None:
    write_bytes(path, text.encode())


def read_text(path: str | os.PathLike) -> str:
    """The text of a file.

    Raises:
      CremError: it is not UTF-8. OSError: it cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CremError(f"{path}: is no UTF-8 text: {error}") from error


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      CremError: it is not UTF-8, not JSON, or not an object. OSError: it cannot be read.
    """
    try:
        value = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise CremError(f"{path}: is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise CremError(f"{path}: holds a {type(value).__name__}; expected a JSON object")
    return value


def write_bytes(path: str | os.PathLike, data: bytes, *, fsync: bool = False) -> None:
    with atomic_write(path, fsync=fsync) as partial:
        partial.write_bytes(data)


def json_bytes(value: Any, indent: int | None = None) -> bytes:
    """JSON in UTF-8. A lone surrogate, as in a file name that is not UTF-8, is escaped so that it
    reads back unchanged.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return text.encode(errors="backslashreplace")


@contextlib.contextmanager
def atomic_directory(target: str | os.PathLike, *, overwrite: bool = False) -> Iterator[Path]:
    """Yields a temporary directory that replaces `target` when the block succeeds, and is removed
    otherwise.

    It is a hidden sibling, so a killed process leaves `target` as it was; the next call cleans up,
    or restores, what such a process left.

    Args:
      overwrite: replace a directory that already has files in it.

    Raises:
      CremError: the target has files in it, or is a file.
    """
    target = Path(os.path.abspath(target))
    partial = target.parent / f".{target.name}.partial"
    old = target.parent / f".{target.name}.old"
    if old.is_dir() and not target.exists():
        os.replace(old, target)
    if target.exists() and not target.is_dir():
        raise CremError(f"{target}: is a file, expected a directory")
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise CremError(f"{target}: already has files in it; expected a new directory")
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if target.is_dir():
            os.replace(target, old)
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def atomic_files(directory: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary directory whose files are moved into `directory` when the block succeeds,
    and are removed otherwise. Other files in `directory` stay and remain readable throughout.
    """
    directory = Path(directory)
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        directory.mkdir(exist_ok=True)
        for file in partial.iterdir():
            os.replace(file, directory / file.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class JsonLinesLog:
    """A JSON-lines file open for appending; opening it truncates an incomplete last line.

    Args:
      path: created, with its folder, if it does not exist.
      fsync: flush to disk before `append` returns; otherwise lines survive the process, but not
        the machine.
      exclusive: lock the file against other exclusive writers.

    Raises:
      CremError: another process has locked it, or its last line is neither JSON nor a truncated
        JSON object.
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
        """Appends one line per value."""
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
    """Yields the value of each line but an incomplete last one; nothing if there is no file.

    Args:
      skip_damaged: also skip other lines that are not JSON.

    Raises:
      CremError: a line before the last is not JSON.
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
    """Writes a JSON-lines file atomically, one line per value."""
    write_bytes(path, _lines(values))


def keep_lines(path: str | os.PathLike, keep: Callable[[Any], bool]) -> None:
    """Rewrites a JSON-lines file, if it exists, with only the values for which `keep` is true."""
    if Path(path).exists():
        kept = [value for value in read_lines(path, skip_damaged=True) if keep(value)]
        write_lines(path, kept)


def _lines(values: Iterable[Any]) -> bytes:
    return b"".join(json_bytes(value) + b"\n" for value in values)


def _mend_tail(file: BinaryIO, path: Path) -> None:
    """Truncates an incomplete last line; a complete one without its newline gets it."""
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
        if not tail.startswith(b"{"):  # not written by this class: do not cut it
            raise CremError(f"{path} ends in something that is no JSON line") from None
        file.truncate(end - len(tail))
    else:
        file.write(b"\n")


def _fsync(path: Path) -> None:
    """Flushes a file's contents, or a directory's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
