"""Which rows the contexts of a batch get: records in, places in static shapes out.

Contexts go to a few static buckets, so that a three-token label never pays for a picture. The
shapes of a step never change; what varies is fitted to them: a picture may be made a little
smaller where it would be just over a bucket, larger pictures choose first, and when the rows of a
size run out the next ones take what is nearest. Every process can so fill its share without
knowing the others', which a choice among several compiled batch shapes would need. The same item
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
"""Share of its vision tokens that a picture keeps at the least when its batch runs out of rows."""

_LAST_RESORT = 1e6


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """A record whose texts are tokens and whose pictures are opened.

    Attributes:
      query, positive: its contexts; positive is None if it has none to find.
      keys: content hashes of the query and of all positives.
      talk: its conversation, if any.
    """

    record: Record
    query: Draft
    positive: Draft | None
    keys: tuple[int, ...]
    talk: TargetRow | None


class Batcher:
    """Makes batches of one process's share.

    Args:
      spec: of the global batch. process, processes: whose share this is.
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
        """Opens a record.

        Raises:
          CremError: it cannot be used, whatever else is in the batch.
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
            talk=self._conversation(record),
        )
        empty = {name: bucket.rows for name, bucket in spec.buckets.items()}
        if self.choose(sample.query, sample.talk, empty) is None:
            raise PromptError(self._no_room("query", sample.query, sample.talk))
        alone = sample.positive if sample.talk is None else None
        if alone is not None and self.choose(alone, None, empty) is None:
            raise PromptError(self._no_room("positive", alone, None))
        return sample

    def choose(
        self,
        draft: Draft,
        talk: TargetRow | None,
        free: Mapping[str, int],
        required: bool = True,
    ) -> str | None:
        """The bucket a context should go to, of those with free rows; None if there is none.

        A picture goes where least is lost, by padding or by shrinking within `keep`.
        What is `required` can also be shrunk further, and a text take a row meant for pictures.
        """
        slots = answers = 0
        if talk is not None:
            slots, answers = len(talk.tokens), int(np.count_nonzero(talk.label >= 0))
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
        """How badly a bucket suits a context; None if it does not fit."""
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
        """Vision tokens that a bucket has room for; negative if the other tokens do not fit."""
        others = draft.fixed + self.prompter.config.num_chorus
        return min(self.capacity[name], self.spec.buckets[name].slots - others)

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

    def _no_room(self, what: str, draft: Draft, talk: TargetRow | None) -> str:
        slots = draft.fixed + draft.visual + self.prompter.config.num_chorus
        patches = draft.visual * self.prompter.config.vision.merge_size**2
        text = "no conversation"
        if talk is not None:
            text = f"{len(talk.tokens)} target slots, {np.sum(talk.label >= 0)} answers"
        return (
            f"no data.buckets entry has room for its {what}; it needs {slots} slots, "
            f"{patches} patches, {text}"
        )
