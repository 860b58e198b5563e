"""The two losses of CREM (paper section 3.3), pure functions in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Metrics = dict[str, jax.Array]


def positives(positive_hash: jax.Array, candidate_hash: jax.Array) -> jax.Array:
    """Which candidates answer which query, by content: duplicates of a positive are positives too.

    Args:
      positive_hash: uint32 [Q, p, 2]; 0 is padding. candidate_hash: uint32 [M, 2].

    Returns:
      bool [Q, M].
    """
    same = positive_hash[:, :, None, :] == candidate_hash[None, None, :, :]
    real = jnp.any(positive_hash != 0, axis=-1)[:, :, None]
    return jnp.any(jnp.all(same, axis=-1) & real, axis=1)


def info_nce(
    queries: jax.Array,
    candidates: jax.Array,
    positive: jax.Array,
    query_valid: jax.Array,
    candidate_valid: jax.Array,
    temperature: jax.Array | float,
    symmetric: bool = False,
) -> tuple[jax.Array, Metrics]:
    """InfoNCE over the global batch with several positives (paper equation 1).

    Each positive of a query competes with the query's negatives only: other positives and
    duplicates are left out of its denominator. Candidates that no query wants are hard negatives.

    Args:
      queries: float32 [Q, D], candidates: float32 [M, D], L2-normalised.
      positive: bool [Q, M]. query_valid: bool [Q]. candidate_valid: bool [M].
      temperature: of the softmax.
      symmetric: also let each positive candidate find its queries, weighted alike.

    Returns:
      The mean loss over valid queries, and {"retrieval_p1": share of queries whose best candidate
      is a positive}.
    """
    scores = jnp.einsum("QD,MD->QM", queries, candidates) / temperature
    allowed = query_valid[:, None] & candidate_valid[None, :]
    loss = _ranking_loss(scores, positive & allowed, ~positive & allowed)
    if symmetric:
        loss = (loss + _ranking_loss(scores.T, (positive & allowed).T, (~positive & allowed).T)) / 2
    seen = jnp.where(allowed, scores, -jnp.inf)
    best = jnp.max(jnp.where(positive, seen, -jnp.inf), axis=1)
    other = jnp.max(jnp.where(positive, -jnp.inf, seen), axis=1)
    hits = jnp.sum((best > other) & query_valid) / jnp.maximum(jnp.sum(query_valid), 1)
    return loss, {"retrieval_p1": hits}


def _ranking_loss(scores: jax.Array, positive: jax.Array, negative: jax.Array) -> jax.Array:
    """Mean over rows of the mean over positives of -log(e^s+ / (e^s+ + Σ e^s-))."""
    against = jax.nn.logsumexp(jnp.where(negative, scores, -1e30), axis=1, keepdims=True)
    each = jnp.where(positive, jax.nn.softplus(against - scores), 0.0)
    count = jnp.sum(positive, axis=1)
    rows = jnp.sum(each, axis=1) / jnp.maximum(count, 1)
    return jnp.sum(rows) / jnp.maximum(jnp.sum(count > 0), 1)


def language_modelling(logits: jax.Array, answer: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Negative log-likelihood of the answer tokens (paper equation 2).

    Args:
      logits: float32 [B, A, V]. answer: int32 [B, A], -1 is padding.

    Returns:
      Loss [B, A] (0 on padding) and whether the best token is the right one, bool [B, A].
    """
    picked = jnp.take_along_axis(logits, jnp.maximum(answer, 0)[..., None], axis=-1)[..., 0]
    loss = jax.nn.logsumexp(logits, axis=-1) - picked
    right = picked >= jnp.max(logits, axis=-1)
    return jnp.where(answer >= 0, loss, 0.0), right & (answer >= 0)
