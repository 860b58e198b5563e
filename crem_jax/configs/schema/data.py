"""`data`: what a global batch is made of, and how it is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from crem_jax.configs.fields import ConfigError, check, field
from crem_jax.configs.schema.sources import SourceConfig


@dataclasses.dataclass(frozen=True)
class BucketSpec:
    """One static shape of S = `slots`, P = `patches`, T = `target_slots` and A = `answers`."""

    slots: int = field(doc="S: tokens of a context, chorus tokens included.", low=0)
    patches: int = field(
        doc="P: image patches of a context; 0 makes it a bucket for text only.", low=0
    )
    rows: int = field(doc="Contexts of this shape in a global batch.", low=0)
    target_slots: int = field(
        0, "T: tokens of a conversation; 0: the bucket holds no conversations.", low=0
    )
    answers: int = field(0, "A: answer tokens of a conversation, the ones with a loss.", low=0)

    def __post_init__(self):
        check(self, "bucket")
        if bool(self.target_slots) != bool(self.answers):
            raise ConfigError(
                f"target_slots = {self.target_slots} and answers = {self.answers}: a bucket with "
                "conversations needs both, one without neither"
            )


@dataclasses.dataclass(frozen=True)
class BatchSpec:
    """The shapes and the composition of a global batch.

    A batch holds either a fixed number of `records` of each source, or `batch` records of a mixture
    by `weights`, in which every `block` of consecutive records comes from one source.
    """

    buckets: Mapping[str, BucketSpec] = field(doc="Static shapes of contexts, by name.")
    candidates: int = field(
        doc="M: room for positives and hard negatives in a global batch.", low=0
    )
    records: Mapping[str, int] = field({}, "Records of this source in every global batch.", low=0)
    weights: Mapping[str, float] = field(
        {},
        "Relative weight of this source in a mixture; used instead of `records`.",
        above=0,
        high=1e9,
    )
    batch: int = field(0, "Records in a global batch of a mixture (with `weights`).", low=0)
    block: int = field(
        1, "Number of consecutive samples of a mixture that come from one source.", low=1
    )
    positives: int = field(8, "Maximum number of positives of a record.", low=1)
    keep: float = field(
        0.9,
        "Minimum share of its vision tokens that an image keeps when shrunk to fit a bucket.",
        above=0,
        high=1,
    )
    carry: int = field(
        0, "Maximum number of records without a free row that wait for the next batch.", low=0
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
        """New records in a batch."""
        return self.batch or sum(self.records.values())

    @property
    def queries(self) -> int:
        """Q: room for queries, those of new records and of records carried over."""
        return self.samples + self.carry

    @property
    def names(self) -> list[str]:
        """The names of the sources, in the order in which they are numbered."""
        return sorted(self.records or self.weights)

    def local(self, count: int) -> BatchSpec:
        """The equal share of one of `count` processes.

        Raises:
          ConfigError: a size is not a multiple of `count`.
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

    sources: Mapping[str, SourceConfig] = field({}, "The data sources, by name.")
    shards: int = field(0, "Shards that make up a batch; 0: one per process.", low=0)
    workers: int = field(
        0, "Worker processes that prefetch batches; 0 loads in the main process.", low=0
    )
    threads: int = field(2, "Loading threads in each worker process.", low=1)
    max_bad_fraction: float = field(
        0.02, "Maximum share of unusable records, of at least 100; more end the run.", low=0, high=1
    )
    fast_jpeg: bool = field(False, "Decode large JPEGs at 1/2, 1/4 or 1/8 of their size.")
    fast_resize: bool = field(
        False, "Resize with SIMD instructions (crem_jax[fast]); pixels differ by 1 or 2 of 255."
    )

    @property
    def spec(self) -> BatchSpec:
        """The batch specification alone."""
        names = [each.name for each in dataclasses.fields(BatchSpec)]
        return BatchSpec(**{name: getattr(self, name) for name in names})
