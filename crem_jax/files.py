"""Files by content, and results that are there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from crem_jax.errors import CremError

DIGEST = 16
"""Bytes of a digest."""


class WriteFailed(RuntimeError):
    """What a run made could not be written. Unlike errors in what it was given, this may pass: the
    same command goes on.
    """


def file_digest(path: str | os.PathLike) -> bytes:
    """Names what a file holds."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST)).digest()


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(data)
    os.replace(partial, path)


def read_text(path: str | os.PathLike) -> str:
    """The text of a file.

    Raises:
      CremError: it is no UTF-8. OSError: it cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CremError(f"{path}: is no UTF-8 text: {error}") from error


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      CremError: it holds something else. OSError: it cannot be read.
    """
    try:
        value = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise CremError(f"{path}: is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise CremError(f"{path}: holds a {type(value).__name__}; expected a JSON object")
    return value
