"""Qwen2, the decoder of the Qwen-VL models: grouped-query attention, M-RoPE and SwiGLU layers."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from crem_jax.config import TextConfig
from crem_jax.mesh import constrain
from crem_jax.model.attention import Mask, Segment, as_mask, attend
from crem_jax.model.layers import Dense, RMSNorm, SwiGLU, partitioned
from crem_jax.model.rope import Rotation, rotate, text_rotation
from crem_jax.model.vision import scanned
from crem_jax.types import KV, Array


class Block(nn.Module):
    config: TextConfig
    dtype: jnp.dtype = jnp.float32
    attention: str = "xla"

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        memory: KV | None,
        buffer: KV | None,
        rotation: Rotation,
        memory_mask: Mask | None,
        self_mask: Mask,
        start: jax.Array | None,
    ) -> tuple[jax.Array, KV]:
        """One decoder layer.

        Args:
          x: [B, T, D].
          memory: further keys and values to attend to, [B, G, S, H], or None.
          buffer: a cache of keys and values, [B, G, C, H], into which the new ones are written
            from slot `start` on; None when x is the whole sequence.
          rotation: rotary cosines and sines of the T slots.
          memory_mask: the mask of the memory, [B, T or 1, S].
          self_mask: the mask of x's own slots, [B, T, T], or of the buffer, [B, T, C].
          start: int32 [].

        Returns:
          x [B, T, D], and x's keys and values (the updated buffer if one was given).
        """
        cfg = self.config
        x = constrain(x, "batch", "length", "embed")
        y = RMSNorm(cfg.rms_norm_eps, name="attention_norm")(x)

        def project(name: str, heads: int, axis: str) -> jax.Array:
            dense = Dense(
                (heads, cfg.head_dim), ("embed", axis, "head_dim"), dtype=self.dtype, name=name
            )
            return constrain(dense(y), "batch", "length", axis, "head_dim")

        q = rotate(project("q", cfg.num_heads, "heads"), rotation).swapaxes(1, 2)
        own = KV(
            keys=rotate(project("k", cfg.num_kv_heads, "kv_heads"), rotation).swapaxes(1, 2),
            values=project("v", cfg.num_kv_heads, "kv_heads").swapaxes(1, 2),
        )
        if buffer is not None:
            assert start is not None, "a buffer is written from a slot on"
            own = jax.tree.map(
                lambda b, new: jax.lax.dynamic_update_slice_in_dim(b, new, start, axis=2),
                buffer,
                own,
            )
        # A cache has more columns than rows, and no kernel gains anything on one row.
        how = self.attention if buffer is None else "xla"
        segments: list[Segment] = [(own.keys, own.values, self_mask)]
        if memory is not None:
            assert memory_mask is not None, "a memory comes with its mask"
            segments.insert(0, (memory.keys, memory.values, memory_mask))
        scale = 0.5 / cfg.num_layers
        x = x + Dense(
            (cfg.hidden_size,),
            ("heads", "head_dim", "embed"),
            contract=2,
            use_bias=False,
            scale=scale,
            dtype=self.dtype,
            name="o",
        )(attend(q, segments, how))
        x = constrain(x, "batch", "length", "embed")
        y = RMSNorm(cfg.rms_norm_eps, name="mlp_norm")(x)
        x = x + SwiGLU(cfg.intermediate_size, scale, self.dtype, name="mlp")(y)
        return x, own


class Backbone(nn.Module):
    """Token embedding, decoder layers, final norm and language-model head."""

    config: TextConfig
    remat: str = "none"
    unroll: int = 1
    dtype: jnp.dtype = jnp.float32
    attention: str = "xla"

    def setup(self):
        cfg = self.config
        std = cfg.hidden_size**-0.5  # Tied logits start at unit scale.
        init = partitioned(nn.initializers.normal(std), ("vocab", "embed"))
        self.embedding = self.param("embedding", init, (cfg.vocab_size, cfg.hidden_size))
        if not cfg.tie_embeddings:
            self.head = self.param("head", init, (cfg.vocab_size, cfg.hidden_size))
        # The layers' own axes: memory and buffer are stacked over layers, the rest is shared.
        in_axes = (0, 0, nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast)
        self.layers = scanned(Block, cfg.num_layers, self.remat, self.unroll, in_axes)(
            cfg, self.dtype, self.attention
        )
        self.norm = RMSNorm(cfg.rms_norm_eps)

    def embed(self, tokens: Array) -> jax.Array:
        """Token embeddings: int32 [B, T] -> [B, T, D]."""
        x = jnp.take(self.embedding, tokens, axis=0).astype(self.dtype)
        return constrain(x, "batch", "length", "embed")

    def __call__(
        self,
        x: jax.Array,
        position: Array,
        self_mask: Mask,
        memory: KV | None = None,
        memory_mask: Mask | None = None,
        buffer: KV | None = None,
        start: jax.Array | None = None,
    ) -> tuple[jax.Array, KV]:
        """Runs the layers and the final norm.

        Args:
          x: [B, T, D] embeddings. position: int32 [B, T, 3].
          self_mask: the mask of x's own slots, [B, T, T], or of a buffer of C slots, [B, T, C].
          memory: keys and values [L, B, G, S, H]. memory_mask: its mask, [B, T or 1, S].
          buffer: a cache of keys and values, [L, B, G, C, H], written from slot `start` on.

        Returns:
          Hidden states [B, T, D], and the keys and values [L, B, G, T or C, H].
        """
        cfg = self.config
        rotation = text_rotation(position, cfg.head_dim, cfg.rope_theta, cfg.mrope_section)
        if self.attention != "splash" or buffer is not None:  # one mask for all layers
            self_mask = as_mask(self_mask, x.shape[1])
            memory_mask = None if memory_mask is None else as_mask(memory_mask, x.shape[1])
        x, kv = self.layers(x, memory, buffer, rotation, memory_mask, self_mask, start)
        return self.norm(x), kv

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Next-token logits: hidden states […, D] -> float32 […, V]."""
        table = self.embedding if self.config.tie_embeddings else self.head
        return jnp.einsum(
            "...D,VD->...V", hidden, table.astype(hidden.dtype), preferred_element_type=jnp.float32
        )
