"""Assigns the contexts of a batch to buckets of static shape.

Contexts are padded to one of a few shapes, so that a three-token label does not cost as much as an
image. The shapes of a step never change, the contents are fitted to them: an image slightly too
large for a bucket is shrunk a little, larger images choose first, and when the rows of one bucket
run out the next best bucket is used. Each process can thus fill its share without knowing those of
the others, which choosing among several compiled batch shapes would require. An item that occurs
twice in a batch is encoded once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from crem_jax.configs.schema.data import BatchSpec
from crem_jax.data.batches.bucket_planning import loss_of
from crem_jax.data.inputs.padding import PromptError, TargetRow
from crem_jax.data.inputs.prompt import Draft, Prompter
from crem_jax.data.records import Record

LEAST_KEPT = 0.1
"""Minimum share of its vision tokens that an image keeps when its batch runs out of rows."""

_LAST_RESORT = 1e6


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """A record with its texts tokenised and its images opened.

    Attributes:
      query, positive: its contexts; positive is None if the record has no positives.
      keys: content hashes of the query and of all positives.
      conversation: its tokenised turns, or None.
    """

    record: Record
    query: Draft
    positive: Draft | None
    keys: tuple[int, ...]
    conversation: TargetRow | None


class Batcher:
    """Turns records into samples and assigns them to buckets, for one process's share.

    Args:
      spec: the specification of the global batch. process, processes: the index of this process
        and their number.
    """

    def __init__(self, spec: BatchSpec, prompter: Prompter, process: int = 0, processes: int = 1):
        self.spec, self.prompter = spec.local(processes), prompter
        self.names = sorted(spec.buckets)
        merged = prompter.config.vision.merge_size**2
        self.capacity = {name: spec.buckets[name].patches // merged for name in self.names}
        # Row numbers are global: every process fills its own stretch of each bucket.
        self.offset, start = {}, 0
        for name in self.names:
            rows = self.spec.buckets[name].rows
            self.offset[name] = start + process * rows
            start += rows * processes

    def sample(self, record: Record) -> Sample:
        """Tokenises a record and opens its images.

        Raises:
          CremError: it cannot be used, or fits no bucket even when the batch is empty.
        """
        spec, draft = self.spec, self.prompter.draft
        if len(record.positives) > spec.positives:
            raise PromptError(
                f"it has {len(record.positives)} positives; data.positives is {spec.positives}"
            )
        items = (record.query, *record.positives)
        sample = Sample(
            record=record,
            query=draft(record.query),
            positive=draft(record.positives[0]) if record.positives else None,
            keys=tuple(item.content_hash() for item in items),
            conversation=self._conversation(record),
        )
        empty = {name: bucket.rows for name, bucket in spec.buckets.items()}
        if self.choose(sample.query, sample.conversation, empty) is None:
            raise PromptError(self._no_room("query", sample.query, sample.conversation))
        alone = sample.positive if sample.conversation is None else None
        if alone is not None and self.choose(alone, None, empty) is None:
            raise PromptError(self._no_room("positive", alone, None))
        return sample

    def choose(
        self,
        draft: Draft,
        conversation: TargetRow | None,
        free: Mapping[str, int],
        required: bool = True,
    ) -> str | None:
        """The best bucket with free rows for a context, or None if none has room.

        An image goes where it loses the fewest tokens by padding and by shrinking within `keep`.
        A `required` image may also be shrunk further, and a required text use an image bucket.

        Args:
          conversation: goes into the same row. free: bucket -> number of free rows.
        """
        slots = answers = 0
        if conversation is not None:
            slots, answers = (
                len(conversation.tokens),
                int(np.count_nonzero(conversation.label >= 0)),
            )
        best = None
        for name in self.names:
            bucket = self.spec.buckets[name]
            if free[name] < 1 or bucket.target_slots < slots or bucket.answers < answers:
                continue
            cost = self._cost(draft, name, required)
            if cost is not None:
                rank = (cost, bucket.patches, bucket.slots, bucket.target_slots, name)
                best = rank if best is None else min(best, rank)
        return best and best[-1]

    def _cost(self, draft: Draft, name: str, required: bool) -> float | None:
        """The cost of placing a context in a bucket; None if it does not fit."""
        room, capacity = self.room(draft, name), self.capacity[name]
        if not draft.grids:
            fits = room >= 0 and (required or not capacity)
            return (_LAST_RESORT if capacity else 0.0) if fits else None
        if room < len(draft.grids):
            return None
        used = draft.visual
        if used > room:
            used = sum(math.prod(grid) for grid in draft.shrunk(room))
        if used >= self.spec.keep * draft.visual:
            return loss_of(draft.visual, used, capacity)
        if required and used >= LEAST_KEPT * draft.visual:
            return _LAST_RESORT * draft.visual / used
        return None

    def room(self, draft: Draft, name: str) -> int:
        """Room for vision tokens in a bucket; negative if the context's other tokens do not fit."""
        others = draft.fixed + self.prompter.config.num_chorus
        return min(self.capacity[name], self.spec.buckets[name].slots - others)

    def _conversation(self, record: Record) -> TargetRow | None:
        """The record's first turns, as many as the largest bucket holds; None if it has none."""
        slots, answers = (
            max(getattr(bucket, key) for bucket in self.spec.buckets.values())
            for key in ("target_slots", "answers")
        )
        for count in range(len(record.turns), 0, -1):
            row = self.prompter.target(record.turns[:count])
            if count == 1 or (len(row.tokens) <= slots and np.sum(row.label >= 0) <= answers):
                return row
        return None

    def _no_room(self, what: str, draft: Draft, conversation: TargetRow | None) -> str:
        slots = draft.fixed + draft.visual + self.prompter.config.num_chorus
        patches = draft.visual * self.prompter.config.vision.merge_size**2
        text = "no conversation"
        if conversation is not None:
            answers = np.sum(conversation.label >= 0)
            text = f"{len(conversation.tokens)} target slots, {answers} answers"
        return (
            f"no data.buckets entry has room for its {what}; it needs {slots} slots, "
            f"{patches} patches, {text}"
        )
