"""Batches put together of shards, so that they do not depend on the number of processes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np

from crem_jax.configs.schema.data import DataConfig
from crem_jax.data.batches.iterator import BatchIterator
from crem_jax.data.batches.stream import Stream
from crem_jax.errors import CremError
from crem_jax.types import Batch


class Shards(grain.DatasetIterator):
    """This process's shards of every batch, one after another.

    What is in a shard, and in what order, follows from (seed, step, number of shards): a run with
    `data.shards` = 8 sees the same batches on 1, 2, 4 or 8 processes, and may move between them.

    Args:
      shards: number -> its iterator, in order. total: of all processes.
    """

    def __init__(self, shards: Mapping[int, BatchIterator], total: int):
        super().__init__()
        self.shards = {f"{number}-of-{total}": shard for number, shard in shards.items()}

    def __next__(self) -> Batch:
        batches = [next(shard) for shard in self.shards.values()]
        if len(batches) == 1:
            return batches[0]
        return jax.tree.map(lambda *parts: np.concatenate(parts), *batches)

    def get_state(self) -> dict[str, Any]:
        return {name: shard.get_state() for name, shard in self.shards.items()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from the states of these shards; those of others may be there too.

        Raises:
          KeyError: one is missing.
        """
        for name in self.shards:
            self.shards[name].set_state(state[name])

    def start_prefetch(self) -> None:
        for shard in self.shards.values():
            shard.start_prefetch()

    def close(self) -> None:
        """Ends the workers."""
        for shard in self.shards.values():
            shard.close()

    def stats(self) -> dict[str, float]:
        """Means of the shards' metrics, and sums of their counts of records."""
        each = [shard.stats() for shard in self.shards.values()]
        counts = ("data_skipped", "data_carried", "data_left_out")
        return {
            key: float((np.sum if key in counts else np.mean)([s[key] for s in each if key in s]))
            for key in each[0]
        }

    def record_ids(self, step: int) -> list[str]:
        """Names this process's new records of one step, for errors about it."""
        return [name for shard in self.shards.values() for name in shard.stream.record_ids(step)]


def iterate(
    stream: Stream, data: DataConfig, steps: int, workdir: str | Path, first: int = 0
) -> Shards:
    """The batches of a run from step `first` on, loaded as its `data` section says.

    Records skipped are named in WORKDIR/bad_records.jsonl, those of further shards in
    bad_records-SHARD.jsonl.

    Args:
      stream: of this process.

    Raises:
      ValueError: the processes cannot share `data.shards`.
    """
    total = data.shards or stream.processes
    if total % stream.processes:
        raise CremError(f"data.shards = {total} is no multiple of {stream.processes} processes")
    each = total // stream.processes
    workers = max(1, data.workers // each) if data.workers else 0
    shards = {}
    for number in range(stream.process * each, (stream.process + 1) * each):
        log = Path(workdir) / f"bad_records{f'-{number}' if number else ''}.jsonl"
        shards[number] = BatchIterator(
            stream.shard(number, total),
            steps,
            first,
            workers,
            data.threads,
            data.max_bad_fraction,
            log,
        )
    return Shards(shards, total)
