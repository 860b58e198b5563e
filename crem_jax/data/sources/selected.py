"""Selections from a source: records listed by `crem doctor`, a random subset, or half of each."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crem_jax.data.records import Record
from crem_jax.errors import CremError
from crem_jax.files import write_text

HALVES: Mapping[str, Mapping[str, tuple]] = {
    "retrieval": {"turns": ()},
    "turns": {"positives": (), "negatives": ()},
}
"""The fields of a record that `only` clears, with their empty values."""


class Selected:
    """The records with indices `chosen` (int64 [n]) of a source, in that order."""

    def __init__(self, source: Any, chosen: np.ndarray):
        self.source, self.chosen = source, chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def record(self, index: int, rng: np.random.Generator | None = None) -> Record:
        return self.source.record(int(self.chosen[index]), rng)

    @property
    def left_out(self) -> Mapping[str, int]:
        return getattr(self.source, "left_out", {})

    def where(self, index: int) -> str:
        return where(self.source, int(self.chosen[index]))

    def problems(self, index: int) -> Sequence[str]:
        return problems(self.source, int(self.chosen[index]))


class Half:
    """One of HALVES of every record of a source; all other attributes are the source's."""

    def __init__(self, source: Any, only: str):
        self.source, self.only = source, only

    def __len__(self) -> int:
        return len(self.source)

    def record(self, index: int, rng: np.random.Generator | None = None) -> Record:
        return dataclasses.replace(self.source.record(index, rng), **HALVES[self.only])

    def __getattr__(self, name: str) -> Any:
        if name == "source":  # not there yet while it is unpickled
            raise AttributeError(name)
        return getattr(self.source, name)


def select(
    source: Any,
    index: str | os.PathLike | None = None,
    limit: int | None = None,
    limit_seed: int = 0,
    only: str | None = None,
) -> Any:
    """The source, or what is chosen of it.

    Args:
      index: a file that `write_index` wrote for this source.
      limit: at most so many of those records, by a shuffle of seed `limit_seed`.
      only: one of HALVES, the half of every record that is trained on.

    Raises:
      CremError: the index is of another source.
    """
    chosen = None if index is None else read_index(index, len(source))
    if limit is not None:
        chosen = np.arange(len(source)) if chosen is None else chosen
        if limit < len(chosen):
            chosen = np.sort(np.random.default_rng(limit_seed).permutation(chosen)[:limit])
    source = source if chosen is None else Selected(source, chosen)
    return source if only is None else Half(source, only)


def write_index(path: str | os.PathLike, good: np.ndarray) -> None:
    """Writes which records are good (bool [n]), as runs [first, last + 1)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], good, [False]]).astype(np.int8)))
    value = {"records": len(good), "good": edges.reshape(-1, 2).tolist()}
    write_text(path, json.dumps(value) + "\n")


def read_index(path: str | os.PathLike, records: int) -> np.ndarray:
    """The numbers of the good records, int64 [m].

    Raises:
      FileNotFoundError, CremError: no such file, no index, or one of another number of records.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
        total, runs = value["records"], value["good"]
        parts = [np.arange(first, last) for first, last in runs]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CremError(f"index {path} is none that `crem doctor` wrote") from error
    if total != records or any(last > total for _, last in runs):
        raise CremError(
            f"index {path} is for {total} records and the source has {records}: it has changed, "
            "run `crem doctor` again"
        )
    return np.concatenate([np.zeros(0, np.int64), *parts])


def where(source: Any, index: int) -> str:
    """Names a record of any source."""
    return source.where(index) if hasattr(source, "where") else f"record {index}"


def problems(source: Any, index: int) -> Sequence[str]:
    """What is odd about a record of any source though it can be used."""
    return source.problems(index) if hasattr(source, "problems") else ()
