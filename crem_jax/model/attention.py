"""Attention over several key/value segments under one softmax.

The target region attends to the memory and to itself. Keeping the two apart (instead of
concatenating keys and values) leaves the memory where it is on every decoding step.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

Segment = tuple[jax.Array, jax.Array, jax.Array]
"""(keys [B, G, C, H], values [B, G, C, H], visible bool [B, T or 1, C])."""


def attend(q: jax.Array, segments: Sequence[Segment]) -> jax.Array:
    """Scaled dot-product attention, softmax in float32 over all segments together.

    Args:
      q: [B, N, T, H]; grouped queries share a key/value head, N = G * R.
      segments: keys, values and masks. A row that sees nothing yields a finite average.

    Returns:
      [B, T, N, H] in q's dtype, as the output projection wants it.
    """
    batch, heads, rows, dim = q.shape
    groups = segments[0][0].shape[1]
    repeats = heads // groups
    q = (q * dim**-0.5).reshape(batch, groups, repeats * rows, dim)
    scores = []
    for keys, _, visible in segments:
        score = jnp.einsum("BGTH,BGCH->BGTC", q, keys, preferred_element_type=jnp.float32)
        score = score.reshape(batch, groups, repeats, rows, -1)
        scores.append(jnp.where(visible[:, None, None], score, -1e30))
    top = functools.reduce(jnp.maximum, (jnp.max(s, axis=-1, keepdims=True) for s in scores))
    top = jax.lax.stop_gradient(top)
    total = out = jnp.zeros((), jnp.float32)
    for score, (_, values, _) in zip(scores, segments, strict=True):
        weights = jnp.exp(score - top)
        total += jnp.sum(weights, axis=-1, keepdims=True)
        weights = weights.reshape(batch, groups, repeats * rows, -1).astype(values.dtype)
        part = jnp.einsum("BGTC,BGCH->BGTH", weights, values, preferred_element_type=jnp.float32)
        out += part.reshape(batch, groups, repeats, rows, dim)
    out = (out / total).transpose(0, 3, 1, 2, 4)
    return out.reshape(batch, rows, heads, dim).astype(q.dtype)
