"""`data`: what a global batch is made of, and how it is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from crem_jax.configs.fields import ConfigError, check, field
from crem_jax.configs.schema.sources import SourceConfig


@dataclasses.dataclass(frozen=True)
class BucketSpec:
    """One static shape of S = `slots`, P = `patches`, T = `target_slots` and A = `answers`."""

    slots: int = field(doc="Tokens of a context, chorus included.", low=0)
    patches: int = field(doc="Patches of its pictures; 0: text only.", low=0)
    rows: int = field(doc="Contexts per global batch.", low=0)
    target_slots: int = field(0, "Tokens of a conversation; 0: it holds none.", low=0)
    answers: int = field(0, "Answer tokens among them.", low=0)

    def __post_init__(self):
        check(self, "bucket")
        if bool(self.target_slots) != bool(self.answers):
            raise ConfigError(
                f"target_slots = {self.target_slots} and answers = {self.answers}: a bucket with "
                "conversations needs both, one without neither"
            )


@dataclasses.dataclass(frozen=True)
class BatchSpec:
    """The shape and the make-up of a global batch.

    A batch holds either exactly so many `records` of each source, or `batch` records of a mixture
    by `weights`, of which every `block` consecutive ones come from one source.
    """

    buckets: Mapping[str, BucketSpec] = field(doc="The static shapes, by name.")
    candidates: int = field(doc="M: room for positives and hard negatives.", low=0)
    records: Mapping[str, int] = field({}, "Records of this source per global batch.", low=0)
    weights: Mapping[str, float] = field(
        {},
        "Share of this source in a mixture of `batch` records, in place of `records`.",
        above=0,
        high=1e9,
    )
    batch: int = field(0, "Records per global batch of a mixture.", low=0)
    block: int = field(
        1, "So many consecutive samples of the global batch come from one source.", low=1
    )
    positives: int = field(8, "Positives that a record may have.", low=1)
    keep: float = field(
        0.9, "Least share of its vision tokens that a picture keeps in its bucket.", above=0, high=1
    )
    carry: int = field(
        0, "Room for records that find no free row and wait for the next batch.", low=0
    )

    def __post_init__(self):
        check(self, "data")
        if bool(self.records) == bool(self.weights):
            raise ConfigError("data needs either records or weights, and not both")
        if self.records and (self.batch or self.block != 1):
            raise ConfigError("data.batch and data.block belong to data.weights, not to records")
        if self.weights and (self.batch < 1 or self.batch % self.block):
            raise ConfigError(
                f"data.batch = {self.batch} is no multiple of data.block = {self.block}"
            )

    @property
    def samples(self) -> int:
        """New records per batch."""
        return self.batch or sum(self.records.values())

    @property
    def queries(self) -> int:
        """Q: room for the new and the carried ones."""
        return self.samples + self.carry

    @property
    def names(self) -> list[str]:
        """The sources, in the order they are numbered."""
        return sorted(self.records or self.weights)

    def local(self, count: int) -> BatchSpec:
        """One of `count` processes' equal share.

        Raises:
          ConfigError: something does not divide.
        """

        def share(what: str, number: int) -> int:
            if number % count:
                raise ConfigError(f"{what} = {number} is no multiple of {count} processes")
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
            batch=share("data.batch", self.batch),
            block=1,
            candidates=share("data.candidates", self.candidates),
            carry=share("data.carry", self.carry),
        )


@dataclasses.dataclass(frozen=True)
class DataConfig(BatchSpec):
    """What a global batch is made of, where its records come from, and how they are loaded."""

    sources: Mapping[str, SourceConfig] = field({}, "Where records come from, by name.")
    shards: int = field(
        0, "Parts of which a batch is put together, whatever the processes; 0: as many.", low=0
    )
    workers: int = field(0, "Processes that load ahead; 0: none.", low=0)
    threads: int = field(2, "Threads that load, in each of them.", low=1)
    max_bad_fraction: float = field(
        0.02, "More unusable records than this share, of at least 100, end a run.", low=0, high=1
    )
    fast_jpeg: bool = field(
        False, "Decode large JPEGs at a half, a quarter or an eighth of their size."
    )
    fast_resize: bool = field(
        False, "Resize by SIMD instructions: other by 1 or 2 of 255 (crem_jax[fast])."
    )

    @property
    def spec(self) -> BatchSpec:
        """The batch alone."""
        names = [each.name for each in dataclasses.fields(BatchSpec)]
        return BatchSpec(**{name: getattr(self, name) for name in names})
