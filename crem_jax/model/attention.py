"""Attention over several key/value segments under one softmax.

The target region attends to the memory and to itself. Keeping the two apart (instead of
concatenating keys and values) leaves the memory where it is on every decoding step.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

Segment = tuple[jax.Array, jax.Array, jax.Array]
"""(keys [B, C, G, H], values [B, C, G, H], visible bool [B, T or 1, C])."""


def attend(q: jax.Array, segments: Sequence[Segment]) -> jax.Array:
    """Scaled dot-product attention, softmax in float32 over all segments together.

    Args:
      q: [B, T, N, H]; grouped queries share a key/value head, N = G * R.
      segments: keys, values and masks. A row that sees nothing yields a finite average.

    Returns:
      [B, T, N, H] in q's dtype.
    """
    batch, rows, heads, dim = q.shape
    groups = segments[0][0].shape[2]
    q = q.reshape(batch, rows, groups, heads // groups, dim) * dim**-0.5
    scores = []
    for keys, _, visible in segments:
        score = jnp.einsum("BTGRH,BCGH->BGRTC", q, keys, preferred_element_type=jnp.float32)
        scores.append(jnp.where(visible[:, None, None], score, -1e30))
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1).astype(q.dtype)
    out = jnp.zeros((), q.dtype)
    start = 0
    for _, values, _ in segments:
        stop = start + values.shape[1]
        out += jnp.einsum("BGRTC,BCGH->BTGRH", weights[..., start:stop], values)
        start = stop
    return out.reshape(batch, rows, heads, dim)
