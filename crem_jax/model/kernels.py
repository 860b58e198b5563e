"""Flash attention for the split sequence: splash attention on TPU, cuDNN's on GPU.

Neither materialises the scores [B, N, T, C]. The keys of the memory and of the target region are
concatenated, so that one causal kernel, whose diagonal starts after the memory, computes the whole
softmax; the ids of `AttentionMask` mask the memory. Lengths are padded to the kernel's tiles.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from crem_jax.mesh import by_rows_and_heads
from crem_jax.model.mask import HIDDEN, PADDING, AttentionMask
from crem_jax.types import Array

LANES = 128
LARGEST_BLOCK = 512


def splash(q: jax.Array, segments: Sequence[tuple[Array, Array, AttentionMask]]) -> jax.Array:
    """Splash attention, see `attention.attend`; interpreted off TPU, which is exact but slow."""
    batch, _, rows, dim = q.shape
    target = segments[-1][2]
    keys, values, columns = [], [], []
    for k, v, mask in segments:
        last = mask is target
        keys.append(_pad(k, 2))
        values.append(_pad(v, 2))
        columns.append(_pad(mask.columns, 1, fill=PADDING if last else HIDDEN))
    offset = sum(ids.shape[1] for ids in columns[:-1])
    q = _pad(q * dim**-0.5, 2)
    ids = _pad(jnp.broadcast_to(target.rows, (batch, rows)), 1, fill=PADDING)
    run = functools.partial(_splash, causal=target.causal, offset=offset, interpret=_interpreted())
    k, v = (jnp.concatenate(x, axis=-2) for x in (keys, values))
    out = by_rows_and_heads(run, q, k, v, ids, jnp.concatenate(columns, axis=1))
    return out[:, :, :rows].swapaxes(1, 2)


def _splash(q, k, v, rows, columns, *, causal: bool, offset: int, interpret: bool) -> jax.Array:
    """One device's shard: q [B, N, T, H], k and v [B, G, C, H], rows [B, T], columns [B, C]."""
    from jax.experimental.pallas.ops.tpu import splash_attention as lib  # slow to import

    shape = (q.shape[2], k.shape[2])
    mask = lib.CausalMask(shape, offset=offset) if causal else lib.FullMask(shape)
    bq, bkv = (_block(length) for length in shape)
    kernel = lib.make_splash_mha_single_device(
        lib.MultiHeadMask([mask] * q.shape[1]),
        block_sizes=lib.BlockSizes(
            block_q=bq,
            block_kv=bkv,
            block_kv_compute=bkv,
            block_q_dkv=bq,
            block_kv_dkv=bkv,
            block_kv_dkv_compute=bkv,
            block_q_dq=bq,
            block_kv_dq=bkv,
        ),
        interpret=interpret,
    )
    ids = lib.SegmentIds(rows, columns)
    return jax.vmap(kernel)(q, k, v, ids)


def cudnn(
    q: jax.Array,
    segments: Sequence[tuple[Array, Array, jax.Array]],
    implementation: Literal["xla", "cudnn"] = "cudnn",
) -> jax.Array:
    """cuDNN's flash attention, see `attention.attend`; 16-bit types only.

    Masks become a bias [B, 1, T, C] of the kernel.
    """
    rows = q.shape[2]
    # With a bias, the backward kernel supports even lengths only.
    k, v = (
        jnp.concatenate([_pad(x[i], 2, to=2) for x in segments], axis=2).swapaxes(1, 2)
        for i in (0, 1)
    )
    visible = [jnp.broadcast_to(x[2], (x[2].shape[0], rows, x[2].shape[2])) for x in segments]
    visible = [_pad(_pad(x, 2, to=2, fill=False), 1, to=2, fill=True) for x in visible]
    mask = jnp.concatenate(visible, axis=2)[:, None]
    q = _pad(q, 2, to=2).swapaxes(1, 2)
    out = jax.nn.dot_product_attention(q, k, v, mask=mask, implementation=implementation)
    return out[:, :rows]


def _pad(x: Array, *axes: int, to: int = LANES, fill=0) -> jax.Array:
    """Pads axes at their end to a multiple of `to`."""
    widths = [(0, -size % to if axis in axes else 0) for axis, size in enumerate(x.shape)]
    return jnp.pad(x, widths, constant_values=fill) if any(b for _, b in widths) else jnp.asarray(x)


def _block(length: int) -> int:
    """The largest block size, a multiple of LANES, that divides the length."""
    return max(b for b in range(LANES, LARGEST_BLOCK + 1, LANES) if length % b == 0)


def _interpreted() -> bool:
    device = jax.sharding.get_abstract_mesh().abstract_device
    return (jax.default_backend() if device is None else device.platform) != "tpu"
