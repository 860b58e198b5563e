"""The compressor: turns a context of images and text, closed by the chorus, into a Memory."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from crem_jax.model.backbone import Backbone
from crem_jax.model.mask import context_mask
from crem_jax.model.vision import VisionTower
from crem_jax.types import Array, Context, Memory


class Compressor(nn.Module):
    """Vision tower and decoder stack over `[V, T, U]` (paper section 3.1).

    Attributes:
      vision, backbone: modules shared with the decoder.
      num_chorus: K; 0 for a plain backbone, whose memory serves native generation only.
      image_token_id: the placeholder token whose embeddings are replaced by the vision tokens.
    """

    vision: VisionTower
    backbone: Backbone
    num_chorus: int
    image_token_id: int

    def __call__(self, context: Context, vision: jax.Array | None = None) -> Memory:
        """Compresses a context.

        Args:
          vision: precomputed output of the vision tower, [B, P / merge², D]; None computes it.
        """
        x = self.backbone.embed(context.tokens)
        if context.patches is not None:
            vision = self.vision(context.patches) if vision is None else vision
            x = self._insert(x, context.tokens, vision)
        slots = context.tokens.shape[1]
        if self.has_variable("params", "chorus_delta"):
            delta: jax.Array = self.get_variable("params", "chorus_delta")
            x = x.at[:, slots - self.num_chorus :].add(delta.astype(x.dtype))
        hidden, kv = self.backbone(x, context.position, context_mask(context.region))
        return Memory(
            kv=kv,
            region=context.region,
            next_position=jnp.max(context.position, axis=(1, 2)) + 1,
            chorus=hidden[:, slots - self.num_chorus :].astype(jnp.float32),
        )

    def _insert(self, x: jax.Array, tokens: Array, vision: Array) -> jax.Array:
        """Replaces each row's n-th image token by its n-th vision token."""
        is_image = tokens == self.image_token_id
        nth = jnp.clip(jnp.cumsum(is_image, axis=1) - 1, 0, vision.shape[1] - 1)
        return jnp.where(is_image[..., None], jnp.take_along_axis(vision, nth[..., None], 1), x)
