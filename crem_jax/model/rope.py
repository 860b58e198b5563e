"""Rotary position embeddings: M-RoPE for the decoder, 2-D for the vision tower."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from crem_jax.types import Array

Rotation = tuple[jax.Array, jax.Array]
"""Cosines and sines, float32 [B, T, 1, H] each, shared by all layers."""


def text_rotation(position: Array, dim: int, theta: float, section: Sequence[int]) -> Rotation:
    """The M-RoPE rotation of the decoder (Qwen2-VL, section 2.1).

    Args:
      position: int32 [B, T, 3], time, height and width. dim: H. theta: base of the frequencies.
      section: how many of the H/2 frequencies rotate with time, height and width.
    """
    axis = np.repeat(np.arange(3), section)
    return _turn(position[..., axis].astype(jnp.float32) * _frequencies(dim, theta))


def vision_rotation(position: Array, dim: int, theta: float) -> Rotation:
    """The 2-D rotation of the vision tower: half the frequencies by patch row, half by column.

    Args:
      position: int32 [B, P, 2], row and column. dim: H. theta: base of the frequencies.
    """
    angles = position[..., None].astype(jnp.float32) * _frequencies(dim // 2, theta)
    return _turn(angles.reshape(*position.shape[:-1], dim // 2))


def rotate(x: jax.Array, rotation: Rotation) -> jax.Array:
    """Applies a rotation to queries or keys, in float32.

    Args:
      x: [B, T, heads, H].

    Returns:
      [B, T, heads, H] in x's dtype.
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
