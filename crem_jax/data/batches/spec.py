"""What a global batch is made of: its static shapes, and how much of each source."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from crem_jax.errors import CremError

LEAST_KEPT = 0.1
"""Share of its vision tokens that a picture keeps at the least when its batch runs out of rows."""


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

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or value < 0:
                raise CremError(f"{field.name} = {value!r} is no whole number of at least 0")
        if bool(self.target_slots) != bool(self.answers):
            raise CremError(
                f"target_slots = {self.target_slots} and answers = {self.answers}: a bucket with "
                "conversations needs both, one without neither"
            )


@dataclasses.dataclass(frozen=True)
class BatchSpec:
    """The shape and the make-up of a global batch: the `data` section of a config.

    A batch holds either exactly so many `records` of each source, or `batch` records of a mixture
    by `weights`, of which every `block` consecutive ones come from one source.

    Attributes:
      buckets: by name.
      candidates: M, room for positives and hard negatives.
      records: source name -> records of it per global batch.
      weights: source name -> its share of the stream; they need not sum to 1.
      batch: records per global batch of a mixture.
      block: k: k consecutive samples of the GLOBAL batch come from one source.
      positives: room for the hashes of what one query should find.
      keep: a picture goes to the bucket nearest to its size in which it keeps at least this share
        of its vision tokens.
      carry: room for records that a batch without free rows leaves to the next; those beyond it
        are skipped.
    """

    buckets: Mapping[str, BucketSpec]
    candidates: int
    records: Mapping[str, int] = dataclasses.field(default_factory=dict)
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    batch: int = 0
    block: int = 1
    positives: int = 8
    keep: float = 0.9
    carry: int = 0

    def __post_init__(self):
        if bool(self.records) == bool(self.weights):
            raise CremError("data needs either records or weights, and not both")
        if self.records and (self.batch or self.block != 1):
            raise CremError("data.batch and data.block belong to data.weights, not to records")
        bad = {name: weight for name, weight in self.weights.items() if not 0 < weight < 1e9}
        if bad:
            name, weight = next(iter(bad.items()))
            raise CremError(f"data.weights.{name} = {weight!r} is no number above 0")
        if self.weights and (self.batch < 1 or self.block < 1 or self.batch % self.block):
            raise CremError(
                f"data.batch = {self.batch} is no multiple of data.block = {self.block}"
            )
        if not 0 < self.keep <= 1:
            raise CremError(f"data.keep = {self.keep!r} is not above 0 and at most 1")

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
          ValueError: something does not divide.
        """

        def share(what: str, number: int) -> int:
            if number % count:
                raise CremError(f"{what} = {number} is no multiple of {count} processes")
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


SETTINGS = (
    "sources",
    "shards",
    "workers",
    "threads",
    "max_bad_fraction",
    "fast_jpeg",
    "fast_resize",
)
"""Keys of the `data` section that are not about the shape of a batch."""


def make_batch_spec(config: Mapping[str, Any]) -> BatchSpec:
    """The spec in the `data` section of a config.

    Raises:
      ValueError: an unknown key, or values that make no sense.
    """
    known = [field.name for field in dataclasses.fields(BatchSpec)]
    unknown = sorted(set(config) - {*known, *SETTINGS})
    if unknown:
        raise CremError(
            f"unknown key data.{unknown[0]}; known keys: {', '.join(sorted((*known, *SETTINGS)))}"
        )
    values = {name: config[name] for name in known if name in config}
    buckets = {}
    for name, bucket in config["buckets"].items():
        try:
            buckets[name] = BucketSpec(**bucket)
        except (TypeError, ValueError) as error:
            raise CremError(f"data.buckets.{name}: {error}") from error
    for mapping in ("records", "weights"):
        values[mapping] = dict(values.get(mapping) or {})
    return BatchSpec(**{**values, "buckets": buckets})
