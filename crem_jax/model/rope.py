"""Rotary position embeddings: M-RoPE for the decoder, 2-D for the vision tower."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from crem_jax.types import Array

Rotation = tuple[jax.Array, jax.Array]
"""Cosines and sines, float32 [B, T, 1, H] each: computed once, used by every layer."""


def text_rotation(position: Array, dim: int, theta: float, section: Sequence[int]) -> Rotation:
    """M-RoPE (Qwen2-VL section 2.1). position: int32 [B, T, 3].

    The H/2 frequencies are split into `section`; the parts turn with time, height and width.
    """
    axis = np.repeat(np.arange(3), section)
    return _turn(position[..., axis].astype(jnp.float32) * _frequencies(dim, theta))


def vision_rotation(position: Array, dim: int, theta: float) -> Rotation:
    """Half the frequencies turn with the patch row, half with its column.

    position: int32 [B, P, 2].
    """
    angles = position[..., None].astype(jnp.float32) * _frequencies(dim // 2, theta)
    return _turn(angles.reshape(*position.shape[:-1], dim // 2))


def rotate(x: jax.Array, rotation: Rotation) -> jax.Array:
    """Rotates the two halves of the last axis against each other, in float32.

    x: [B, T, heads, H] -> [B, T, heads, H] in x's dtype.
    """
    cos, sin = rotation
    dtype, half = x.dtype, x.shape[-1] // 2
    x = x.astype(jnp.float32)
    # The halves are swapped by a matrix product (exact: its entries are 0, 1, -1), because slices
    # and concatenations become scalar loops on CPU, in the backward pass too.
    swap = np.kron(np.array([[0, 1], [-1, 0]], np.float32), np.eye(half, dtype=np.float32))
    swapped = jnp.einsum("...H,HJ->...J", x, swap, precision=jax.lax.Precision.HIGHEST)
    return (x * cos + swapped * sin).astype(dtype)


def _turn(angles: Array) -> Rotation:
    angles = jnp.concatenate([angles, angles], axis=-1)
    return jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]


def _frequencies(dim: int, theta: float) -> jax.Array:
    return 1.0 / theta ** (jnp.arange(0, dim, 2, dtype=jnp.float32) / dim)
