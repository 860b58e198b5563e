"""The order of samples in the stream: a pure function of (seed, sample number)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import grain
import numpy as np

from crem_jax.configs.schema.data import BatchSpec
from crem_jax.errors import CremError

CYCLE = 10_000
"""Number of blocks in which the share of every source is exact to one block."""

LISTED = 1 << 17
"""Sources of at most this many records are shuffled by an explicit permutation, which is faster;
longer ones by grain's index shuffle, which needs no memory."""


class SampleRef(NamedTuple):
    """Reference to a sample: record number `position`, from 0, that the stream reads of a source.

    attempt: 0, or n for the n-th replacement of a record that could not be used.
    """

    source: int
    position: int
    attempt: int = 0


class Mixture:
    """Random access to the global stream of samples.

    With `records`, a batch holds a contiguous run of each source in turn. With `weights`, the
    stream consists of blocks of one source each. The blocks of a source are spread evenly with
    random jitter: any window has about the right share of every source, while the combination of
    sources in a batch varies.

    Args:
      spec: the specification of the global batch.
      sources: by name, with `len`. A source with `clustered_order(rng)` orders its own epochs; all
        others are shuffled.

    Raises:
      CremError: a source of `spec` is missing or empty.
    """

    def __init__(self, spec: BatchSpec, sources: Mapping[str, Any], seed: int):
        missing = sorted(set(spec.names) - set(sources))
        if missing:
            key = "records" if spec.records else "weights"
            raise CremError(f"data.{key}.{missing[0]} has no source in data.sources")
        empty = [name for name in spec.names if not len(sources[name])]
        if empty:
            raise CremError(f"data.sources.{empty[0]} has no records")
        self.spec, self.seed = spec, seed
        self.sources = [sources[name] for name in spec.names]
        self._shuffles = [self._shuffle(number) for number in range(len(self.sources))]
        self._order = functools.lru_cache(maxsize=2 * len(self.sources))(self._epoch_order)
        self._cycle = functools.lru_cache(maxsize=4)(self._cycle_of_blocks)
        if spec.weights:
            self._blocks = _shares(np.array([spec.weights[name] for name in spec.names]))

    def batch(self, step: int) -> list[SampleRef]:
        """The samples of the global batch of a step; with `weights`, block by block."""
        if self.spec.records:
            counts = enumerate(self.spec.records[name] for name in self.spec.names)
            return [SampleRef(n, step * count + i) for n, count in counts for i in range(count)]
        blocks = self.spec.batch // self.spec.block
        return [ref for b in range(step * blocks, (step + 1) * blocks) for ref in self._in(b)]

    def index(self, ref: SampleRef) -> int:
        """The index of the sample's record in its source."""
        source = self.sources[ref.source]
        if ref.attempt:
            return int(self.rng(ref).integers(len(source)))
        shuffle = self._shuffles[ref.source]
        if shuffle is not None:
            return int(shuffle[ref.position])
        epoch, within = divmod(ref.position, len(source))
        return int(self._order(ref.source, epoch)[within])

    def rng(self, ref: SampleRef) -> np.random.Generator:
        """The random generator that is passed to the source when it reads the sample."""
        tail = [ref.attempt] if ref.attempt else []
        return np.random.default_rng([self.seed, ref.source, ref.position, *tail])

    def _in(self, block: int) -> list[SampleRef]:
        cycle, within = divmod(block, CYCLE)
        source, rank = self._cycle(cycle)
        number = int(source[within])
        first = (cycle * int(self._blocks[number]) + int(rank[within])) * self.spec.block
        return [SampleRef(number, first + i) for i in range(self.spec.block)]

    def _cycle_of_blocks(self, cycle: int) -> tuple[np.ndarray, np.ndarray]:
        """int64 [CYCLE] each: the source of every block, and how many of its blocks precede it."""
        rng = np.random.default_rng([self.seed, cycle, 1 << 30])
        sources = np.repeat(np.arange(len(self._blocks)), self._blocks)
        rank = np.concatenate([np.arange(count) for count in self._blocks])
        time = (rank + rng.random(CYCLE)) / self._blocks[sources]
        order = np.argsort(time, kind="stable")
        return sources[order], rank[order]

    def _shuffle(self, number: int) -> grain.MapDataset | None:
        """Grain's index shuffle of a long source; None for all others."""
        source = self.sources[number]
        if hasattr(source, "clustered_order") or len(source) <= LISTED:
            return None
        seed = int(np.random.SeedSequence([self.seed, number, 1 << 31]).generate_state(1)[0])
        return grain.MapDataset.range(len(source)).shuffle(seed=seed).repeat()

    def _epoch_order(self, number: int, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, number, epoch, 1 << 31])
        source = self.sources[number]
        if hasattr(source, "clustered_order"):
            return source.clustered_order(rng)
        return rng.permutation(len(source)).astype(np.int32)


def _shares(weights: np.ndarray) -> np.ndarray:
    """Blocks of each source in a cycle, int64 [n], by largest remainder; at least one each."""
    exact = weights / weights.sum() * CYCLE
    blocks = np.maximum(np.floor(exact).astype(np.int64), 1)
    for i in np.argsort(np.floor(exact) - exact, kind="stable")[: max(0, CYCLE - blocks.sum())]:
        blocks[i] += 1
    blocks[np.argmax(blocks)] += CYCLE - blocks.sum()
    return blocks
