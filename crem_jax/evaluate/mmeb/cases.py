"""Reads MMEB-eval (hub: `TIGER-Lab/MMEB-eval`, `ziyjiang/MMEB_Test_Instruct`) from local files.

A row has a query, `qry_text` and `qry_img_path`, and lists of candidates, `tgt_text` and
`tgt_img_path`, the first of which is the target. Instructions are part of the texts or have
their own columns, `qry_inst` and `tgt_inst`; both layouts give the same items.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from crem_jax.data.records import Item, RecordError
from crem_jax.data.sources.formats.fields import shown, text_of
from crem_jax.data.sources.formats.file_rows import Rows
from crem_jax.data.sources.formats.mmeb_files import (
    open_rows,
    picture_layout,
    picture_paths,
    plain_text,
    subset_files,
)
from crem_jax.evaluate.mmeb.datasets import Dataset

SPLIT = "test"
COLUMNS = ("qry_text", "qry_img_path", "tgt_text", "tgt_img_path", "qry_inst", "tgt_inst")


@dataclasses.dataclass(frozen=True, eq=False)
class Cases:
    """The queries of a data set, each with its own candidates.

    Attributes:
      items: distinct (text, picture) pairs. names: their names in predictions.
      places: location of the first row with each item, for errors.
      queries: int32 [N], item indices.
      candidates: N arrays of item indices, the target first; indices may repeat.
      rows: number of rows in the file.
      left_out: reason -> number of rows or candidates that cannot be used.
    """

    dataset: Dataset
    items: list[Item]
    names: list[str]
    places: list[str]
    queries: np.ndarray
    candidates: list[np.ndarray]
    rows: int
    left_out: Mapping[str, int]


def read_cases(
    dataset: Dataset,
    root: str | os.PathLike,
    image_root: str | os.PathLike | None = None,
    limit: int | None = None,
) -> Cases:
    """Reads a data set from `ROOT/NAME/test*.parquet` or `ROOT/NAME.parquet` (or .jsonl).

    Args:
      image_root: folder that picture paths are relative to; None is ROOT or ROOT/images.
      limit: read only the first `limit` rows.

    Raises:
      RecordError: a row is not in MMEB's format. FileNotFoundError: the data set does not exist.
    """
    root = Path(root)
    files = subset_files(root, dataset.name, SPLIT)
    rows = open_rows(files, COLUMNS)
    if not len(rows):
        raise RecordError(f"{files[0]} has no rows")
    strip, base = picture_layout(rows, root, image_root, (COLUMNS[1], COLUMNS[3]))
    reader = _Reader(rows, base, strip)
    for number in range(len(rows) if limit is None else min(limit, len(rows))):
        reader.read(number)
    if not reader.queries:
        raise RecordError(f"{rows.where(0)}: the data set has no row that can be used")
    return Cases(
        dataset=dataset,
        items=reader.items,
        names=reader.names,
        places=reader.places,
        queries=np.asarray(reader.queries, np.int32),
        candidates=reader.candidates,
        rows=len(rows) if limit is None else min(limit, len(rows)),
        left_out=dict(reader.left_out),
    )


class _Reader:
    """Turns rows into indices of distinct items."""

    def __init__(self, rows: Rows, base: str, strip: str):
        self._rows, self._base, self._strip = rows, base, strip
        self._known: dict[tuple, int] = {}
        self._lists: dict[tuple, np.ndarray] = {}
        self.items: list[Item] = []
        self.names: list[str] = []
        self.places: list[str] = []
        self.queries: list[int] = []
        self.candidates: list[np.ndarray] = []
        self.left_out: Counter[str] = Counter()

    def read(self, number: int) -> None:
        where, row = self._rows.where(number), self._rows[number]
        if not isinstance(row, Mapping):
            raise RecordError(f"{where} is {shown(row)}; expected an object")
        for one, other in (COLUMNS[:2], COLUMNS[2:4]):
            if row.get(one) is None and row.get(other) is None:
                raise RecordError(f"{where} has neither {one!r} nor {other!r}")
        instruction, text, image = (row.get(c) for c in ("qry_inst", *COLUMNS[:2]))
        query = self._item(instruction, text, image, where)
        found = self._candidates(row, where)
        if query < 0 or found[0] < 0:
            self.left_out[f"the {'query' if query < 0 else 'target'} is empty"] += 1
            return
        if (empty := int(np.sum(found < 0))) > 0:
            self.left_out["candidates that are empty"] += empty
            found = found[found >= 0]
        self.queries.append(query)
        self.candidates.append(found)

    def _candidates(self, row: Mapping[str, Any], where: str) -> np.ndarray:
        """Item indices, -1 for empty ones. Rows with equal lists share one array."""
        texts, images = (row.get(column) or None for column in COLUMNS[2:4])
        lists = [x for x in (texts, images) if isinstance(x, list | tuple)]
        if not lists:
            raise RecordError(f"{where} has no list of candidates in 'tgt_text' or 'tgt_img_path'")
        count = len(lists[0])
        texts, images = (
            tuple(x) if isinstance(x, list | tuple) else (x,) * count for x in (texts, images)
        )
        if len(texts) != len(images):
            raise RecordError(
                f"{where} has {len(texts)} tgt_text and {len(images)} tgt_img_path; expected as "
                "many"
            )
        instruction = row.get("tgt_inst")
        key: tuple = (instruction, texts, images)
        if not _hashable(key):  # a list in the list, which `_item` refuses
            key = (where,)
        if key not in self._lists:
            pairs = zip(texts, images, strict=True)
            numbers = [self._item(instruction, text, image, where) for text, image in pairs]
            self._lists[key] = np.asarray(numbers, np.int32)
        return self._lists[key]

    def _item(self, instruction: Any, text: Any, image: Any, where: str) -> int:
        """The index of an item, -1 if it has neither text nor picture."""
        key = (instruction, text, image)
        if _hashable(key) and key in self._known:
            return self._known[key]
        whats = ("instruction", "text", "picture path")
        instruction, own, path = (
            text_of(value, f"{where} {what}") for value, what in zip(key, whats, strict=True)
        )
        pictures = picture_paths(path, self._base, self._strip, where)
        own, number = plain_text(own), -1
        if pictures or own:
            number = len(self.items)
            self.items.append(Item(plain_text(f"{instruction} {own}"), pictures))
            self.names.append(":".join(part for part in (path, own) if part))
            self.places.append(where)
        self._known[key] = number
        return number


def _hashable(key: tuple) -> bool:
    try:
        hash(key)
    except TypeError:
        return False
    return True
