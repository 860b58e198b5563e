"""The library's pytrees of arrays, and the shape letters that all docstrings use.

Shape letters, used in every docstring and einsum:
  B  rows of a batch (samples)           D  hidden size of the decoder
  S  slots of a context, chorus last     K  chorus slots, the last K of S
  T  slots of a target region            L  decoder layers
  P  picture patches of one row          V  vocabulary
  N  query heads                         G  key/value heads
  R  query heads per key/value head      H  head dimension
  C  slots of a key/value buffer         A  answer tokens of a row
  Q  retrieval queries                   M  retrieval candidates
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

Array: TypeAlias = jax.Array | np.ndarray
"""Batches are numpy arrays until they are put on devices; fetched results are numpy again."""

PAD, CONTEXT, CHORUS, TARGET = -1, 0, 1, 2
"""Regions of a sequence (design: V,T are CONTEXT; U is CHORUS; Q,A are TARGET)."""


@struct.dataclass
class Patches:
    """The image patches of each row, one image after another.

    Attributes:
      pixels: uint8 [B, P, channels * patch²], the patches of a merge group next to each other
        (Qwen2-VL's order).
      position: int32 [B, P, 2], row and column of the patch in its image.
      picture: int32 [B, P], the number of the patch's image in its row: 1, 2, …; 0 is padding.
    """

    pixels: Array
    position: Array
    picture: Array


@struct.dataclass
class Context:
    """The compressor's input, `[V, T, (padding), U]`, with the chorus in the last K slots.

    Attributes:
      tokens: int32 [B, S].
      position: int32 [B, S, 3], M-RoPE positions (time, height, width) from true lengths.
      region: int32 [B, S], one of PAD, CONTEXT, CHORUS.
      patches: the image patches, or None in a text-only bucket.
    """

    tokens: Array
    position: Array
    region: Array
    patches: Patches | None = None


@struct.dataclass
class Target:
    """The target region `[Q, A]` of each row.

    Attributes:
      tokens: int32 [B, T].
      valid: bool [B, T], False on padding.
      answer_slot: int32 [B, A], the slots whose next token is part of an answer; the language
        model head runs on these alone.
      answer: int32 [B, A], that next token; -1 is padding.
    """

    tokens: Array
    valid: Array
    answer_slot: Array
    answer: Array


@struct.dataclass
class KV:
    """Keys (rotated) and values of every layer: [L, B, G, C, H] each."""

    keys: Array
    values: Array


@struct.dataclass
class Memory:
    """A compressed context: everything that retrieval and the decoder need.

    Attributes:
      kv: [L, B, G, S, H] keys and values of the context, chorus last.
      region: int32 [B, S].
      next_position: int32 [B], the M-RoPE position at which the target region starts.
      chorus: float32 [B, K, D], final hidden states of the chorus (after the final norm).
    """

    kv: KV
    region: Array
    next_position: Array
    chorus: Array

    @property
    def num_chorus(self) -> int:
        return self.chorus.shape[1]

    def truncate(self, k: int | jax.Array) -> Memory:
        """Masks all but the first k chorus tokens; shapes stay as they are.

        Args:
          k: int32 [] or [B].
        """
        k = jnp.broadcast_to(jnp.asarray(k), self.next_position.shape)
        slot = jnp.arange(self.region.shape[1]) - (self.region.shape[1] - self.num_chorus)
        region = jnp.where((slot[None] >= k[:, None]), PAD, self.region)
        return dataclasses.replace(
            self, region=region, next_position=self.next_position - self.num_chorus + k
        )

    def chorus_only(self, k: int | None = None, sinks: int = 0) -> Memory:
        """The compressed memory: keys and values of chorus slots alone, without the context's.

        Args:
          k: keep the first k chorus slots; None is all.
          sinks: also keep the first `sinks` slots of the context, as attention sinks (arXiv
            2309.17453).
        """
        k = self.num_chorus if k is None else k
        start = self.region.shape[1] - self.num_chorus
        slots = slice(start, start + k)
        if sinks:
            slots = np.r_[: min(sinks, start), slots]
        return Memory(
            kv=jax.tree.map(lambda x: x[:, :, :, slots], self.kv),
            region=self.region[:, slots],
            next_position=self.next_position - self.num_chorus + k,
            chorus=self.chorus[:, :k],
        )

    def take(self, rows: Any) -> Memory:
        """The rows with the given indices."""
        rows = np.asarray(rows)
        return Memory(
            kv=jax.tree.map(lambda x: x[:, rows], self.kv),
            region=self.region[rows],
            next_position=self.next_position[rows],
            chorus=self.chorus[rows],
        )


def join_memories(parts: Sequence[Memory]) -> Memory:
    """Concatenates memories of numpy arrays along their rows (axis 1 of keys and values)."""
    join = np.concatenate
    return Memory(
        kv=jax.tree.map(lambda *x: join(x, axis=1), *(part.kv for part in parts)),
        region=join([part.region for part in parts]),
        next_position=join([part.next_position for part in parts]),
        chorus=join([part.chorus for part in parts]),
    )


@struct.dataclass
class Cache:
    """The key/value cache of the target region during generation.

    Attributes:
      kv: [L, B, G, C, H].
      valid: bool [B, C], True where a slot holds a real token.
      length: int32 [], slots written so far.
      count: int32 [B], real tokens written so far.
    """

    kv: KV
    valid: Array
    length: jax.Array
    count: jax.Array


@struct.dataclass
class Batch:
    """One training batch: contexts in buckets of static shape, linked by row number.

    Rows are numbered consecutively over all buckets, in sorted order of the bucket names.

    Attributes:
      contexts: bucket name -> Context.
      targets: bucket name -> Target, aligned with the context's rows; buckets may have none.
      query_row: int32 [Q], the row of each retrieval query; -1 is padding.
      positive_hash: uint32 [Q, p, 2], content hashes of each query's positives; 0 is padding.
      candidate_row: int32 [M], row of each candidate (positives and hard negatives); -1 is padding.
      candidate_hash: uint32 [M, 2], its content hash.
    """

    contexts: dict[str, Context]
    targets: dict[str, Target]
    query_row: Array
    positive_hash: Array
    candidate_row: Array
    candidate_hash: Array
