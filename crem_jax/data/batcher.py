"""Records become a batch of static shape.

Contexts go to a few static buckets, so that a three-token label never pays for a picture. The same
item twice in a batch is encoded once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from crem_jax.config import ModelConfig
from crem_jax.data.prompt import (
    ContextRow,
    Prompter,
    PromptError,
    TargetRow,
    pad_contexts,
    pad_targets,
)
from crem_jax.data.records import Item, Record
from crem_jax.types import Batch


@dataclasses.dataclass(frozen=True)
class BucketSpec:
    """One static shape.

    Attributes:
      slots: S, chorus included. patches: P, 0 for text only. rows: per global batch.
      target_slots, answers: T and A of the conversations; 0 if the bucket holds none.
    """

    slots: int
    patches: int
    rows: int
    target_slots: int = 0
    answers: int = 0


@dataclasses.dataclass(frozen=True)
class BatchSpec:
    """The shape of a global batch.

    Attributes:
      buckets: by name.
      records: source name -> records of it per global batch.
      candidates: M, room for positives and hard negatives.
      positives: room for the hashes of what one query should find.
    """

    buckets: Mapping[str, BucketSpec]
    records: Mapping[str, int]
    candidates: int
    positives: int = 8

    def local(self, count: int) -> BatchSpec:
        """One of `count` processes' equal share.

        Raises:
          ValueError: something does not divide.
        """

        def share(what: str, number: int) -> int:
            if number % count:
                raise ValueError(f"{what} = {number} is no multiple of {count} processes")
            return number // count

        return dataclasses.replace(
            self,
            buckets={
                name: dataclasses.replace(
                    bucket, rows=share(f"data.buckets.{name}.rows", bucket.rows)
                )
                for name, bucket in self.buckets.items()
            },
            records={n: share(f"data.records.{n}", v) for n, v in self.records.items()},
            candidates=share("data.candidates", self.candidates),
        )


class Batcher:
    """Collates records into a Batch of numpy arrays.

    Args:
      spec: of the global batch. process, processes: whose share this is.
    """

    def __init__(self, spec: BatchSpec, prompter: Prompter, process: int = 0, processes: int = 1):
        self.spec, self.prompter = spec.local(processes), prompter
        self.names = sorted(spec.buckets)
        # Row numbers are global: every process fills its own stretch of each bucket.
        self.offset, start = {}, 0
        for name in self.names:
            rows = self.spec.buckets[name].rows
            self.offset[name] = start + process * rows
            start += rows * processes

    def __call__(self, records: Sequence[Record]) -> Batch:
        """Every query and conversation gets a row, then every first positive, then hard negatives.

        A positive or negative that finds no room is left out; a query raises.
        """
        spec, config = self.spec, self.prompter.config
        rows: dict[str, list[ContextRow]] = {name: [] for name in self.names}
        turns = {name: [None] * spec.buckets[name].rows for name in self.names}
        placed: dict[int, int] = {}
        candidates: dict[int, int] = {}
        queries: list[tuple[int, list[int]]] = []

        def place(item: Item, conversation: TargetRow | None = None) -> int | None:
            key = item.content_hash()
            if key in placed and conversation is None:
                return placed[key]
            row = self.prompter.context(item)
            name = self._bucket(row, rows, conversation)
            if name is None:
                return None
            rows[name].append(row)
            placed[key] = self.offset[name] + len(rows[name]) - 1
            turns[name][len(rows[name]) - 1] = conversation
            return placed[key]

        for record in records:
            with _naming(record):
                talk = self._conversation(record)
                row = place(record.query, talk)
                if row is None:
                    raise PromptError(
                        f"no data.buckets entry has room; it needs {self._size(record)}"
                    )
            if len(record.positives) > spec.positives:
                raise ValueError(
                    f"record {record.id!r} of {record.source!r} has {len(record.positives)} "
                    f"positives; data.positives is {spec.positives}"
                )
            if record.positives:
                queries.append((row, [item.content_hash() for item in record.positives]))
        wanted = [(record, item) for record in records for item in record.positives[:1]]
        wanted += [(record, item) for record in records for item in record.negatives]
        for record, item in wanted:
            key = item.content_hash()
            if key not in candidates and len(candidates) < spec.candidates:
                with _naming(record):
                    row = place(item)
                if row is not None:
                    candidates[key] = row

        contexts, targets = {}, {}
        for name in self.names:
            bucket = spec.buckets[name]
            filler = [_empty(config)] * (bucket.rows - len(rows[name]))
            contexts[name] = pad_contexts(
                [*rows[name], *filler], config, bucket.slots, bucket.patches
            )
            if bucket.target_slots:
                targets[name] = pad_targets(
                    turns[name], config, bucket.target_slots, bucket.answers
                )
        total = sum(spec.records.values())
        query_row = np.full((total,), -1, np.int32)
        positive_hash = np.zeros((total, spec.positives, 2), np.uint32)
        for i, (row, hashes) in enumerate(queries):
            if hashes[0] not in candidates:
                continue
            query_row[i] = row
            positive_hash[i, : len(hashes)] = _split(hashes)
        candidate_row = np.full((spec.candidates,), -1, np.int32)
        candidate_hash = np.zeros((spec.candidates, 2), np.uint32)
        candidate_row[: len(candidates)] = list(candidates.values())
        candidate_hash[: len(candidates)] = _split(list(candidates))
        return Batch(contexts, targets, query_row, positive_hash, candidate_row, candidate_hash)

    def _conversation(self, record: Record) -> TargetRow | None:
        """The record's turns, as many from the first as the roomiest bucket holds."""
        slots, answers = (
            max(getattr(bucket, key) for bucket in self.spec.buckets.values())
            for key in ("target_slots", "answers")
        )
        for count in range(len(record.turns), 0, -1):
            row = self.prompter.target(record.turns[:count])
            if count == 1 or (len(row.tokens) <= slots and np.sum(row.label >= 0) <= answers):
                return row
        return None

    def _bucket(
        self, row: ContextRow, rows: Mapping[str, list], conversation: TargetRow | None
    ) -> str | None:
        """The smallest bucket with room for the row."""
        need, patches = len(row.tokens) + self.prompter.config.num_chorus, len(row.picture)
        talk = conversation is not None
        fitting = [
            (bucket.patches, bucket.slots, name)
            for name, bucket in self.spec.buckets.items()
            if bucket.slots >= need
            and (bucket.patches >= patches and bool(bucket.patches) == bool(patches))
            and len(rows[name]) < bucket.rows
            and (not talk or bucket.target_slots >= len(conversation.tokens))
            and (not talk or bucket.answers >= np.sum(conversation.label >= 0))
        ]
        return min(fitting)[2] if fitting else None

    def _size(self, record: Record) -> str:
        row, text = self.prompter.context(record.query), "no conversation"
        if record.turns:
            target = self.prompter.target(record.turns)
            text = f"{len(target.tokens)} target slots, {np.sum(target.label >= 0)} answers"
        slots = len(row.tokens) + self.prompter.config.num_chorus
        return f"{slots} slots, {len(row.picture)} patches, {text}"


@contextlib.contextmanager
def _naming(record: Record) -> Iterator[None]:
    """Errors name the record they are about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"record {record.id!r} of {record.source!r}: {error}") from error


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


def _split(hashes: Sequence[int]) -> np.ndarray:
    """64-bit content hashes as uint32 [n, 2] (low, high)."""
    values = np.asarray(hashes, np.uint64)
    return np.stack([values & np.uint64(0xFFFFFFFF), values >> np.uint64(32)], -1).astype(np.uint32)
