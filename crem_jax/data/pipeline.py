"""Training batches by step: a pure function of (seed, step, process)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Protocol

import grain
import numpy as np

from crem_jax.data.batcher import Batcher, BatchSpec
from crem_jax.data.prompt import Prompter
from crem_jax.data.records import Record
from crem_jax.types import Batch


class Source(Protocol):
    """A random-access data set. `record` is a pure function of its arguments."""

    def __len__(self) -> int: ...

    def record(self, index: int, rng: np.random.Generator | None) -> Record: ...


class Stream:
    """Random access to training batches by step: what grain iterates over.

    Args:
      sources: by name, as in `spec.records`.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        spec: BatchSpec,
        prompter: Prompter,
        seed: int,
        process: int = 0,
        processes: int = 1,
    ):
        self.sources, self.spec, self.seed = dict(sources), spec, seed
        self.batcher = Batcher(spec, prompter, process, processes)
        self.process, self.processes = process, processes
        self._order = functools.lru_cache(maxsize=8)(self._epoch_order)

    def records(self, step: int) -> list[Record]:
        """This process's records of one step, in a fixed order."""
        chosen = []
        for number, (name, count) in enumerate(sorted(self.spec.records.items())):
            source, share = self.sources[name], count // self.processes
            first = step * count + self.process * share
            for position in range(first, first + share):
                epoch, place = divmod(position, len(source))
                rng = np.random.default_rng([self.seed, number, position])
                chosen.append(source.record(int(self._order(name, number, epoch)[place]), rng))
        return chosen

    def batch(self, step: int) -> Batch:
        return self.batcher(self.records(step))

    def record_ids(self, step: int) -> list[str]:
        """Names this process's records of one step, for errors about it."""
        return [f"{record.source}:{record.id}" for record in self.records(step)]

    def iterate(self, steps: int, first: int = 0, threads: int = 2) -> grain.DatasetIterator:
        """Iterates over the batches of steps first, first + 1, … steps - 1.

        As a batch is a pure function of its step, `first` is all that a resumed run needs to know.
        """
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        return iter(grain.MapDataset.range(first, steps).map(self.batch).to_iter_dataset(options))

    def _epoch_order(self, name: str, number: int, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, number, epoch, 1 << 31])
        source = self.sources[name]
        if hasattr(source, "clustered_order"):
            return source.clustered_order(rng)
        return rng.permutation(len(source))
