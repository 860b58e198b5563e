"""The checkpointable iterator over training batches, with statistics of skipped records."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path
from typing import Any

import grain
from absl import flags

from crem_jax.data.batches.mixture import SampleRef
from crem_jax.data.batches.packing import BatchPacker
from crem_jax.data.batches.stream import NO_ROOM, Skip, Stream
from crem_jax.errors import CremError
from crem_jax.files import JsonLinesLog, keep_lines
from crem_jax.types import Batch

JUDGED_FROM = 100
"""Minimum number of records that `max_bad_fraction` is taken of."""


class BatchIterator(grain.DatasetIterator):
    """Batches of the steps first, first + 1, … in order, with records carried over between them.

    The state is small and independent of workers and threads: the step, references to the carried
    samples and two counts. A run may resume with other numbers of workers and threads.

    Args:
      steps: where it ends. first: the first step.
      workers: processes that prefetch; 0 loads in this one. threads: in each of them.
      max_bad_fraction: maximum share of skipped records; `next` raises CremError beyond it.
      log: a JSONL file to which a line is appended for every skipped record.
    """

    def __init__(
        self,
        stream: Stream,
        steps: int,
        first: int = 0,
        workers: int = 0,
        threads: int = 2,
        max_bad_fraction: float = 0.02,
        log: str | Path | None = None,
    ):
        super().__init__()
        self.stream, self.steps = stream, steps
        self._options = dict(workers=workers, threads=threads)
        self._max_bad = max_bad_fraction
        self._log = Path(log) if log is not None else None
        self._loader: grain.DatasetIterator | None = None
        self._sums: collections.Counter = collections.Counter()
        self._carried: list[SampleRef] = []
        self._restart(dict(step=first, carried=[], seen=0, skipped=0))

    def __next__(self) -> Batch:
        batch, packed = next(self._get_loader())
        packer = BatchPacker(self.stream.batcher, batch, packed.usage)
        skipped = list(packed.skipped)
        waiting = self._carried
        self._carried = []
        carried = []
        for ref in waiting:
            sample = self._place(packer, ref, skipped)
            if sample is not None:
                carried.append(sample)
        skipped += self.stream.add_negatives(packer, carried, 0)
        room = self.stream.batcher.spec.carry - len(self._carried)
        self._carried += packed.unplaced[:room]
        skipped += [self.stream.skip(ref, NO_ROOM) for ref in packed.unplaced[room:]]
        self._count(packer, skipped, len(carried))
        self._step += 1
        return packer.batch

    def get_state(self) -> dict[str, Any]:
        return {
            "step": self._step,
            "carried": [list(ref) for ref in self._carried],
            "seen": self._num_records,
            "skipped": self._skipped,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        self.close()
        self._restart(state)

    def start_prefetch(self) -> None:
        self._get_loader().start_prefetch()

    def close(self) -> None:
        """Stops the workers."""
        if self._loader is not None:
            self._loader.close()
            self._loader = None

    def stats(self) -> dict[str, float]:
        """Metrics of the batches since the last call, of this process's share.

        data_skipped: records not used. data_carried: records placed in a later step than their own.
        data_left_out: positives and negatives without room. data_waste, data_waste_patches: share
        of context slots and of patches that are padding. data_rows_BUCKET: share of the bucket's
        rows in use. data_kept: vision tokens after fitting images to buckets, as a share of those
        at the model's own resolution.
        """
        sums, self._sums = self._sums, collections.Counter()
        batches = sums["batches"]
        if not batches:
            return {}
        buckets = self.stream.batcher.spec.buckets
        slots = batches * sum(bucket.slots * bucket.rows for bucket in buckets.values())
        patches = batches * sum(bucket.patches * bucket.rows for bucket in buckets.values())
        values = {
            "data_skipped": sums["skipped"],
            "data_carried": sums["carried"],
            "data_left_out": sums["left_out"],
            "data_waste": 1 - sums["slots"] / slots,
        }
        if patches:
            values["data_waste_patches"] = 1 - sums["patches"] / patches
        if sums["native"]:
            values["data_kept"] = sums["visual"] / sums["native"]
        for name, bucket in buckets.items():
            values[f"data_rows_{name}"] = sums[f"rows {name}"] / (batches * bucket.rows)
        return {name: float(value) for name, value in values.items()}

    def _restart(self, state: dict[str, Any]) -> None:
        self._step, self._num_records, self._skipped = (
            state["step"],
            state["seen"],
            state["skipped"],
        )
        self._carried = [SampleRef(*ref) for ref in state["carried"]]
        self._sums.clear()

    def _get_loader(self) -> grain.DatasetIterator:
        """The loader from the current step on, started when first needed."""
        if self._loader is None:
            if self._options["workers"] and not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # grain reads flags, which a library cannot parse
            if self._log is not None:
                keep_lines(self._log, lambda line: line["step"] < self._step)
            dataset = self.stream.loaded(self.steps, self._step, **self._options)
            self._loader = iter(dataset)
        return self._loader

    def _place(self, packer: BatchPacker, ref: SampleRef, skipped: list[Skip]):
        """Places a carried record; one without room is carried on, one that is bad is skipped."""
        record = sample = None
        result: CremError | bool | None
        try:
            record = self.stream.record(ref)
            sample = self.stream.batcher.sample(record)
        except CremError as error:
            result = error
        else:
            result = packer.add([sample])[0]
        if result is None:
            self._carried.append(ref)
        elif isinstance(result, Exception):
            skipped.append(self.stream.skip(ref, result, record))
        return sample if result is True else None

    def _count(self, packer: BatchPacker, skipped: list[Skip], carried: int) -> None:
        self._num_records += len(self.stream.refs(self._step))
        self._skipped += len(skipped)
        self._sums.update(packer.usage.counts)
        self._sums.update({f"rows {name}": used for name, used in packer.usage.used.items()})
        self._sums.update(batches=1, skipped=len(skipped), carried=carried)
        if skipped and self._log is not None:
            with JsonLinesLog(self._log) as log:
                log.append({"step": self._step, **dataclasses.asdict(skip)} for skip in skipped)
        if self._skipped > self._max_bad * max(self._num_records, JUDGED_FROM):
            last = skipped[-1]
            where = f"; all are named in {self._log}" if self._log is not None else ""
            raise CremError(
                f"{self._skipped} of {self._num_records} records could not be used, more than "
                f"data.max_bad_fraction = {self._max_bad}; the last is {last.id!r} of "
                f"{last.source!r}: {last.reason}{where}"
            )
