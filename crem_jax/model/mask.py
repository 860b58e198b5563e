"""The compression-aware attention mask (paper section 3.2), from two small vectors.

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

The target never looks back at the context when z = 1; the chorus always sees all of it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from crem_jax.types import CONTEXT, PAD, TARGET


def compression_mask(
    q_index: jax.Array,
    q_region: jax.Array,
    k_index: jax.Array,
    k_region: jax.Array,
    z: jax.Array,
) -> jax.Array:
    """M[i, j] = 0 if z and i is TARGET and j is CONTEXT, else [j <= i]; padding is never seen.

    Args:
      q_index: int32 [B, T] or [T], order of the query slots.
      q_region: int32 [B, T], region of each query slot.
      k_index: int32 [B, C] or [C]. k_region: int32 [B, C].
      z: bool [B], True where the sample is compressed.

    Returns:
      bool [B, T, C], True where the query may look.
    """
    causal = jnp.atleast_2d(k_index)[:, None, :] <= jnp.atleast_2d(q_index)[:, :, None]
    real = k_region[:, None, :] != PAD
    hidden = (q_region == TARGET)[:, :, None] & (k_region == CONTEXT)[:, None, :]
    return causal & real & ~(z[:, None, None] & hidden)


def picture_mask(segment: jax.Array) -> jax.Array:
    """Patches attend within their own segment. segment: int32 [B, P] -> bool [B, P, P]."""
    return segment[:, :, None] == segment[:, None, :]
