"""Choosing the next token."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def next_token(
    logits: jax.Array, key: jax.Array, temperature: jax.Array, top_p: jax.Array
) -> jax.Array:
    """Greedy at temperature 0, else nucleus sampling.

    Args:
      logits: float32 [B, V]. temperature, top_p: float32 [].

    Returns:
      int32 [B].
    """
    greedy = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jax.lax.cond(
        temperature > 0, lambda: _nucleus(logits, key, temperature, top_p), lambda: greedy
    )


def _nucleus(logits, key, temperature, top_p) -> jax.Array:
    scaled = logits / jnp.maximum(temperature, 1e-6)
    ordered = jnp.sort(scaled, axis=-1, descending=True)
    share = jax.nn.softmax(ordered, axis=-1)
    # The nucleus ends at the last token before which less than top_p has been gathered; the best
    # token is always in it.
    inside = (jnp.cumsum(share, axis=-1) - share < top_p).at[..., 0].set(True)
    floor = jnp.min(jnp.where(inside, ordered, jnp.inf), axis=-1, keepdims=True)
    kept = jnp.where(scaled >= floor, scaled, -jnp.inf)
    return jax.random.categorical(key, kept, axis=-1).astype(jnp.int32)
