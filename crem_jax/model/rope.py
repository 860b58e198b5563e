"""Rotary position embeddings: M-RoPE for the decoder, 2-D for the vision tower."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def text_angles(position: jax.Array, dim: int, theta: float, section: Sequence[int]) -> jax.Array:
    """M-RoPE angles (Qwen2-VL section 2.1). position: int32 [B, T, 3] -> float32 [B, T, H/2].

    The H/2 frequencies are split into `section`; the parts turn with time, height and width.
    """
    frequency = _frequencies(dim, theta)
    axis = jnp.repeat(jnp.arange(3), jnp.asarray(section), total_repeat_length=dim // 2)
    return jnp.take(position, axis, axis=-1).astype(jnp.float32) * frequency


def vision_angles(position: jax.Array, dim: int, theta: float) -> jax.Array:
    """Half the frequencies turn with the patch row, half with its column.

    position: int32 [B, P, 2] -> float32 [B, P, H/2].
    """
    angles = position[..., None].astype(jnp.float32) * _frequencies(dim // 2, theta)
    return angles.reshape(*position.shape[:-1], dim // 2)


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Rotates the two halves of the last axis against each other, in float32.

    x: [B, T, heads, H], angles: [B, T, H/2] -> [B, T, heads, H] in x's dtype.
    """
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def _frequencies(dim: int, theta: float) -> jax.Array:
    return 1.0 / theta ** (jnp.arange(0, dim, 2, dtype=jnp.float32) / dim)
