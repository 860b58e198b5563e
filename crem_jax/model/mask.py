"""The compression-aware attention mask (paper section 3.2), from small vectors of ids.

With two context slots V T, two chorus slots U and three target slots Q A A, rows attend to columns:

              z = 0                     z = 1
          V T U U Q A A             V T U U Q A A
      V   x . . . . . .         V   x . . . . . .
      T   x x . . . . .         T   x x . . . . .
      U   x x x . . . .         U   x x x . . . .
      U   x x x x . . .         U   x x x x . . .
      Q   x x x x x . .         Q   . . x x x . .
      A   x x x x x x .         A   . . x x x x .
      A   x x x x x x x         A   . . x x x x x

The target never looks back at the context when z = 1; the chorus always sees all of it. The upper
left of the drawing is `context_mask`, the lower left `memory_mask`, the lower right `target_mask`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from crem_jax.types import CHORUS, CONTEXT, PAD, Array

SEEN, UNSEEN, HIDDEN = 1, 0, -1
"""Ids of slots. Padding (UNSEEN) sees padding alone, so no row is blind; nothing sees HIDDEN."""


@struct.dataclass
class AttentionMask:
    """Who sees whom: a row sees a column iff their ids are equal and, if causal, it comes no later.

    Kernels read these vectors as segment ids; `visible` spells them out for the dense softmax.

    Attributes:
      rows: int32 [B, T], or [B, 1] where all rows are alike.
      columns: int32 [B, C].
      start: int32 [], the column that row 0 stands at; where causal.
      causal: row i sees column j only if j <= start + i.
    """

    rows: Array
    columns: Array
    start: jax.Array | int = 0
    causal: bool = struct.field(pytree_node=False, default=False)

    def visible(self, count: int) -> jax.Array:
        """bool [B, T or 1, C], of `count` = T rows."""
        same = self.rows[:, :, None] == self.columns[:, None, :]
        if not self.causal:
            return same
        row, column = self.start + jnp.arange(count), jnp.arange(self.columns.shape[1])
        return same & (column[None, :] <= row[:, None])


def context_mask(region: Array) -> AttentionMask:
    """Of the context on itself. region: int32 [B, S]."""
    ids = jnp.where(region == PAD, UNSEEN, SEEN)
    return AttentionMask(ids, ids, causal=True)


def memory_mask(region: Array, z: Array) -> AttentionMask:
    """Of the target on its memory. region: int32 [B, S]; z: bool [B], True where compressed."""
    seen = (region == CHORUS) | ((region == CONTEXT) & ~z[:, None])
    columns = jnp.where(seen, SEEN, HIDDEN)
    return AttentionMask(jnp.full((len(region), 1), SEEN), columns)


def target_mask(valid: Array, columns: Array, start: jax.Array | int = 0) -> AttentionMask:
    """Of the target on itself. valid: bool [B, T] rows; columns: bool [B, C], from `start` on."""
    return AttentionMask(valid.astype(jnp.int32), columns.astype(jnp.int32), start, causal=True)


def segment_mask(segment: Array) -> AttentionMask:
    """Of patches on their own segment (picture or window). segment: int32 [B, P]; 0 is padding."""
    return AttentionMask(segment, segment)
