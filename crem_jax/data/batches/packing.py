"""Packs samples into a batch, row by row, in numpy arrays of static shape."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from crem_jax.config import ModelConfig
from crem_jax.data.batches.bucketing import Batcher, Sample
from crem_jax.data.inputs.padding import (
    ContextRow,
    TargetRow,
    pad_contexts,
    pad_targets,
    split_hashes,
    write_context,
    write_target,
)
from crem_jax.data.inputs.prompt import Draft
from crem_jax.data.records import Item
from crem_jax.errors import CremError
from crem_jax.types import Batch


@dataclasses.dataclass(eq=False)
class Usage:
    """How much of a batch's arrays is in use.

    Attributes:
      used: bucket -> number of rows in use. rows: content hash -> global row number.
      candidates: content hashes of the candidates. queries: entries of `query_row` in use.
      counts: samples, left_out (positives and negatives without room), slots and patches in use,
        visual (vision tokens) and native (vision tokens at the model's own resolution).
    """

    used: dict[str, int]
    rows: dict[int, int] = dataclasses.field(default_factory=dict)
    candidates: set[int] = dataclasses.field(default_factory=set)
    queries: int = 0
    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)


@dataclasses.dataclass(eq=False)
class RowRequest:
    """A request for a row, and its outcome.

    Attributes:
      key: content hash. bucket: None until one is chosen, or if none has room.
      done: the finished context. error: why it could not be finished. row: global number, or -1.
    """

    key: int
    draft: Draft
    conversation: TargetRow | None = None
    bucket: str | None = None
    done: ContextRow | None = None
    error: CremError | None = None
    row: int = -1


class BatchPacker:
    """Fills a batch of numpy arrays.

    `add` places queries with their conversations, then first positives; `add_negatives` places hard
    negatives in the rows that remain.

    Args:
      batch, usage: a partly filled batch to continue, and its usage; both None start an empty one.
    """

    def __init__(self, batcher: Batcher, batch: Batch | None = None, usage: Usage | None = None):
        self.batcher = batcher
        self.batch = self._nothing() if batch is None else batch
        self.usage = usage or Usage(dict.fromkeys(batcher.names, 0))

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
        """bucket -> number of free rows."""
        return {
            name: b.rows - self.usage.used[name] for name, b in self.batcher.spec.buckets.items()
        }

    def add(self, samples: Sequence[Sample]) -> list[CremError | bool | None]:
        """Places samples, larger contexts first; those without room are then retried one by one.

        Returns:
          For each sample True if it was placed, None if there was no room, or the error that makes
          it unusable.
        """
        results = self._add(samples)
        if len(samples) > 1:
            for i, sample in enumerate(samples):
                if results[i] is None:
                    results[i] = self._add([sample])[0]
        return results

    def _add(self, samples: Sequence[Sample]) -> list[CremError | bool | None]:
        queries, positives = self._requests(samples)
        requests = self._choose(samples, queries, positives)
        for wanted, bucket in requests:
            try:
                wanted.done = self._encode(wanted.draft, bucket)
            except CremError as error:
                wanted.error = error
        results: list[CremError | bool | None] = []
        for query, positive in zip(queries, positives, strict=True):
            errors = [
                request.error
                for request in (query, positive)
                if request is not None and request.error
            ]
            results.append(errors[0] if errors else None if query.bucket is None else True)
        placed = [result is True for result in results]
        for part in (queries, positives):
            for request, good in zip(part, placed, strict=True):
                if not good or request is None or request.row >= 0:
                    continue
                if request.bucket and request.done is not None:
                    self._write(request, request.bucket, request.done)
        for sample, query, positive, good in zip(samples, queries, positives, placed, strict=True):
            if good:
                self._refer(sample, query, positive)
        return results

    def add_negatives(
        self, samples: Sequence[Sample], spare: int = 0
    ) -> list[tuple[Sample, CremError]]:
        """Places hard negatives in the order given, leaving `spare` rows of each bucket free.

        Returns:
          (sample, error) for every negative that cannot be used.
        """
        bad = []
        for sample in samples:
            for item in sample.record.negatives:
                key = item.content_hash()
                if key in self.usage.candidates:
                    continue
                try:
                    row = self._negative(key, item, spare)
                except CremError as error:
                    bad.append((sample, error))
                    continue
                if row is None:
                    self.usage.counts["left_out"] += 1
                else:
                    self._candidate(key, row)
        return bad

    def _requests(
        self, samples: Sequence[Sample]
    ) -> tuple[list[RowRequest], list[RowRequest | None]]:
        """Requests for rows of queries and first positives; equal items share one."""

        def request(key: int, draft: Draft) -> RowRequest:
            row = self.usage.rows.get(key, -1)
            return RowRequest(key, draft, bucket=None if row < 0 else "", row=row)

        known: dict[int, RowRequest] = {}
        queries: list[RowRequest] = []
        positives: list[RowRequest | None] = []
        for sample in samples:
            key = sample.keys[0]
            if sample.conversation is not None:
                known[key] = RowRequest(key, sample.query, sample.conversation)
            elif key not in known:
                known[key] = request(key, sample.query)
            queries.append(known[key])
        for sample in samples:
            if sample.positive is None:
                positives.append(None)
                continue
            key = sample.keys[1]
            if key not in known:
                known[key] = request(key, sample.positive)
            positives.append(known[key])
        return queries, positives

    def _choose(
        self,
        samples: Sequence[Sample],
        queries: list[RowRequest],
        positives: list[RowRequest | None],
    ) -> list[tuple[RowRequest, str]]:
        """Chooses buckets for all requests; returns those to be finished and theirs, in order.

        A sample gives its rows back if its query finds no row, or if its positive finds none and it
        has no conversation. With a conversation, only the positive is dropped.
        """
        free = self.free
        for part in (queries, positives):
            wanted = {
                id(request): request
                for request in part
                if request is not None and request.bucket is None
            }
            for one in sorted(wanted.values(), key=_size, reverse=True):
                one.bucket = self.batcher.choose(one.draft, one.conversation, free)
                if one.bucket is not None:
                    free[one.bucket] -= 1
        room = len(self.batch.candidate_row) - len(self.usage.candidates)
        placed = dict.fromkeys(
            request.key for request in positives if request and request.bucket is not None
        )
        new = [key for key in placed if key not in self.usage.candidates]
        beyond = set(new[room:])
        for i, (sample, request) in enumerate(zip(samples, positives, strict=True)):
            if request is not None and (request.bucket is None or request.key in beyond):
                positives[i] = None
                if sample.conversation is None:
                    queries[i] = RowRequest(sample.keys[0], sample.query)
        needed = [
            request for part in (queries, positives) for request in part if request is not None
        ]
        done = {
            id(request): (request, request.bucket)
            for request in needed
            if request.bucket and request.row < 0
        }
        return list(done.values())

    def _encode(self, draft: Draft, bucket: str) -> ContextRow:
        visual = self.batcher.room(draft, bucket) if draft.grids else None
        return self.batcher.prompter.finish(draft, visual)

    def _negative(self, key: int, item: Item, spare: int) -> int | None:
        """Places a hard negative; returns its global row number, or None if there is no room."""
        if len(self.usage.candidates) >= len(self.batch.candidate_row) - spare:
            return None
        if key in self.usage.rows:
            return self.usage.rows[key]
        draft = self.batcher.prompter.draft(item)
        free = {name: count - spare for name, count in self.free.items()}
        bucket = self.batcher.choose(draft, None, free, required=False)
        if bucket is None:
            return None
        request = RowRequest(key, draft)
        self._write(request, bucket, self._encode(draft, bucket))
        return request.row

    def _write(self, request: RowRequest, name: str, done: ContextRow) -> None:
        i = self.usage.used[name]
        write_context(self.batch.contexts[name], i, done, self.batcher.prompter.config)
        if request.conversation is not None:
            write_target(self.batch.targets[name], i, request.conversation)
        self.usage.used[name] += 1
        request.row = self.usage.rows[request.key] = self.batcher.offset[name] + i
        merged = self.batcher.prompter.config.vision.merge_size**2
        self.usage.counts["slots"] += len(done.tokens) + self.batcher.prompter.config.num_chorus
        self.usage.counts["patches"] += len(done.picture)
        self.usage.counts["visual"] += len(done.picture) // merged
        self.usage.counts["native"] += request.draft.visual

    def _refer(self, sample: Sample, query: RowRequest, positive: RowRequest | None) -> None:
        self.usage.counts["samples"] += 1
        if sample.positive is None:
            return
        if positive is None:
            self.usage.counts["left_out"] += 1
        else:
            hashes = sample.keys[1:]
            self.batch.query_row[self.usage.queries] = query.row
            self.batch.positive_hash[self.usage.queries, : len(hashes)] = split_hashes(hashes)
            self._candidate(positive.key, positive.row)
        self.usage.queries += 1

    def _candidate(self, key: int, row: int) -> None:
        if key not in self.usage.candidates:
            self.batch.candidate_row[len(self.usage.candidates)] = row
            self.batch.candidate_hash[len(self.usage.candidates)] = key & 0xFFFFFFFF, key >> 32
            self.usage.candidates.add(key)


def _size(request: RowRequest) -> tuple[int, int]:
    return request.draft.visual, request.draft.fixed


@functools.lru_cache(maxsize=4)
def _empty(config: ModelConfig) -> ContextRow:
    """The context of unused rows: one pad token, which nothing refers to."""
    return ContextRow(
        tokens=np.asarray([config.pad_token_id], np.int32),
        position=np.zeros((1, 3), np.int32),
        pixels=np.zeros((0, config.vision.patch_values), np.uint8),
        patch_position=np.zeros((0, 2), np.int32),
        picture=np.zeros((0,), np.int32),
    )
