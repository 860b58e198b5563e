"""The records of a library: its entries, and the `LibraryInfo` that describes it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from crem_jax.errors import CremError, Unavailable

ENCODINGS = ("float32", "bfloat16", "int8", "none")
"""Encodings of stored memories; with "none" a library stores none."""

FORMAT = 1
"""The format of new libraries."""

FORMATS = range(1, FORMAT + 1)
"""The formats that can be read."""


class LibraryError(CremError):
    """A library cannot be used as asked; the message says why."""


class StoreError(LibraryError, Unavailable):
    """The database behind a library is damaged, or cannot be reached or written."""


class UnknownIdError(LibraryError):
    """The library has no entry with an id."""


@dataclasses.dataclass(frozen=True)
class LibraryInfo:
    """The description that a library stores of itself: its model, and what it stores per entry.

    Attributes:
      fingerprint: the model's, see `model.fingerprint`. model: its name, for display.
      num_chorus: K. dim: D.
      prefixes: the numbers k of chorus tokens for which embeddings are stored, K first.
      memory: one of ENCODINGS. memory_k: chorus tokens of a stored memory.
      vectors: "" if vectors are stored in the library itself, else the URI of a Milvus server or
        the path of a Milvus Lite file.
      id: unique hexadecimal digits; "" for a library that is not created yet.
      format: the library's format, one of FORMATS.
    """

    fingerprint: str
    model: str
    num_chorus: int
    dim: int
    prefixes: tuple[int, ...]
    memory: str
    memory_k: int
    vectors: str = ""
    id: str = ""
    format: int = FORMAT

    def __post_init__(self):
        if self.memory not in ENCODINGS:
            raise LibraryError(f"memory {self.memory!r} is not one of {', '.join(ENCODINGS)}")
        if not self.prefixes or self.prefixes[0] != self.num_chorus:
            raise LibraryError(f"prefixes {self.prefixes} do not begin with K = {self.num_chorus}")
        for k in (*self.prefixes, self.memory_k):
            if not 1 <= k <= self.num_chorus:
                raise LibraryError(f"k = {k} is not in 1..{self.num_chorus} (chorus tokens)")

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str | bytes) -> LibraryInfo:
        """Inverse of `to_json`.

        Raises:
          LibraryError: the text is damaged, or the format is not one of FORMATS.
        """
        try:
            values = json.loads(text)
            found = values.get("format")
            if found in FORMATS:
                values = {**values, "prefixes": tuple(values["prefixes"])}
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise LibraryError(f"what the library says of itself is damaged: {error!r}") from error
        if found not in FORMATS:
            known = ", ".join(map(str, FORMATS))
            raise LibraryError(
                f"the library has format {found}; this version of crem_jax reads format {known}"
            )
        return LibraryInfo(**values)

    def column(self, k: int | None) -> str:
        """The name of the column with embeddings of the first k chorus tokens; None is all K.

        Raises:
          LibraryError: no embeddings are stored for k.
        """
        k = self.num_chorus if k is None else k
        if k not in self.prefixes:
            stored = ", ".join(str(prefix) for prefix in sorted(self.prefixes))
            raise LibraryError(f"k = {k} is not stored in this library; stored are {stored}")
        return f"vector_{k}"


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """One item of a library.

    Attributes:
      id: unique in the library; a later entry with the same id replaces it.
      vectors: float16 [len(LibraryInfo.prefixes), D], L2-normalised.
      content: hash of the encoded item, see `crem_jax.library.index_source`.
      uri: location of the picture file. text: its text. metadata: further JSON values.
      thumbnail: a small encoded picture, or b"".
      width, height: size of the picture in pixels. source: the source it was indexed from.
    """

    id: str
    vectors: np.ndarray
    content: str = ""
    uri: str = ""
    text: str = ""
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    thumbnail: bytes = b""
    width: int = 0
    height: int = 0
    source: str = ""

    @property
    def key(self) -> int:
        """A 63-bit hash of id and vectors, which identifies rows in derived indexes."""
        digest = hashlib.blake2b(self.id.encode(), digest_size=8)
        digest.update(np.ascontiguousarray(self.vectors, np.float16).tobytes())
        return int.from_bytes(digest.digest(), "little") >> 1


@dataclasses.dataclass(frozen=True)
class Hit:
    """A search result: an entry, without its vectors, and its cosine similarity to the query."""

    entry: Entry
    score: float


def check_unique(ids: Sequence[str]) -> None:
    """Raises LibraryError if an id is given twice."""
    if len(set(ids)) == len(ids):
        return
    twice = next(name for i, name in enumerate(ids) if name in ids[:i])
    raise LibraryError(f"the id {twice!r} is given twice in one batch")


def halves(num_chorus: int) -> tuple[int, ...]:
    """The default prefixes: K, halved repeatedly down to 1."""
    found = [num_chorus]
    while found[-1] > 1:
        found.append(found[-1] // 2)
    return tuple(found)
