"""What a library holds: its entries, and what is true of all of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from crem_jax.errors import CremError, Unavailable

ENCODINGS = ("float32", "bfloat16", "int8", "none")
"""How the numbers of a memory are stored; "none" keeps no memories."""

FORMAT = 1
"""What new libraries are written in."""

FORMATS = range(1, FORMAT + 1)
"""What can be read."""


class LibraryError(CremError):
    """A library cannot be used as asked; the message says why."""


class StoreError(LibraryError, Unavailable):
    """What holds a library's tables fails: they are damaged, or it cannot be reached or written."""


class UnknownIdError(LibraryError):
    """The library has no entry of an id."""


@dataclasses.dataclass(frozen=True)
class LibraryInfo:
    """What a library stores about itself: the model it was made with, and what it keeps.

    Attributes:
      fingerprint: of the model, see `model.fingerprint`. model: its name, for people.
      num_chorus: K. dim: D.
      prefixes: the numbers of chorus tokens an embedding is stored for, K first.
      memory: one of ENCODINGS. memory_k: chorus tokens kept in a memory.
      vectors: "" if the vectors are in the library itself, else the URI of a Milvus server, or the
        path of a Milvus Lite file.
      id: hexadecimal digits that are the library's alone; "" of one that is not made yet.
      format: of the library, one of FORMATS.
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
          LibraryError: its format is not one of FORMATS, as of one that a newer version has made.
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
        """The column that holds the embedding of the first k chorus tokens.

        Raises:
          LibraryError: none is stored for k.
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
      id: its name in the library; another entry of the same id replaces it.
      vectors: float16 [len(LibraryInfo.prefixes), D], L2-normalised.
      content: hash of what was encoded, see `crem_jax.library.index_source`.
      uri: where the picture was. text: what belongs to it. metadata: JSON values.
      thumbnail: a small encoded picture, or nothing.
      width, height: of the picture in pixels. source: what it was indexed from.
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
        """63 bits that change with the id or the vectors; derived indexes go by it."""
        digest = hashlib.blake2b(self.id.encode(), digest_size=8)
        digest.update(np.ascontiguousarray(self.vectors, np.float16).tobytes())
        return int.from_bytes(digest.digest(), "little") >> 1


@dataclasses.dataclass(frozen=True)
class Hit:
    """A found entry (its vectors left out) and its cosine similarity to the query."""

    entry: Entry
    score: float


def check_unique(ids: Sequence[str]) -> None:
    """Raises LibraryError if an id is given twice."""
    if len(set(ids)) == len(ids):
        return
    twice = next(name for i, name in enumerate(ids) if name in ids[:i])
    raise LibraryError(f"the id {twice!r} is given twice in one batch")


def halves(num_chorus: int) -> tuple[int, ...]:
    """The default prefixes: K and its halves down to 1."""
    found = [num_chorus]
    while found[-1] > 1:
        found.append(found[-1] // 2)
    return tuple(found)
