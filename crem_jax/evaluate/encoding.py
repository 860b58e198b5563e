"""Embeds many items into a cache, each once, in full batches of few shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from crem_jax.errors import CremError
from crem_jax.evaluate.progress import Counting, quiet
from crem_jax.inference.batches import Shape, fill_batch, plan_batches, shape_of
from crem_jax.model.pooling import pool
from crem_jax.processes import read_ahead

if TYPE_CHECKING:
    from crem_jax.data.inputs.padding import ContextRow
    from crem_jax.data.records import Item
    from crem_jax.evaluate.embedding_cache import EmbeddingCache
    from crem_jax.inference.runner import Runner


@dataclasses.dataclass(frozen=True, eq=False)
class LocatedItem:
    """An item to compress, and its location.

    Attributes:
      item: None is an empty conversation. place: its location, for errors.
    """

    item: Item | None
    place: str


def encode_missing(
    runner: Runner,
    work: Mapping[bytes, LocatedItem],
    cache: EmbeddingCache,
    *,
    k: int | None = None,
    share: tuple[int, int] = (0, 1),
    workers: int = 2,
    counting: Counting = quiet,
) -> int:
    """Embeds the items that are not in the cache, storing each batch before the next one starts.

    Args:
      work: items by content key. k: use only the first k chorus tokens; None is all.
      share: (i, n): this process encodes part i of n.
      workers: number of threads that decode pictures.

    Returns:
      The number of items that this process encoded.

    Raises:
      CremError: items cannot be used (checked before any is encoded), or an embedding is not
        finite; the message names the location of one.
    """
    mine, of = share
    keys = [key for key in work if key not in cache and int.from_bytes(key[:8]) % of == mine]
    with ThreadPoolExecutor(workers) as threads, counting(len(keys), "encoding") as progress:
        shapes = shapes_of(threads, runner, [work[key] for key in keys])
        batches = plan_batches(shapes, runner.row_multiple)
        for chosen, size, rows in prepared(threads, runner, [work[key] for key in keys], batches):
            vectors = _embed(runner, rows, size, k)
            if not (finite := np.isfinite(vectors).all(axis=1)).all():
                first = work[keys[chosen[int(np.argmin(finite))]]]
                raise CremError(f"{first.place}: the embedding is not finite")
            cache.put([keys[i] for i in chosen], vectors)
            progress(len(chosen))
    return len(keys)


def shapes_of(
    threads: ThreadPoolExecutor, runner: Runner, work: Sequence[LocatedItem]
) -> list[Shape]:
    """The padded shape of each item, from its text and the headers of its pictures.

    Raises:
      CremError: items cannot be used; the message names the first's location and their number.
    """
    merge = runner.config.vision.merge_size**2

    def shape(one: LocatedItem) -> Shape | str:
        try:
            draft = runner.prompter.check(one.item)
        except CremError as error:
            return f"{one.place}: {error}"
        return shape_of(draft.fixed + draft.visual, draft.visual * merge)

    found = list(threads.map(shape, work))
    bad = [one for one in found if isinstance(one, str)]
    if bad:
        more = f" (and {len(bad) - 1} more like it)" if len(bad) > 1 else ""
        raise CremError(f"{bad[0]}{more}")
    return [one for one in found if not isinstance(one, str)]


def prepared(
    threads: ThreadPoolExecutor,
    runner: Runner,
    work: Sequence[LocatedItem],
    batches: Iterator[tuple[list[int], int]],
) -> Iterator[tuple[list[int], int, list[ContextRow]]]:
    """Yields (indices of items, batch size, rows); the next batch is prepared in the background."""

    def prepare(one: LocatedItem) -> ContextRow:
        try:
            return runner.prompter.context(one.item)
        except CremError as error:
            raise CremError(f"{one.place}: {error}") from error

    planned = list(batches)
    items = ([work[i] for i in chosen] for chosen, _ in planned)
    for (chosen, size), rows in zip(planned, read_ahead(threads, prepare, items), strict=True):
        yield chosen, size, rows


def _embed(runner: Runner, rows: Sequence[ContextRow], size: int, k: int | None) -> np.ndarray:
    return pool(runner.chorus_states(fill_batch(rows, size, runner.config))[: len(rows)], k)
