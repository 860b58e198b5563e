"""The compression-aware attention mask (paper section 3.2), as small vectors of ids.

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

With z = 1 the target does not attend to the context; the chorus always attends to all of it. The
upper left of the drawing is `context_mask`, the lower left `memory_mask`, the lower right
`target_mask`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from crem_jax.types import CHORUS, CONTEXT, PAD, Array

VISIBLE, PADDING, HIDDEN = 1, 0, -1
"""Ids of slots. Padding attends to padding, so no row's mask is empty; HIDDEN is masked for all."""


@struct.dataclass
class AttentionMask:
    """A row attends to a column if their ids are equal and, if causal, the column is not later.

    Flash kernels take the vectors as segment ids; `visible` expands them for the dense softmax.

    Attributes:
      rows: int32 [B, T], or [B, 1] if all rows have the same id.
      columns: int32 [B, C].
      start: int32 [], the column of row 0; used if causal.
      causal: row i attends to column j only if j <= start + i.
    """

    rows: Array
    columns: Array
    start: jax.Array | int = 0
    causal: bool = struct.field(pytree_node=False, default=False)

    def visible(self, count: int) -> jax.Array:
        """The mask as bool [B, T or 1, C], of T = `count` rows."""
        same = self.rows[:, :, None] == self.columns[:, None, :]
        if not self.causal:
            return same
        row, column = self.start + jnp.arange(count), jnp.arange(self.columns.shape[1])
        return same & (column[None, :] <= row[:, None])


def context_mask(region: Array) -> AttentionMask:
    """The causal mask of the context attending to itself.

    Args:
      region: int32 [B, S].
    """
    ids = jnp.where(region == PAD, PADDING, VISIBLE)
    return AttentionMask(ids, ids, causal=True)


def memory_mask(region: Array, z: Array) -> AttentionMask:
    """The mask of the target region attending to the memory.

    Args:
      region: int32 [B, S]. z: bool [B], True masks the context and leaves the chorus.
    """
    visible = (region == CHORUS) | ((region == CONTEXT) & ~z[:, None])
    columns = jnp.where(visible, VISIBLE, HIDDEN)
    return AttentionMask(jnp.full((len(region), 1), VISIBLE), columns)


def target_mask(valid: Array, columns: Array, start: jax.Array | int = 0) -> AttentionMask:
    """The causal mask of the target region attending to itself, or to a cache of C slots.

    Args:
      valid: bool [B, T], rows with real tokens. columns: bool [B, C], slots with real tokens.
      start: int32 [], the column of row 0.
    """
    return AttentionMask(valid.astype(jnp.int32), columns.astype(jnp.int32), start, causal=True)


def segment_mask(segment: Array) -> AttentionMask:
    """The mask of patches attending to their own segment, an image or a window of it.

    Args:
      segment: int32 [B, P]; 0 is padding.
    """
    return AttentionMask(segment, segment)
