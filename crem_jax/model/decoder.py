"""The decoder: the target region reads a memory, all of it or only its chorus."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from crem_jax.model.backbone import Backbone
from crem_jax.model.mask import memory_mask, target_mask
from crem_jax.types import KV, Array, Cache, Memory, Target


class Decoder(nn.Module):
    """The shared decoder stack over a target region `[Q, A]` (paper section 3.2)."""

    backbone: Backbone

    def __call__(
        self, memory: Memory, target: Target, z: jax.Array, cache: Cache | None = None
    ) -> tuple[jax.Array, Cache | None]:
        """Hidden states of the target region.

        Args:
          memory: the context's, of B rows; after `Memory.chorus_only` z has no effect.
          target: [B, T]; with a cache, the tokens that follow the cached ones.
          z: bool [B], True masks the context, so that only the chorus is attended to.
          cache: keys and values of the target region so far, with at least T free slots.

        Returns:
          [B, T, D], and the updated cache (None if none was given).
        """
        batch, width = target.tokens.shape
        start = jnp.zeros((), jnp.int32) if cache is None else cache.length
        count = jnp.zeros((batch,), jnp.int32) if cache is None else cache.count
        real = target.valid if cache is None else _write(cache.valid, target.valid, start)
        nth = count[:, None] + jnp.cumsum(target.valid, axis=1) - 1
        position = memory.next_position[:, None] + jnp.maximum(nth, 0)
        hidden, kv = self.backbone(
            self.backbone.embed(target.tokens),
            jnp.repeat(position[..., None], 3, axis=-1),
            target_mask(target.valid, real, start),
            memory.kv,
            memory_mask(memory.region, z),
            None if cache is None else cache.kv,
            start,
        )
        if cache is None:
            return hidden, None
        return hidden, Cache(
            kv=kv,
            valid=real,
            length=start + width,
            count=count + jnp.sum(target.valid, axis=1, dtype=jnp.int32),
        )


def empty_cache(memory: Memory, slots: int) -> Cache:
    """An empty cache of `slots` slots, with the batch size and dtype of `memory`."""
    layers, batch, groups, _, dim = memory.kv.keys.shape
    zeros = jnp.zeros((layers, batch, groups, slots, dim), memory.kv.keys.dtype)
    return Cache(
        kv=KV(zeros, zeros),
        valid=jnp.zeros((batch, slots), bool),
        length=jnp.zeros((), jnp.int32),
        count=jnp.zeros((batch,), jnp.int32),
    )


def _write(valid: Array, new: Array, start: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(valid, new, start, axis=1)
