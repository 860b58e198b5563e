"""Your own data: one JSON object a line. `docs/data.md` has the schema with examples."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crem_jax.data.records import EmptySideError, Record, RecordError
from crem_jax.data.sources.base import FileSource
from crem_jax.data.sources.formats.fields import (
    check_keys,
    item_of,
    items_of,
    make_item,
    paths_of,
    shown,
    text_of,
    turns_of,
)
from crem_jax.data.sources.formats.file_rows import JsonLines

KEYS = ("id", "query", "positives", "negatives", "turns", "image", "text", "metadata")


class JsonlRecords(FileSource):
    """Records of a JSONL file.

    Args:
      path: the file.
      image_root: folder that picture paths are relative to; default: the file's own folder.
      bare: records with nothing to learn are fine; they are only searched for.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        image_root: str | os.PathLike | None = None,
        bare: bool = False,
    ):
        self._rows = JsonLines(path)
        self._root = os.fspath(image_root if image_root is not None else Path(path).parent)
        self._name, self._bare = Path(path).stem, bare

    def __len__(self) -> int:
        return len(self._rows)

    def where(self, index: int) -> str:
        return self._rows.where(index)

    def read(self, index: int) -> Record:
        return record_of(
            self._rows[index], self._root, self.where(index), self._name, bare=self._bare
        )


def record_of(
    value: Any,
    root: str,
    where: str,
    source: str,
    picture: str | None = None,
    bare: bool = False,
) -> Record:
    """The record that one JSON object describes.

    Args:
      root: folder that picture paths are relative to.
      where: the place of the object, for errors, and its id if it has none.
      picture: path of the picture the object is about, if that is known otherwise.
      bare: it may have nothing to learn.

    Raises:
      RecordError: the object is not as `docs/data.md` says.
    """
    if not isinstance(value, Mapping):
        raise RecordError(f"{where} is {shown(value)}; expected an object")
    check_keys(value, KEYS, where)
    if picture is not None:
        if "image" in value or "query" in value:
            raise RecordError(f"{where} has a query of its own; its picture is {picture}")
        value = {**value, "image": picture}
    short = [key for key in ("image", "text") if value.get(key) is not None]
    long = [key for key in ("query", "positives") if value.get(key) is not None]
    if short and "query" in long:
        raise RecordError(f"{where} has both {short[0]!r} and 'query'; expected one of them")
    if "query" in long:
        query = item_of(value["query"], root, f"{where} query")
        positives = items_of(value.get("positives"), root, f"{where} positives")
    else:
        if "image" not in short:
            raise RecordError(f"{where} has neither 'query' nor 'image'")
        if "text" in short and "positives" in long:
            raise RecordError(f"{where} has both 'text' and 'positives'; expected one of them")
        images = paths_of(value["image"], root, f"{where} image")
        query = make_item("", images, f"{where} image")
        key = "text" if "text" in short else "positives"
        positives = items_of(value.get(key), root, f"{where} {key}")
    negatives = items_of(value.get("negatives"), root, f"{where} negatives")
    turns = turns_of(value.get("turns"), f"{where} turns")
    if not positives and not turns and not bare:
        raise EmptySideError(f"{where} has nothing to learn: neither positives (or text) nor turns")
    if negatives and not positives:
        raise RecordError(f"{where} has negatives but no positives")
    name = value.get("id")
    if name is not None and not isinstance(name, str | int):
        raise RecordError(f"{where} id is {shown(name)}; expected a text or a whole number")
    metadata = value.get("metadata")
    if metadata is not None and not isinstance(metadata, Mapping):
        raise RecordError(f"{where} metadata is {shown(metadata)}; expected an object")
    return Record(
        id=where if name is None else text_of(str(name), f"{where} id"),
        query=query,
        positives=positives,
        negatives=negatives,
        turns=turns,
        source=source,
        metadata=metadata or {},
    )
