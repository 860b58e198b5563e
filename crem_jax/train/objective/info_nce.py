"""InfoNCE over the global batch (paper section 3.3), in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from crem_jax.mesh import constrain
from crem_jax.train.objective.chunks import equal_parts, part
from crem_jax.types import Array

Metrics = dict[str, jax.Array]

CANDIDATES_AT_ONCE = 4096
"""Candidates scored at a time: the scores in memory are [Q, 4096], however large the batch."""


def positives(positive_hash: Array, candidate_hash: Array) -> jax.Array:
    """Which candidates are positives of which query, by content hash, duplicates included.

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
    positive_hash: Array,
    candidate_hash: Array,
    query_valid: Array,
    candidate_valid: Array,
    temperature: jax.Array | float,
    symmetric: bool = False,
    at_once: int = CANDIDATES_AT_ONCE,
) -> tuple[jax.Array, Metrics]:
    """InfoNCE over the global batch with several positives (paper equation 1).

    Each positive of a query competes with the query's negatives only: other positives and
    duplicates are excluded from its denominator. Candidates that are no query's positive are hard
    negatives.

    On a mesh every device scores its own queries, and gathers `at_once` candidates at a time.

    Args:
      queries: float32 [Q, D], candidates: float32 [M, D], L2-normalised.
      positive_hash: uint32 [Q, p, 2], candidate_hash: uint32 [M, 2], see `positives`.
      query_valid: bool [Q]. candidate_valid: bool [M].
      temperature: of the softmax.
      symmetric: average with the loss of retrieving queries from their positives.
      at_once: candidates scored at a time.

    Returns:
      The mean loss over valid queries, and {"retrieval_p1": share of queries whose best candidate
      is a positive}.
    """
    count = len(queries)
    parts = equal_parts(len(candidates), at_once, "data.candidates")
    queries, candidates = (constrain(x, "batch", None) for x in (queries, candidates))

    def block(j) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Scores [Q, m] of the j-th part of the candidates; who is wanted, who is not."""
        columns, hashes, valid = part((candidates, candidate_hash, candidate_valid), parts, j)
        columns = columns if parts == 1 else constrain(columns, None, None)
        scores = jnp.einsum("QD,MD->QM", queries, columns) / temperature
        positive = positives(positive_hash, hashes)
        allowed = query_valid[:, None] & valid[None, :]
        return scores, positive & allowed, ~positive & allowed

    def scan(body, start):
        if parts == 1:
            return body(start, 0)
        body = jax.checkpoint(body, prevent_cse=False)
        return jax.lax.scan(lambda at, j: (body(at, j), None), start, jnp.arange(parts))[0]

    def first(at, j):
        against, wanted, best, other, back, found = at
        scores, positive, negative = block(j)
        against = jnp.logaddexp(against, _logsumexp(scores, negative, 1))
        seen = jax.lax.stop_gradient(scores)
        best = jnp.maximum(best, jnp.max(jnp.where(positive, seen, -jnp.inf), axis=1))
        other = jnp.maximum(other, jnp.max(jnp.where(negative, seen, -jnp.inf), axis=1))
        if symmetric:
            each = _each(scores, positive, _logsumexp(scores, negative, 0)[None, :])
            of_column = jnp.sum(positive, axis=0)
            back += jnp.sum(jnp.sum(each, axis=0) / jnp.maximum(of_column, 1))
            found += jnp.sum(of_column > 0)
        return against, wanted + jnp.sum(positive, axis=1), best, other, back, found

    nothing, none = jnp.full(count, -jnp.inf), jnp.zeros((), jnp.int32)
    start = (jnp.full(count, -1e30), jnp.zeros(count, jnp.int32), nothing, nothing)
    against, wanted, best, other, back, found = scan(first, (*start, jnp.float32(0), none))

    def second(rows, j):
        scores, positive, _ = block(j)
        return rows + jnp.sum(_each(scores, positive, against[:, None]), axis=1)

    rows = scan(second, jnp.zeros(count)) / jnp.maximum(wanted, 1)
    loss = jnp.sum(rows) / jnp.maximum(jnp.sum(wanted > 0), 1)
    if symmetric:
        loss = (loss + back / jnp.maximum(found, 1)) / 2
    hits = jnp.sum((best > other) & query_valid) / jnp.maximum(jnp.sum(query_valid), 1)
    return loss, {"retrieval_p1": hits}


def _each(scores: jax.Array, positive: jax.Array, against: jax.Array) -> jax.Array:
    """-log(e^s+ / (e^s+ + Σ e^s-)) of each positive, 0 elsewhere."""
    return jnp.where(positive, jax.nn.softplus(against - scores), 0.0)


def _logsumexp(scores: jax.Array, chosen: jax.Array, axis: int) -> jax.Array:
    return jax.nn.logsumexp(jnp.where(chosen, scores, -1e30), axis=axis)
