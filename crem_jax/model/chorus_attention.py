"""Attention probabilities of the chorus tokens, recomputed from a compressed context.

The forward pass does not store the probabilities. A memory holds the keys of every layer, so only
the queries of the chorus are missing: its K rows alone pass through the layers again, with all
other keys and values read from the memory.
"""

from __future__ import annotations

import functools
from typing import cast

import jax
import jax.numpy as jnp

from crem_jax.config import ModelConfig
from crem_jax.model import lora
from crem_jax.model.attention import as_mask
from crem_jax.model.backbone import Block
from crem_jax.model.crem import Params
from crem_jax.model.layers import Dense, RMSNorm
from crem_jax.model.mask import context_mask
from crem_jax.model.rope import rotate, text_rotation
from crem_jax.types import KV, Array, Context, Memory


@functools.partial(jax.jit, static_argnames=("config",))
def chorus_attention(
    config: ModelConfig, params: Params, context: Context, memory: Memory
) -> jax.Array:
    """Attention probabilities of the chorus over its context and itself.

    Args:
      memory: the context's, from `crem.compress` (not `Memory.chorus_only`).

    Returns:
      float32 [L, B, N, K, S]; sums to 1 over S, and is 0 on padding.
    """
    params, cfg = lora.scaled(config, params), config.text
    dtype, slots = jnp.dtype(config.dtype), context.tokens.shape[1]
    start = slots - config.num_chorus
    x = jnp.take(params["backbone"]["embedding"], context.tokens[:, start:], axis=0)
    x = (x + params.get("compressor", {}).get("chorus_delta", 0.0)).astype(dtype)
    rotation = text_rotation(
        context.position[:, start:], cfg.head_dim, cfg.rope_theta, cfg.mrope_section
    )
    visible = as_mask(context_mask(context.region), slots)[:, start:]
    block = Block(cfg, dtype)

    def layer(x: jax.Array, inputs: tuple[Params, KV]) -> tuple[jax.Array, jax.Array]:
        params, kv = inputs
        scores = _scores(cfg, params, x, rotation, kv.keys)
        probabilities = jax.nn.softmax(jnp.where(visible[:, None], scores, -1e30), axis=-1)
        before = KV(kv.keys[:, :, :start], kv.values[:, :, :start])
        masks = visible[:, :, :start], visible[:, :, start:]
        x, _ = block.apply({"params": params}, x, before, None, rotation, *masks, None)
        return x, probabilities

    return jax.lax.scan(layer, x, (params["backbone"]["layers"], memory.kv))[1]


def _scores(cfg, params: Params, x: jax.Array, rotation, keys: Array) -> jax.Array:
    """Attention logits of one layer, float32 [B, N, K, S]."""
    y = RMSNorm(cfg.rms_norm_eps).apply({"params": params["attention_norm"]}, x)
    dense = Dense((cfg.num_heads, cfg.head_dim), ("embed", "heads", "head_dim"), dtype=x.dtype)
    q = rotate(cast(jax.Array, dense.apply({"params": params["q"]}, y)), rotation)
    keys = jnp.repeat(keys, cfg.num_heads // cfg.num_kv_heads, axis=1)
    q = q * cfg.head_dim**-0.5
    return jnp.einsum("BKNH,BNSH->BNKS", q, keys, preferred_element_type=jnp.float32)
