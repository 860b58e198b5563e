"""Training batches: a stream that is a pure function of (seed, step, process count).

The new records of a step follow from its number alone (`mixture`). Loading and packing them is a
pure function of the step as well, so that threads and worker processes may do it in any order.
Samples that found no row are carried from step to step by `iterator`.
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
"""Records tried for one sample of a batch before it stays empty."""


@dataclasses.dataclass(frozen=True)
class Skip:
    """A skipped record. id: its own, or SOURCE[INDEX] if it could not be read."""

    source: str
    index: int
    id: str
    reason: str


@dataclasses.dataclass(frozen=True, eq=False)
class PackedBatch:
    """The usage of a batch, the records skipped, and the samples for which it had no room."""

    usage: Usage
    skipped: tuple[Skip, ...]
    unplaced: tuple[SampleRef, ...]


class Stream:
    """Random access to training batches by step: what grain iterates over.

    Sample g of a global batch belongs to process g modulo the number of processes, so that all have
    similar shares of every source. A record that cannot be used is replaced by another of its
    source, drawn at random by (seed, sample reference).

    Args:
      sources: by name, as in the spec. process, processes: the index of this process and their
        number.
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

    def __reduce__(self):  # caches are not pickled when it moves to a worker process
        ref = self.process, self.processes
        return _in_worker, (self.sources, self.spec, self.prompter, self.seed, *ref)

    def shard(self, number: int, total: int) -> Stream:
        """Share `number` of the same stream divided into `total` shares."""
        return Stream(self.sources, self.spec, self.prompter, self.seed, number, total)

    def refs(self, step: int) -> list[SampleRef]:
        """This process's new samples of one step."""
        return self.mixture.batch(step)[self.process :: self.processes]

    def record(self, ref: SampleRef) -> Record:
        """Reads the record of a sample; raises CremError if it cannot be used."""
        source = self.mixture.sources[ref.source]
        return read_record(source, self.mixture.index(ref), self.mixture.rng(ref))

    def records(self, step: int) -> list[Record]:
        """This process's new records of one step, in the order of the global batch."""
        return [self.record(ref) for ref in self.refs(step)]

    def record_ids(self, step: int) -> list[str]:
        """SOURCE:ID of this process's new records of a step, for error messages."""
        names = []
        for ref in self.refs(step):
            sample = self.usable(ref, [])
            if sample is not None:
                names.append(f"{sample[1].record.source}:{sample[1].record.id}")
        return names

    def batch(self, step: int) -> Batch:
        """The batch of a step, without samples carried over from earlier steps."""
        return self.make(step)[0]

    def make(self, step: int) -> tuple[Batch, PackedBatch]:
        """The batch of a step, without samples carried over, and what was skipped or unplaced."""
        packer = BatchPacker(self.batcher)
        skipped: list[Skip] = []
        unplaced: list[SampleRef] = []
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
                    unplaced.append(ref)
                else:
                    skipped.append(self.skip(ref, result or NO_ROOM, sample.record))
                    wanted.append(ref._replace(attempt=ref.attempt + 1))
        skipped += self.add_negatives(packer, samples, self.batcher.spec.carry)
        return packer.batch, PackedBatch(packer.usage, tuple(skipped), tuple(unplaced))

    def usable(self, ref: SampleRef, skipped: list[Skip]) -> tuple[SampleRef, Sample] | None:
        """The first usable record from `ref.attempt` on, or None; adds the others to `skipped`."""
        for attempt in range(ref.attempt, ATTEMPTS):
            ref, record = ref._replace(attempt=attempt), None
            try:
                record = self.record(ref)
                return ref, self.batcher.sample(record)
            except CremError as error:
                skipped.append(self.skip(ref, error, record))
        return None

    def add_negatives(self, packer: BatchPacker, samples: list[Sample], spare: int) -> list[Skip]:
        """Places hard negatives in the remaining rows; returns those that cannot be used."""
        return [
            Skip(sample.record.source, -1, sample.record.id, f"a negative: {_text(error)}")
            for sample, error in packer.add_negatives(samples, spare)
        ]

    def skip(self, ref: SampleRef, error: Exception | str, record: Record | None = None) -> Skip:
        """Describes the skipped record of a sample, with the reason."""
        name, index = self.spec.names[ref.source], self.mixture.index(ref)
        return Skip(name, index, record.id if record else f"{name}[{index}]", _text(error))

    def loaded(
        self, steps: int, first: int = 0, workers: int = 0, threads: int = 2
    ) -> grain.IterDataset:
        """`make` of the steps first, first + 1, …, prefetched by grain."""
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
