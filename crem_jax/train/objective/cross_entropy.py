"""Next-token cross-entropy (paper equation 2) in float32, over all logits or in chunks.

The logits of 1,024 answer tokens over Qwen2-VL's 152k rows are 0.6 GB, and their gradient as much
again. `chunked` computes them for a part of the vocabulary at a time, forward and backward.
"""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from crem_jax.mesh import constrain
from crem_jax.train.objective.chunks import equal_parts, part
from crem_jax.types import Array


@flax.struct.dataclass
class Tokens:
    """Losses of answer tokens; 0 or False on padding.

    Attributes:
      loss: float32 [B, A], negative log-likelihood.
      log_z: float32 [B, A], log of the softmax denominator, which the z-loss keeps near 0.
      right: bool [B, A], whether the most likely token is the answer.
    """

    loss: jax.Array
    log_z: jax.Array
    right: jax.Array


def plain(logits: jax.Array, answer: Array) -> Tokens:
    """Losses from logits in memory.

    Args:
      logits: float32 [B, A, V]. answer: int32 [B, A], -1 is padding.
    """
    picked = jnp.take_along_axis(logits, jnp.maximum(answer, 0)[..., None], axis=-1)[..., 0]
    log_z = jax.nn.logsumexp(logits, axis=-1)
    right = picked >= jnp.max(logits, axis=-1)
    return _on_answers(answer, log_z - picked, log_z, right)


def chunked(hidden: jax.Array, head: jax.Array, answer: Array, rows: int) -> Tokens:
    """`plain` of the logits hidden · headᵀ, which are never in memory as a whole.

    Args:
      hidden: [B, A, D]. head: [V, D]. answer: int32 [B, A], -1 is padding.
      rows: maximum number of vocabulary rows at a time.

    Raises:
      CremError: V has no equal parts near that size.
    """
    parts = equal_parts(head.shape[0], rows, "the vocabulary")
    return _on_answers(answer, *_chunked(hidden, head, answer, parts))


def _on_answers(answer, loss, log_z, right) -> Tokens:
    real = answer >= 0
    return Tokens(jnp.where(real, loss, 0.0), jnp.where(real, log_z, 0.0), right & real)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _chunked(hidden, head, answer, parts):
    return _forward(hidden, head, answer, parts)[0]


def _forward(hidden, head, answer, parts):
    def body(carry, j):
        top, total, picked = carry
        logits, is_answer = _logits(hidden, head, answer, parts, j)
        higher = jnp.maximum(top, jnp.max(logits, axis=-1))
        total *= jnp.exp(top - higher)
        total += jnp.sum(jnp.exp(logits - higher[..., None]), axis=-1)
        picked += jnp.sum(jnp.where(is_answer, logits, 0.0), axis=-1)
        return (higher, total, picked), None

    zero = jnp.zeros(answer.shape, jnp.float32)
    start = (jnp.full(answer.shape, -jnp.inf), zero, zero)
    (top, total, picked), _ = jax.lax.scan(body, start, jnp.arange(parts))
    log_z = top + jnp.log(total)
    return (log_z - picked, log_z, picked >= top), (hidden, head, answer, log_z)


def _backward(parts, saved, cotangents):
    hidden, head, answer, log_z = saved
    by_loss, by_log_z, _ = cotangents
    by_softmax = (by_loss + by_log_z)[..., None]

    def body(carry, j):
        by_hidden, by_head = carry
        logits, is_answer = _logits(hidden, head, answer, parts, j)
        g = by_softmax * jnp.exp(logits - log_z[..., None])
        g = (g - jnp.where(is_answer, by_loss[..., None], 0.0)).astype(hidden.dtype)
        rows = part(head, parts, j).astype(hidden.dtype)
        by_hidden += jnp.einsum("BAV,VD->BAD", g, rows, preferred_element_type=jnp.float32)
        here = jnp.einsum("BAV,BAD->VD", g, hidden, preferred_element_type=jnp.float32)
        here = constrain(here.astype(head.dtype), "vocab", "embed")
        by_head = jax.lax.dynamic_update_index_in_dim(by_head, here, j, 1)
        return (by_hidden, constrain(by_head, "vocab", None, "embed")), None

    size, width = head.shape
    start = (
        jnp.zeros(hidden.shape, jnp.float32),
        jnp.zeros((size // parts, parts, width), head.dtype),
    )
    (by_hidden, by_head), _ = jax.lax.scan(body, start, jnp.arange(parts))
    no_gradient = np.zeros(answer.shape, jax.dtypes.float0)
    return by_hidden.astype(hidden.dtype), by_head.reshape(head.shape), no_gradient


_chunked.defvjp(_forward, _backward)


def _logits(hidden, head, answer, parts, j) -> tuple[jax.Array, jax.Array]:
    """float32 [B, A, v] logits of rows j, j + parts, …, and bool: where a row is the answer."""
    rows = part(head, parts, j).astype(hidden.dtype)
    logits = jnp.einsum("BAD,VD->BAV", hidden, rows, preferred_element_type=jnp.float32)
    row = jnp.arange(rows.shape[0]) * parts + j
    return constrain(logits, "batch", None, "vocab"), row == answer[..., None]
