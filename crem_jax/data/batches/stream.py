"""Training batches: a stream that is a pure function of (seed, step, process count).

A step's new records are known from its number alone (`mixture`). Loading and placing them is a pure
function of the step too, so that threads and worker processes may do it in any order. What found no
row is handed on from step to step by the iterator (`iterator`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import grain

from crem_jax.configs.schema.data import BatchSpec
from crem_jax.data.batches.bucketing import Batcher, Sample
from crem_jax.data.batches.mixture import Mixture, SampleRef
from crem_jax.data.batches.packing import BatchPacker, Usage
from crem_jax.data.inputs.prompt import Prompter
from crem_jax.data.records import Record
from crem_jax.data.sources.base import Source, read_record
from crem_jax.errors import CremError
from crem_jax.processes import allow_open_files, end_with_parent
from crem_jax.types import Batch

ATTEMPTS = 4
"""Records tried for one place of a batch before it stays empty."""


@dataclasses.dataclass(frozen=True)
class Skip:
    """A record that was not used. id: its own, or SOURCE[INDEX] if it could not be read at all."""

    source: str
    index: int
    id: str
    reason: str


@dataclasses.dataclass(frozen=True, eq=False)
class PackedBatch:
    """What else there is to know of a batch: rows in use, records skipped, places without room."""

    usage: Usage
    skipped: tuple[Skip, ...]
    left: tuple[SampleRef, ...]


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
        ref = self.process, self.processes
        return _in_worker, (self.sources, self.spec, self.prompter, self.seed, *ref)

    def shard(self, number: int, total: int) -> Stream:
        """The same stream, cut into `total` shares, of which this is one."""
        return Stream(self.sources, self.spec, self.prompter, self.seed, number, total)

    def refs(self, step: int) -> list[SampleRef]:
        """This process's new samples of one step."""
        return self.mixture.batch(step)[self.process :: self.processes]

    def record(self, ref: SampleRef) -> Record:
        """Raises CremError for a record that cannot be used."""
        source = self.mixture.sources[ref.source]
        return read_record(source, self.mixture.index(ref), self.mixture.rng(ref))

    def records(self, step: int) -> list[Record]:
        """This process's new records of one step, in the order of the global batch."""
        return [self.record(ref) for ref in self.refs(step)]

    def record_ids(self, step: int) -> list[str]:
        """Names this process's new records of one step, for errors about it."""
        names = []
        for ref in self.refs(step):
            sample = self.usable(ref, [])
            if sample is not None:
                names.append(f"{sample[1].record.source}:{sample[1].record.id}")
        return names

    def batch(self, step: int) -> Batch:
        """The batch of a step without what earlier steps left to it."""
        return self.make(step)[0]

    def make(self, step: int) -> tuple[Batch, PackedBatch]:
        """The batch of a step without what earlier steps left to it, and what it leaves."""
        packer = BatchPacker(self.batcher)
        skipped: list[Skip] = []
        left: list[SampleRef] = []
        samples: list[Sample] = []
        wanted = self.refs(step)
        while wanted:
            usable = [self.usable(ref, skipped) for ref in wanted]
            pairs = [pair for pair in usable if pair is not None]
            wanted = []
            results = packer.add([sample for _, sample in pairs])
            for (ref, sample), result in zip(pairs, results, strict=True):
                if result is True:
                    samples.append(sample)
                elif result is None and self.spec.carry:
                    left.append(ref)
                else:
                    skipped.append(self.skip(ref, result or NO_ROOM, sample.record))
                    wanted.append(ref._replace(attempt=ref.attempt + 1))
        skipped += self.add_negatives(packer, samples, self.batcher.spec.carry)
        return packer.batch, PackedBatch(packer.usage, tuple(skipped), tuple(left))

    def usable(self, ref: SampleRef, skipped: list[Skip]) -> tuple[SampleRef, Sample] | None:
        """The first usable record for a place, from `ref.attempt` on; None if there is none."""
        for attempt in range(ref.attempt, ATTEMPTS):
            ref, record = ref._replace(attempt=attempt), None
            try:
                record = self.record(ref)
                return ref, self.batcher.sample(record)
            except CremError as error:
                skipped.append(self.skip(ref, error, record))
        return None

    def add_negatives(self, packer: BatchPacker, samples: list[Sample], spare: int) -> list[Skip]:
        """Hard negatives take what is left; those that cannot be used are named."""
        return [
            Skip(sample.record.source, -1, sample.record.id, f"a negative: {_text(error)}")
            for sample, error in packer.add_negatives(samples, spare)
        ]

    def skip(self, ref: SampleRef, error: Exception | str, record: Record | None = None) -> Skip:
        """Names the record of a place and says why it is skipped."""
        name, index = self.spec.names[ref.source], self.mixture.index(ref)
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
