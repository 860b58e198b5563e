"""Training batches: a stream that is a pure function of (seed, step, process count).

A step's new records are known from its number alone (`mixture`). Loading and placing them is a pure
function of the step too, so that threads and worker processes may do it in any order. What found no
row is handed on from step to step by the iterator (`iterator`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import grain
import numpy as np

from crem_jax.data.batch_spec import BatchSpec
from crem_jax.data.batcher import BAD, Batcher, Sample
from crem_jax.data.filling import Filling, Taken
from crem_jax.data.mixture import Mixture, Place
from crem_jax.data.prompt import Prompter
from crem_jax.data.records import Record
from crem_jax.data.worker import allow_open_files, end_with_parent
from crem_jax.types import Batch

ATTEMPTS = 4
"""Records tried for one place of a batch before it stays empty."""


class Source(Protocol):
    """A random-access data set. It must be picklable, for worker processes.

    `record` is a pure function of its arguments, and raises a ValueError or an OSError for a record
    that cannot be used: it is then skipped and named. Other exceptions end the run.
    """

    def __len__(self) -> int: ...

    def record(self, index: int, rng: np.random.Generator | None) -> Record: ...


@dataclasses.dataclass(frozen=True)
class Skip:
    """A record that was not used. id: its own, or SOURCE[INDEX] if it could not be read at all."""

    source: str
    index: int
    id: str
    reason: str


@dataclasses.dataclass(frozen=True, eq=False)
class Made:
    """What else there is to know of a batch: rows in use, records skipped, places without room."""

    taken: Taken
    skipped: tuple[Skip, ...]
    left: tuple[Place, ...]


class Stream:
    """Random access to training batches by step: what grain iterates over.

    Sample g of a global batch belongs to process g modulo the number of processes, so that all have
    like shares of every source. A record that cannot be used is replaced by another of its source,
    drawn by (seed, its place).

    Args:
      sources: by name, as in the spec. process, processes: whose share this is.
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
        self.sources, self.spec, self.prompter, self.seed = dict(sources), spec, prompter, seed
        self.batcher = Batcher(spec, prompter, process, processes)
        self.mixture = Mixture(spec, sources, seed)
        self.process, self.processes = process, processes

    def __reduce__(self):  # its caches stay behind when it moves to a worker process
        place = self.process, self.processes
        return _in_worker, (self.sources, self.spec, self.prompter, self.seed, *place)

    def shard(self, number: int, total: int) -> Stream:
        """The same stream, cut into `total` shares, of which this is one."""
        return Stream(self.sources, self.spec, self.prompter, self.seed, number, total)

    def places(self, step: int) -> list[Place]:
        """This process's new samples of one step."""
        return self.mixture.batch(step)[self.process :: self.processes]

    def record(self, place: Place) -> Record:
        """Raises ValueError or OSError for a record that cannot be used."""
        source = self.mixture.sources[place.source]
        return source.record(self.mixture.index(place), self.mixture.rng(place))

    def records(self, step: int) -> list[Record]:
        """This process's new records of one step, in the order of the global batch."""
        return [self.record(place) for place in self.places(step)]

    def record_ids(self, step: int) -> list[str]:
        """Names this process's new records of one step, for errors about it."""
        names = []
        for place in self.places(step):
            sample = self.usable(place, [])
            if sample is not None:
                names.append(f"{sample[1].record.source}:{sample[1].record.id}")
        return names

    def batch(self, step: int) -> Batch:
        """The batch of a step without what earlier steps left to it."""
        return self.make(step)[0]

    def make(self, step: int) -> tuple[Batch, Made]:
        """The batch of a step without what earlier steps left to it, and what it leaves."""
        filling = Filling(self.batcher)
        skipped: list[Skip] = []
        left: list[Place] = []
        samples: list[Sample] = []
        wanted = self.places(step)
        while wanted:
            usable = [self.usable(place, skipped) for place in wanted]
            pairs = [pair for pair in usable if pair is not None]
            wanted = []
            results = filling.add([sample for _, sample in pairs])
            for (place, sample), result in zip(pairs, results, strict=True):
                if result is True:
                    samples.append(sample)
                elif result is None and self.spec.carry:
                    left.append(place)
                else:
                    skipped.append(self.skip(place, result or NO_ROOM, sample.record))
                    wanted.append(place._replace(attempt=place.attempt + 1))
        skipped += self.add_negatives(filling, samples, self.batcher.spec.carry)
        return filling.batch, Made(filling.taken, tuple(skipped), tuple(left))

    def usable(self, place: Place, skipped: list[Skip]) -> tuple[Place, Sample] | None:
        """The first usable record for a place, from `place.attempt` on; None if there is none."""
        for attempt in range(place.attempt, ATTEMPTS):
            place, record = place._replace(attempt=attempt), None
            try:
                record = self.record(place)
                return place, self.batcher.sample(record)
            except BAD as error:
                skipped.append(self.skip(place, error, record))
        return None

    def add_negatives(self, filling: Filling, samples: list[Sample], spare: int) -> list[Skip]:
        """Hard negatives take what is left; those that cannot be used are named."""
        return [
            Skip(sample.record.source, -1, sample.record.id, f"a negative: {_text(error)}")
            for sample, error in filling.add_negatives(samples, spare)
        ]

    def skip(self, place: Place, error: Exception | str, record: Record | None = None) -> Skip:
        """Names the record of a place and says why it is skipped."""
        name, index = self.spec.names[place.source], self.mixture.index(place)
        return Skip(name, index, record.id if record else f"{name}[{index}]", _text(error))

    def loaded(
        self, steps: int, first: int = 0, workers: int = 0, threads: int = 2
    ) -> grain.IterDataset:
        """`make` of the steps first, first + 1, … by grain, ahead of their use."""
        allow_open_files()
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        numbers = grain.MapDataset.range(first, max(first, steps))
        dataset = numbers.map(self.make).to_iter_dataset(options)
        if workers:
            dataset = dataset.mp_prefetch(
                grain.multiprocessing.MultiprocessingOptions(workers, per_worker_buffer_size=2)
            )
        return dataset


def _in_worker(*arguments) -> Stream:
    end_with_parent()
    allow_open_files()
    return Stream(*arguments)


NO_ROOM = "its batch had no free rows of its size: raise data.buckets.*.rows, or set data.carry"


def _text(error: Exception | str) -> str:
    return " ".join(str(error).split()) or type(error).__name__
