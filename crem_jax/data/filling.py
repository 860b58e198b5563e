"""A batch being filled, row by row, in numpy arrays of static shape."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from crem_jax.config import ModelConfig
from crem_jax.data.batcher import BAD, Batcher, Sample
from crem_jax.data.prompt import Draft
from crem_jax.data.records import Item
from crem_jax.data.rows import (
    ContextRow,
    TargetRow,
    pad_contexts,
    pad_targets,
    split_hashes,
    write_context,
    write_target,
)
from crem_jax.types import Batch


@dataclasses.dataclass(eq=False)
class Taken:
    """What is taken of a batch's arrays.

    Attributes:
      used: rows of each bucket. rows: content hash -> global row number.
      candidates: content hashes. queries: places of `query_row`.
      counts: samples, left_out (positives and negatives without room), slots and patches in use,
        visual (vision tokens) and native (those by the model's own rule).
    """

    used: dict[str, int]
    rows: dict[int, int] = dataclasses.field(default_factory=dict)
    candidates: set[int] = dataclasses.field(default_factory=set)
    queries: int = 0
    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)


@dataclasses.dataclass(eq=False)
class _Job:
    """A row that is wanted, and what becomes of it. bucket is None where there is no room."""

    key: int
    draft: Draft
    talk: TargetRow | None = None
    bucket: str | None = None
    done: ContextRow | None = None
    error: Exception | None = None
    row: int = -1


class Filling:
    """A batch that is being filled: numpy arrays, and what is taken of them.

    `add` gives every query and conversation a row and then every first positive; `add_negatives`
    gives hard negatives what is left.

    Args:
      batch, taken: of a filling that another process began.
    """

    def __init__(self, batcher: Batcher, batch: Batch | None = None, taken: Taken | None = None):
        self.batcher = batcher
        self.batch = self._nothing() if batch is None else batch
        self.taken = taken or Taken(dict.fromkeys(batcher.names, 0))

    def _nothing(self) -> Batch:
        spec, config = self.batcher.spec, self.batcher.prompter.config
        buckets = {name: spec.buckets[name] for name in self.batcher.names}
        return Batch(
            contexts={
                name: pad_contexts([_empty(config)] * b.rows, config, b.slots, b.patches)
                for name, b in buckets.items()
            },
            targets={
                name: pad_targets([None] * b.rows, config, b.target_slots, b.answers)
                for name, b in buckets.items()
                if b.target_slots
            },
            query_row=np.full((spec.queries,), -1, np.int32),
            positive_hash=np.zeros((spec.queries, spec.positives, 2), np.uint32),
            candidate_row=np.full((spec.candidates,), -1, np.int32),
            candidate_hash=np.zeros((spec.candidates, 2), np.uint32),
        )

    @property
    def free(self) -> dict[str, int]:
        """Rows left in each bucket."""
        return {
            name: b.rows - self.taken.used[name] for name, b in self.batcher.spec.buckets.items()
        }

    def add(self, samples: Sequence[Sample]) -> list[Exception | bool | None]:
        """Places what has room, larger contexts first; then one by one what is left of the rows.

        Returns:
          For each sample True, None if it found no room, or the error if its pictures are bad.
        """
        results = self._add(samples)
        if len(samples) > 1:
            for i, sample in enumerate(samples):
                if results[i] is None:
                    results[i] = self._add([sample])[0]
        return results

    def _add(self, samples: Sequence[Sample]) -> list[Exception | bool | None]:
        queries, positives = self._jobs(samples)
        jobs = self._choose(samples, queries, positives)
        for job in jobs:
            self._finish(job)
        results: list[Exception | bool | None] = []
        for query, positive in zip(queries, positives, strict=True):
            errors = [job.error for job in (query, positive) if job is not None and job.error]
            results.append(errors[0] if errors else None if query.bucket is None else True)
        placed = [result is True for result in results]
        for part in (queries, positives):
            for job, good in zip(part, placed, strict=True):
                if good and job is not None and job.done is not None and job.row < 0:
                    self._write(job)
        for sample, query, positive, good in zip(samples, queries, positives, placed, strict=True):
            if good:
                self._refer(sample, query, positive)
        return results

    def add_negatives(
        self, samples: Sequence[Sample], spare: int = 0
    ) -> list[tuple[Sample, Exception]]:
        """Places hard negatives in the order given, leaving `spare` rows of each bucket free.

        Returns:
          The samples with a negative that cannot be used, and why not.
        """
        bad = []
        for sample in samples:
            for item in sample.record.negatives:
                key = item.content_hash()
                if key in self.taken.candidates:
                    continue
                try:
                    row = self._negative(key, item, spare)
                except BAD as error:
                    bad.append((sample, error))
                    continue
                if row is None:
                    self.taken.counts["left_out"] += 1
                else:
                    self._candidate(key, row)
        return bad

    def _jobs(self, samples: Sequence[Sample]) -> tuple[list[_Job], list[_Job | None]]:
        """The rows that queries and first positives want; equal items share theirs."""
        known = {key: _Job(key, None, bucket="", row=row) for key, row in self.taken.rows.items()}
        queries, positives = [], []
        for sample in samples:
            key = sample.keys[0]
            if sample.talk is not None or key not in known:
                known[key] = _Job(key, sample.query, sample.talk)
            queries.append(known[key])
        for sample in samples:
            job = None
            if sample.positive is not None:
                job = known.setdefault(sample.keys[1], _Job(sample.keys[1], sample.positive))
            positives.append(job)
        return queries, positives

    def _choose(
        self, samples: Sequence[Sample], queries: list[_Job], positives: list[_Job | None]
    ) -> list[_Job]:
        """Buckets for all jobs; those that are to be done, in order.

        A sample without a row for its query, or for its positive if that is all it has, gives its
        rows back. A positive without a row is left out where a conversation remains.
        """
        free = self.free
        for part in (queries, positives):
            wanted = {id(job): job for job in part if job is not None and job.bucket is None}
            for job in sorted(wanted.values(), key=_size, reverse=True):
                job.bucket = self.batcher.choose(job.draft, job.talk, free)
                if job.bucket is not None:
                    free[job.bucket] -= 1
        room = len(self.batch.candidate_row) - len(self.taken.candidates)
        new = dict.fromkeys(job.key for job in positives if job and job.bucket is not None)
        new = [key for key in new if key not in self.taken.candidates]
        beyond = set(new[room:])
        for i, (sample, job) in enumerate(zip(samples, positives, strict=True)):
            if job is not None and (job.bucket is None or job.key in beyond):
                positives[i] = None
                if sample.talk is None:
                    queries[i] = _Job(sample.keys[0], sample.query)
        needed = [job for part in (queries, positives) for job in part if job is not None]
        done = {id(job): job for job in needed if job.bucket and job.row < 0}
        return list(done.values())

    def _finish(self, job: _Job) -> None:
        visual = self.batcher.room(job.draft, job.bucket) if job.draft.grids else None
        try:
            job.done = self.batcher.prompter.finish(job.draft, visual)
        except BAD as error:
            job.error = error

    def _negative(self, key: int, item: Item, spare: int) -> int | None:
        """The row of a hard negative, None if there is no room."""
        if len(self.taken.candidates) >= len(self.batch.candidate_row) - spare:
            return None
        if key in self.taken.rows:
            return self.taken.rows[key]
        job = _Job(key, self.batcher.prompter.draft(item))
        free = {name: count - spare for name, count in self.free.items()}
        job.bucket = self.batcher.choose(job.draft, None, free, required=False)
        if job.bucket is None:
            return None
        self._finish(job)
        if job.error:
            raise job.error
        self._write(job)
        return job.row

    def _write(self, job: _Job) -> None:
        name, i = job.bucket, self.taken.used[job.bucket]
        write_context(self.batch.contexts[name], i, job.done, self.batcher.prompter.config)
        if job.talk is not None:
            write_target(self.batch.targets[name], i, job.talk)
        self.taken.used[name] += 1
        job.row = self.taken.rows[job.key] = self.batcher.offset[name] + i
        merged = self.batcher.prompter.config.vision.merge_size**2
        self.taken.counts["slots"] += len(job.done.tokens) + self.batcher.prompter.config.num_chorus
        self.taken.counts["patches"] += len(job.done.picture)
        self.taken.counts["visual"] += len(job.done.picture) // merged
        self.taken.counts["native"] += job.draft.visual

    def _refer(self, sample: Sample, query: _Job, positive: _Job | None) -> None:
        self.taken.counts["samples"] += 1
        if sample.positive is None:
            return
        if positive is None:
            self.taken.counts["left_out"] += 1
        else:
            hashes = sample.keys[1:]
            self.batch.query_row[self.taken.queries] = query.row
            self.batch.positive_hash[self.taken.queries, : len(hashes)] = split_hashes(hashes)
            self._candidate(positive.key, positive.row)
        self.taken.queries += 1

    def _candidate(self, key: int, row: int) -> None:
        if key not in self.taken.candidates:
            self.batch.candidate_row[len(self.taken.candidates)] = row
            self.batch.candidate_hash[len(self.taken.candidates)] = key & 0xFFFFFFFF, key >> 32
            self.taken.candidates.add(key)


def _size(job: _Job) -> tuple[int, int]:
    return job.draft.visual, job.draft.fixed


@functools.lru_cache(maxsize=4)
def _empty(config: ModelConfig) -> ContextRow:
    """Fills unused rows of a bucket: one pad token, referred to by nothing."""
    return ContextRow(
        tokens=np.asarray([config.pad_token_id], np.int32),
        position=np.zeros((1, 3), np.int32),
        pixels=np.zeros((0, config.vision.patch_values), np.uint8),
        patch_position=np.zeros((0, 2), np.int32),
        picture=np.zeros((0,), np.int32),
    )
