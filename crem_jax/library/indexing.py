"""Indexes a source: one pass of the compressor gives each item's embeddings and memory.

Stored items are recognised by id and content hash, so only new and changed ones are encoded. A
batch is stored durably when `Library.put` returns; an interrupted run loses its current batch, and
the next run encodes exactly what is missing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from crem_jax.data.inputs.padding import ContextRow
from crem_jax.errors import CremError
from crem_jax.library.entry import Entry, LibraryError, LibraryInfo
from crem_jax.library.index_source import IndexItem, IndexItemError, IndexSource, thumbnail
from crem_jax.library.library import Library
from crem_jax.model.pooling import pool
from crem_jax.processes import read_ahead

if TYPE_CHECKING:
    from crem_jax.inference.model import Model

_TIDY_EVERY = 64  # batches


@dataclasses.dataclass
class IndexStats:
    """The result of `index`.

    Attributes:
      encoded, unchanged, deleted: numbers of items.
      skipped: (location, reason why the item cannot be used).
    """

    encoded: int = 0
    unchanged: int = 0
    deleted: int = 0
    skipped: list[tuple[str, str]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class _EncodableItem:
    """An item whose pictures have been decoded.

    Attributes:
      row: tokens and patches. thumbnail, size: of the first picture; (width, height) in pixels.
    """

    item: IndexItem
    row: ContextRow
    thumbnail: bytes
    size: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class _PreparedItem:
    """An item that is ready to be encoded, or is unchanged, or cannot be used.

    Attributes:
      index: its index in the source. id: "" if unknown.
      fresh: what to encode; None if the library has the item unchanged.
      error: the reason why it cannot be used, or "".
    """

    index: int
    id: str = ""
    fresh: _EncodableItem | None = None
    error: str = ""


def index(
    model: Model,
    library: Library,
    source: IndexSource,
    *,
    shard: tuple[int, int] = (0, 1),
    delete: bool = False,
    batch: int = 128,
    workers: int = 2,
    progress: Callable[[int], None] = lambda count: None,
) -> IndexStats:
    """Brings the library up to date with a source.

    Args:
      shard: (i, n): index only items i, i + n, …, if n processes share the work.
      delete: remove entries that the source no longer has.
      batch: number of items encoded and stored together. workers: picture-decoding threads.
      progress: called with the number of items finished since the last call.

    Raises:
      LibraryError: the library belongs to another model, or has an entry with the id of an item
        from another source.
    """
    library.check_model(model)
    if delete and shard[1] > 1:
        raise LibraryError("a shard does not see the whole source: delete in a run of its own")
    known = _known(library)
    seen_ids: set[str] = set()
    done = IndexStats()
    numbers = range(shard[0], len(source), shard[1])
    batches = 0
    with ThreadPoolExecutor(workers) as threads:
        for ready in _chunks(threads, model, source, numbers, known, batch):
            fresh = []
            for one in ready:
                twice = f"its id {one.id!r} was given before" if one.id in seen_ids else ""
                if one.error or twice:
                    done.skipped.append((source.where(one.index), one.error or twice))
                elif one.fresh is None:
                    done.unchanged += 1
                else:
                    _check_source(one.id, known, source.name)
                    fresh.append(one.fresh)
                if one.id:
                    seen_ids.add(one.id)
            if fresh:
                _store(model, library, source.name, fresh)
                done.encoded += len(fresh)
                batches += 1
                if shard[0] == 0 and batches % _TIDY_EVERY == 0:
                    library.tidy()
            progress(len(ready))
    if delete:
        stale = [name for name, (_, origin) in known.items() if origin == source.name]
        stale = sorted(set(stale) - seen_ids)
        library.delete(stale)
        done.deleted = len(stale)
    return done


def library_info(
    model: Model,
    name: str,
    memory: str = "bfloat16",
    memory_k: int | None = None,
    prefixes: Sequence[int] | None = None,
    vectors: str = "",
) -> LibraryInfo:
    """The `LibraryInfo` of a library made with this model.

    Raises:
      LibraryError: the model has no chorus tokens, or `memory_k` or a prefix is not in 1..K.
    """
    from crem_jax.library.entry import halves

    chorus = model.config.num_chorus
    if not chorus:
        raise LibraryError("this model cannot find: it has no chorus tokens (plain Qwen2-VL)")
    chosen = sorted({chorus, *(prefixes or halves(chorus))}, reverse=True)
    return LibraryInfo(
        fingerprint=model.fingerprint,
        model=name,
        num_chorus=chorus,
        dim=model.config.text.hidden_size,
        prefixes=tuple(chosen),
        memory=memory,
        memory_k=memory_k or chorus,
        vectors=vectors,
    )


def _known(library: Library) -> dict[str, tuple[str, str]]:
    """Id -> (content hash, source) of all entries."""
    found: dict[str, tuple[str, str]] = {}
    for rows in library.scan(["id", "content", "source"]):
        pairs = zip(rows["content"].tolist(), rows["source"].tolist(), strict=True)
        found |= zip(rows["id"].tolist(), pairs, strict=True)
    return found


def _check_source(name: str, known: Mapping[str, tuple[str, str]], source: str) -> None:
    if name in known and known[name][1] != source:
        raise LibraryError(
            f"the library has {name!r} from {known[name][1]}; give the ids of {source} a --prefix"
        )


def _chunks(
    threads: ThreadPoolExecutor,
    model: Model,
    source: IndexSource,
    numbers: Sequence[int],
    known: Mapping[str, tuple[str, str]],
    size: int,
) -> Iterator[list[_PreparedItem]]:
    """Yields lists of items with at most `size` to encode, while the next list is being decoded."""

    def prepare(number: int) -> _PreparedItem:
        name = ""
        try:
            item = source.item(number)
            name = item.id
            if known.get(name, ("", ""))[0] == item.content:
                return _PreparedItem(number, name)
            small, pixels = thumbnail(item.item.images[0]) if item.item.images else (b"", (0, 0))
            row = model.runner.prepare(item.item)
            return _PreparedItem(number, name, _EncodableItem(item, row, small, pixels))
        except IndexItemError as error:
            return _PreparedItem(number, error.id, error=str(error))
        except CremError as error:
            return _PreparedItem(number, name, error=str(error).removeprefix("<bytes>: "))

    spans = (numbers[i : i + size] for i in range(0, len(numbers), size))
    return read_ahead(threads, prepare, spans)


def _store(model: Model, library: Library, source: str, ready: Sequence[_EncodableItem]) -> None:
    from crem_jax.library.memory_codec import encode_memory

    info = library.info
    memory = model.compress([one.row for one in ready])
    chorus = np.asarray(memory.chorus)
    vectors = np.stack([pool(chorus, k) for k in info.prefixes], axis=1)
    entries = [
        Entry(
            id=one.item.id,
            vectors=own.astype(np.float16),
            content=one.item.content,
            uri=one.item.uri,
            text=one.item.text or one.item.item.text,
            metadata=one.item.metadata,
            thumbnail=one.thumbnail,
            width=one.size[0],
            height=one.size[1],
            source=source,
        )
        for one, own in zip(ready, vectors, strict=True)
    ]
    blobs = None
    if info.memory != "none":
        blobs = encode_memory(memory, info.memory, info.memory_k)
    library.put(entries, blobs)
