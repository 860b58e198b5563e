"""Attention over several key/value segments under one softmax, dense or by a flash kernel.

The target region attends to the memory and to itself. Keeping the two as segments, instead of
concatenating keys and values, avoids copying the memory on every decoding step.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import cast

import jax
import jax.numpy as jnp

from crem_jax.model.kernels import cudnn, splash
from crem_jax.model.mask import AttentionMask
from crem_jax.types import Array

Mask = AttentionMask | jax.Array
"""The mask of a segment: ids, or any bool [B, T or 1, C] (not supported by splash attention)."""

Segment = tuple[Array, Array, Mask]
"""(keys [B, G, C, H], values [B, G, C, H], mask)."""


def implementation(name: str, dtype: jnp.dtype) -> str:
    """Resolves `ModelConfig.attention` for the devices of the current mesh, or the default device.

    "auto" is splash attention on TPU, cuDNN's flash attention on GPU (16-bit types only; float32
    uses the dense softmax) and the dense softmax elsewhere.

    Returns:
      "xla" (dense), "splash" or "cudnn".
    """
    if name != "auto":
        return name
    device = jax.sharding.get_abstract_mesh().abstract_device
    platform = jax.default_backend() if device is None else device.platform
    if platform == "gpu":
        return "xla" if jnp.dtype(dtype).itemsize > 2 else "cudnn"
    return "splash" if platform == "tpu" else "xla"


def attend(q: jax.Array, segments: Sequence[Segment], how: str = "xla") -> jax.Array:
    """Scaled dot-product attention, softmax in float32 over all segments together.

    Args:
      q: [B, N, T, H]; grouped queries share a key/value head, N = G * R.
      segments: keys, values and mask of each; only the last may be causal. The output of a row
        whose mask is empty is finite and meaningless.
      how: "xla", "splash" (`AttentionMask` only) or "cudnn", see `implementation`.

    Returns:
      [B, T, N, H] in q's dtype, as the output projection wants it.
    """
    if how == "splash":
        return splash(q, cast(Sequence[tuple[Array, Array, AttentionMask]], segments))
    rows = q.shape[2]
    masked = [(keys, values, as_mask(mask, rows)) for keys, values, mask in segments]
    return cudnn(q, masked) if how == "cudnn" else _softmax(q, masked)


def as_mask(mask: Mask, rows: int) -> jax.Array:
    """The mask as bool [B, T or 1, C], of T = `rows` rows."""
    return mask.visible(rows) if isinstance(mask, AttentionMask) else mask


def _softmax(q: jax.Array, segments: Sequence[tuple[Array, Array, jax.Array]]) -> jax.Array:
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
