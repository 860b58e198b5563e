"""Batches composed of shards, independent of the number of processes."""

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
    """Iterates over batches, each the concatenation of this process's shards.

    The contents and order of a shard depend only on (seed, step, number of shards): a run with
    `data.shards` = 8 trains on the same batches with 1, 2, 4 or 8 processes, and may resume with
    another of these.

    Args:
      shards: shard number -> its iterator, in order. total: number of shards of all processes.
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
        """Restores these shards from `state`, which may hold those of other processes too.

        Raises:
          KeyError: the state of one of these shards is missing.
        """
        for name in self.shards:
            self.shards[name].set_state(state[name])

    def start_prefetch(self) -> None:
        for shard in self.shards.values():
            shard.start_prefetch()

    def close(self) -> None:
        """Stops the workers."""
        for shard in self.shards.values():
            shard.close()

    def stats(self) -> dict[str, float]:
        """Metrics averaged over the shards; counts of records are summed."""
        each = [shard.stats() for shard in self.shards.values()]
        counts = ("data_skipped", "data_carried", "data_left_out")
        return {
            key: float((np.sum if key in counts else np.mean)([s[key] for s in each if key in s]))
            for key in each[0]
        }

    def record_ids(self, step: int) -> list[str]:
        """SOURCE:ID of this process's new records of a step, for error messages."""
        return [name for shard in self.shards.values() for name in shard.stream.record_ids(step)]


def iterate(
    stream: Stream, data: DataConfig, steps: int, workdir: str | Path, first: int = 0
) -> Shards:
    """The batches of a run from step `first` on, loaded as its `data` section says.

    Skipped records are logged in WORKDIR/bad_records.jsonl, those of shard n > 0 in
    WORKDIR/bad_records-n.jsonl.

    Args:
      stream: of this process. steps: where the run ends.

    Raises:
      CremError: `data.shards` is not a multiple of the number of processes.
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
