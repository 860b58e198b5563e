"""A library: the searchable entries and stored memories of one model."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crem_jax.library.conditions import SECONDS, check_condition
from crem_jax.library.entry import Entry, Hit, LibraryError, LibraryInfo, UnknownIdError
from crem_jax.library.stores.protocols import Entries, Memories

if TYPE_CHECKING:
    from crem_jax.inference.model import Model
    from crem_jax.library.device_search import DeviceSearch

MEMORIES = "memories"
"""The table that every library has."""

_AT_ONCE = 256


class Library:
    """Entries and memories made with one model; construct it with `open` or `create`.

    Attributes:
      info: the library's description of itself.
    """

    def __init__(self, info: LibraryInfo, entries: Entries, memories: Memories):
        self.info, self._entries, self._memories = info, entries, memories
        self._on_devices: DeviceSearch | None = None

    # writing

    def put(self, entries: Sequence[Entry], memories: Sequence[bytes] | None = None) -> None:
        """Adds entries or replaces those with the same ids; returns when they are on disk.

        Args:
          memories: an encoded memory for each entry; None if the library stores none.

        Raises:
          LibraryError: memories or vectors do not fit the library, or an id is given twice.
        """
        if (memories is None) != (self.info.memory == "none"):
            raise LibraryError(f"the library keeps memories as {self.info.memory!r}")
        for entry in entries:
            if entry.vectors.shape != (len(self.info.prefixes), self.info.dim):
                raise LibraryError(
                    f"{entry.id}: vectors of shape {entry.vectors.shape}; expected "
                    f"{(len(self.info.prefixes), self.info.dim)}"
                )
        # Memories first, so that every entry that is found has one.
        if memories is not None:
            contents = [entry.content for entry in entries]
            self._memories.put([entry.id for entry in entries], contents, memories)
        self._entries.put(entries)

    def delete(self, ids: Sequence[str]) -> None:
        """Removes entries and their memories; unknown ids are no error."""
        self._entries.delete(ids)
        self._memories.delete(ids)

    # reading

    def __len__(self) -> int:
        return self._entries.count()

    def get(self, ids: Sequence[str]) -> list[Entry | None]:
        return self._entries.get(ids)

    def scan(
        self, columns: Sequence[str], where: str | None = None
    ) -> Iterator[Mapping[str, np.ndarray]]:
        """Yields all entries in batches: column name -> values, for columns such as "id"."""
        self.check_condition(where)
        return self._entries.scan(columns, where)

    def search(
        self,
        vector: np.ndarray,
        k: int | None = None,
        top: int = 5,
        where: str | None = None,
        exact: bool = False,
        seconds: float = SECONDS,
    ) -> list[Hit]:
        """The entries nearest to an embedding, best first.

        Args:
          vector: float32 [D], L2-normalised. k: chorus tokens it was made from; None is all K.
          top: number of hits.
          where: a filter on id, uri, text, metadata, width, height or source (LanceDB's SQL, or a
            Milvus expression).
          exact: compare the query with every entry instead of using an index, on accelerators if
            there are any; they keep the vectors in memory for each k that has been searched.
          seconds: that the filter may take.

        Raises:
          LibraryError: no embeddings of k chorus tokens are stored; or the filter is invalid, asks
            too much (`conditions`), or takes too long.
        """
        self.check_condition(where)
        vector = np.asarray(vector, np.float32)
        if not exact:
            return self._entries.search(vector, k, top, where, seconds=seconds)
        from crem_jax.library.device_search import DeviceSearch, accelerators

        column, devices = self.info.column(k), accelerators()
        if not devices and self._entries.searches_exactly:
            return self._entries.search(vector, k, top, where, exact=True, seconds=seconds)
        if self._on_devices is None:
            self._on_devices = DeviceSearch(self._entries, devices or None)
        return self._on_devices.search(vector, column, top, where, seconds)

    def find(
        self,
        model: Model,
        query: Any,
        k: int | None = None,
        top: int = 5,
        where: str | None = None,
        exact: bool = False,
    ) -> list[Hit]:
        """The entries nearest to an item (text, an image, or both), best first.

        Args:
          k, top, where, exact: as for `search`.

        Raises:
          LibraryError: the library belongs to another model, or as for `search`.
        """
        self.check_model(model)
        self.info.column(k)
        self.check_condition(where)
        return self.search(model.encode([query], k)[0], k, top, where, exact)

    def memories(self, ids: Sequence[str], dtype: str = "float32", k: int | None = None) -> Any:
        """The stored memories of some entries as one `types.Memory`, a row for each id.

        Args:
          dtype: type of keys and values. k: the first k chorus tokens; None is all stored ones.

        Raises:
          LibraryError: an id is unknown, the library stores no memories, or one is damaged.
        """
        from crem_jax.library.memory_codec import decode_memory

        if self.info.memory == "none":
            raise LibraryError("this library keeps no memories; index again with --memory bfloat16")
        blobs = []
        for name, blob in zip(ids, self._memories.get(ids), strict=True):
            if blob is None:
                raise UnknownIdError(f"the library has no {name!r}; `crem find` shows ids")
            blobs.append(blob)
        return decode_memory(blobs, dtype, k)

    def ask(
        self, model: Model, ids: Sequence[str], question: str, k: int | None = None, **options: Any
    ) -> list[str]:
        """Answers a question about each of some entries from their stored memories.

        Args:
          k: use only the first k chorus tokens. options: as for `Model.ask`.
        """
        self.check_model(model)
        if not ids:
            return []
        memory = self.memories(ids, model.config.dtype, k)
        return model.ask(memory, [question] * len(ids), **options)

    def check_model(self, model: Model) -> None:
        """Raises LibraryError if the library belongs to another model."""
        if model.fingerprint != self.info.fingerprint:
            raise LibraryError(
                f"the library was made with another model: {self.info.model}, fingerprint "
                f"{self.info.fingerprint[:12]}; this one has {model.fingerprint[:12]}"
            )

    def check_condition(self, where: str | None) -> None:
        """Raises LibraryError if a condition asks more of the database than is allowed."""
        if where is not None:
            check_condition(where, milvus=bool(self.info.vectors))

    # care

    def stats(self) -> dict[str, Any]:
        """Counts, sizes in bytes, and the library's description, as JSON values."""
        return {
            "model": self.info.model,
            "fingerprint": self.info.fingerprint,
            "num_chorus": self.info.num_chorus,
            "dim": self.info.dim,
            "prefixes": list(self.info.prefixes),
            "memory": self.info.memory,
            "memory_k": self.info.memory_k,
            "entries": self._entries.stats(),
            "memories": self._memories.stats(),
        }

    def compact(self) -> dict[str, int]:
        """Deletes memories without an entry, merges small files and refreshes indexes.

        No other process may be using the library.
        """
        orphans = sorted(set(self._memories.contents()) - set(self._contents()))
        self._memories.delete(orphans)
        self._entries.compact()
        self._memories.compact()
        return {"orphans": len(orphans)}

    def tidy(self) -> None:
        """The part of `compact` that is safe while other processes use the library."""
        for store in (self._entries, self._memories):
            getattr(store, "tidy", lambda: None)()

    def verify(self, top: int = 10, queries: int = 64) -> dict[str, Any]:
        """Reads all entries and memories, and measures the recall of searches.

        Returns:
          entries, memories: numbers of them. problems: [(id, what is wrong)].
          orphans: number of memories without an entry, which an interrupted run may leave and
          `compact` deletes. search: the result of `Entries.recall`.
        """
        problems: list[tuple[str, str]] = []
        contents: dict[str, str] = {}
        column = self.info.column(None)
        for batch in self._entries.scan(["id", "content", column]):
            norms = np.linalg.norm(batch[column].astype(np.float32), axis=1)
            for name, content, norm in zip(batch["id"], batch["content"], norms, strict=True):
                if name in contents:
                    problems.append((name, "is there twice"))
                contents[name] = content
                if not abs(norm - 1) < 0.01:
                    problems.append((name, f"its embedding has length {norm:.3f}; expected 1"))
        stored = self._memories.contents()
        if self.info.memory != "none":
            problems += self._bad_memories(contents, stored)
        return {
            "entries": len(contents),
            "memories": len(stored),
            "problems": problems,
            "orphans": len(set(stored) - set(contents)),
            **self._entries.recall(top, queries),
        }

    def _contents(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for batch in self._entries.scan(["id", "content"]):
            found |= zip(batch["id"].tolist(), batch["content"].tolist(), strict=True)
        return found

    def _bad_memories(
        self, contents: Mapping[str, str], stored: Mapping[str, str]
    ) -> Iterator[tuple[str, str]]:
        from crem_jax.library.memory_codec import decode_memory

        names = list(contents)
        for first in range(0, len(names), _AT_ONCE):
            some = names[first : first + _AT_ONCE]
            for name, blob in zip(some, self._memories.get(some), strict=True):
                if blob is None:
                    yield name, "has no memory"
                    continue
                if stored.get(name) != contents[name]:
                    yield name, "its memory is of another content"
                try:
                    memory = decode_memory([blob])
                except LibraryError as error:
                    yield name, str(error)
                    continue
                if not all(np.isfinite(x).all() for x in (memory.kv.keys, memory.kv.values)):
                    yield name, "its memory is not finite"
                if memory.region.shape[1] != self.info.memory_k:
                    yield name, f"its memory has {memory.region.shape[1]} slots"


def is_library(place: str | os.PathLike) -> bool:
    """Whether there is a library at a path or URI."""
    if "://" not in os.fspath(place):
        # A run killed while it made the table may have left a directory without any version.
        versions = Path(place) / f"{MEMORIES}.lance" / "_versions"
        return any(versions.glob("*.manifest"))
    return _lance().exists(place)


def open(place: str | os.PathLike) -> Library:
    """Opens the library at a path or object-store URI.

    Raises:
      LibraryError: there is no library.
    """
    lance = _lance()
    if not is_library(place):
        raise LibraryError(f"{place} is no library; `crem index` makes one")
    db = lance.connect(place)
    info = lance.read_info(db)
    if info.vectors:
        entries = _milvus().MilvusEntries(info)
    else:
        entries = lance.LanceEntries(db, info, _cache(place, info.id))
    return Library(info, entries, lance.LanceMemories(db))


def create(place: str | os.PathLike, info: LibraryInfo) -> Library:
    """Opens the library at `place`, or creates it.

    Raises:
      LibraryError: the library there belongs to another model or has other options, or `place` is
        something else.
    """
    lance = _lance()
    info = dataclasses.replace(info, vectors=_absolute(info.vectors))
    made = None
    if not is_library(place):
        if "://" not in os.fspath(place) and Path(place).exists() and any(Path(place).iterdir()):
            names = {path.name for path in Path(place).iterdir()}
            if not names <= {f"{lance.ENTRIES}.lance", f"{MEMORIES}.lance", "ann"}:
                raise LibraryError(f"{place} exists and is no library; expected a new directory")
        made = dataclasses.replace(info, id=secrets.token_hex(8))
        if made.vectors:
            _milvus().create(made)
        lance.create(lance.connect(place), made)
    library = open(place)
    if made and made.vectors and made.id != library.info.id:
        _milvus().drop(made)  # another process was first
    if library.info.fingerprint != info.fingerprint:
        raise LibraryError(
            f"{place} was made with another model: {library.info.model}, fingerprint "
            f"{library.info.fingerprint[:12]}; this one has {info.fingerprint[:12]}"
        )
    for name in ("prefixes", "memory", "memory_k", "vectors"):
        wanted, stored = getattr(info, name), getattr(library.info, name)
        if wanted != stored:
            raise LibraryError(f"{place} was made with {name} {stored}; this asks for {wanted}")
    return library


def _lance() -> Any:
    try:
        from crem_jax.library.stores import lance
    except ImportError as error:
        raise LibraryError(
            f"a library needs {error.name}: pip install 'crem_jax[library]'"
        ) from error
    return lance


def _milvus() -> Any:
    try:
        from crem_jax.library.stores import milvus
    except ImportError as error:
        raise LibraryError(
            f"vectors in Milvus need {error.name}: pip install 'crem_jax[milvus]'"
        ) from error
    return milvus


def _absolute(vectors: str) -> str:
    """`LibraryInfo.vectors` with the path of a Milvus Lite file made absolute."""
    return os.path.abspath(vectors) if vectors and "://" not in vectors else vectors


def _cache(place: str | os.PathLike, library: str) -> Path:
    """The directory of derived indexes: in a local library, else in the user's cache.

    Args:
      library: its id, so that a new library at the same place does not read an old one's indexes.
    """
    if "://" not in os.fspath(place):
        return Path(place) / "ann"
    name = hashlib.blake2b(f"{os.fspath(place)} {library}".encode(), digest_size=8).hexdigest()
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "crem_jax" / name
