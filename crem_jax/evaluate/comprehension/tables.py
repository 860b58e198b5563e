"""Reads VLMEvalKit's TSV files: questions, options, answers, and pictures in base64."""

from __future__ import annotations

import ast
import base64
import csv
import dataclasses
import os
import string
import sys
from collections.abc import Mapping
from pathlib import Path

from crem_jax.data.records import RecordError

_REFERENCE = 64  # characters; a shorter picture is another row's index
_MISSING = {"nan", "NaN"}  # hints and options with these values count as absent, as in pandas


@dataclasses.dataclass(frozen=True, eq=False)
class Question:
    """A row of a table.

    Attributes:
      index: the file's own index. columns: all columns but the picture, "" where absent.
      pictures: in base64; rows with the same pictures share one tuple.
      options: letter -> text.
    """

    index: str
    columns: Mapping[str, str]
    pictures: tuple[str, ...]
    options: Mapping[str, str]

    @property
    def answer(self) -> str:
        return self.columns.get("answer", "")

    def images(self) -> tuple[bytes, ...]:
        """The pictures as encoded files."""
        return tuple(base64.b64decode(picture) for picture in self.pictures)


def read_table(path: str | os.PathLike) -> list[Question]:
    """The questions of a file.

    Raises:
      RecordError: a row is not in VLMEvalKit's format. FileNotFoundError: no such file.
    """
    path = Path(path)
    try:
        rows = _rows(path)
    except UnicodeDecodeError as error:
        raise RecordError(f"{path} is not UTF-8: {error}") from error
    if not rows:
        raise RecordError(f"{path} has no rows")
    pictures = _pictures({row["index"]: (line, row.get("image", "")) for line, row in rows}, path)
    seen: set[str] = set()
    out = []
    for line, row in rows:
        if row["index"] in seen:
            raise RecordError(f"{path}:{line} has the index {row['index']!r} of an earlier row")
        seen.add(row["index"])
        columns = {_lower(name): value for name, value in row.items() if name != "image"}
        for name in ("hint", *string.ascii_uppercase):
            if columns.get(name, "").strip() in _MISSING:
                columns[name] = ""
        options = {c: columns[c] for c in string.ascii_uppercase if columns.get(c, "").strip()}
        out.append(Question(row["index"], columns, pictures[row["index"]], options))
    return out


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """(number of its last line, column -> value) of each row."""
    try:
        return _parsed(path)
    except UnicodeDecodeError as error:
        raise RecordError(f"{path} is not UTF-8: {error}") from error
    except csv.Error as error:
        raise RecordError(f"{path} is no table of tab-separated values: {error}") from error


def _parsed(path: Path) -> list[tuple[int, dict[str, str]]]:
    csv.field_size_limit(sys.maxsize)
    rows = []
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t")
        names = reader.fieldnames or []
        missing = [name for name in ("index", "question") if name not in names]
        if missing:
            raise RecordError(f"{path} has no column {missing[0]!r}; it has {', '.join(names[:9])}")
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if None in row:
                raise RecordError(f"{where} has more columns than the first line")
            if None in row.values():
                there = sum(value is not None for value in row.values())
                raise RecordError(
                    f"{where} has {there} columns, the first line {len(names)}; is the file whole?"
                )
            rows.append((reader.line_num, row))
    return rows


def _lower(name: str) -> str:
    return name if name in string.ascii_uppercase else name.lower()


def _pictures(values: Mapping[str, tuple[int, str]], path: Path) -> dict[str, tuple[str, ...]]:
    """Index -> pictures of each row, with references to other rows resolved."""
    known: dict[str, tuple[str, ...]] = {}
    out = {}
    for index, (line, value) in values.items():
        where, text = f"{path}:{line}", value.strip()
        if text in values and len(text) <= _REFERENCE:
            text = values[text][1].strip()
        if text not in known:
            known[text] = _listed(text, where)
        out[index] = known[text]
    return out


def _listed(text: str, where: str) -> tuple[str, ...]:
    if not text:
        return ()
    listed = [text]
    if text.startswith("["):
        try:
            listed = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
            raise RecordError(f"{where} image is no list of base64: {error}") from error
    for one in listed:
        if not isinstance(one, str) or len(one) <= _REFERENCE:
            shown = repr(one)[:40]
            raise RecordError(f"{where} image is {shown}: neither base64 nor the index of a row")
        try:
            base64.b64decode(one, validate=True)
        except ValueError as error:
            raise RecordError(f"{where} image is no base64: {error}") from error
    return tuple(listed)
