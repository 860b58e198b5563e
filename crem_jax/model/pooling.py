"""Retrieval embeddings from chorus states: the L2-normalised mean of the first k states.

The chorus is causal, so the first k of K states equal those of a model with k chorus tokens.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from crem_jax.types import Array

_SMALLEST_NORM = 1e-12


def pool(states: np.ndarray, k: int | None = None, dim: int | None = None) -> np.ndarray:
    """Embeddings from chorus states as numpy arrays.

    Args:
      states: float32 [N, K, D]. k: None is all K.
      dim: keep the first `dim` components, before normalisation; None is all D.

    Returns:
      float32 [N, D or dim], L2-normalised.
    """
    return normalise(states[:, :k, :dim].mean(axis=1))


def normalise(vectors: np.ndarray) -> np.ndarray:
    """L2-normalises vectors [..., D]; zero vectors stay zero."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(norms, _SMALLEST_NORM)


def pool_traced(
    states: Array, k: int | jax.Array | None = None, dim: int | jax.Array | None = None
) -> jax.Array:
    """`pool` for use under `jax.jit`, where k and dim may be traced.

    Args:
      states: float32 [B, K, D]. k: None is all K.
      dim: components from `dim` on are set to 0 before normalisation; None keeps all D.

    Returns:
      float32 [B, D].
    """
    count, width = states.shape[1:]
    weight = (jnp.arange(count) < (count if k is None else k)).astype(jnp.float32)
    mean = jnp.einsum("BKD,K->BD", states, weight / jnp.sum(weight))
    if dim is not None:
        mean = jnp.where(jnp.arange(width) < dim, mean, 0.0)
    return mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), _SMALLEST_NORM)
