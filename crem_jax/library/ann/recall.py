"""Recall of a search against the true nearest neighbours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


def true_neighbours(
    queries: np.ndarray,
    own: np.ndarray,
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    top: int,
) -> list[np.ndarray]:
    """The true nearest neighbours of some rows by inner product, the rows themselves left out.

    Args:
      queries: float32 [q, D], vectors of rows. own: int64 [q], their keys.
      batches: (keys [n], vectors [n, D]) of all rows, one batch in memory at a time.
      top: neighbours of each query.

    Returns:
      q arrays of at most `top` keys, best first.
    """
    scores, keys = np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), own.dtype)
    for some, vectors in batches:
        near = queries @ vectors.astype(np.float32).T
        near[own[:, None] == some] = -np.inf
        scores = np.concatenate([scores, near], axis=1)
        keys = np.concatenate([keys, np.broadcast_to(some, near.shape)], axis=1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
        scores, keys = (np.take_along_axis(x, best, axis=1) for x in (scores, keys))
    return [row[score > -np.inf] for row, score in zip(keys, scores, strict=True)]


def share_found(found: Sequence[Iterable], true: Sequence[np.ndarray]) -> float:
    """Recall: the share of the true neighbours that were found; 1 if there are none."""
    there = sum(map(len, true))
    right = sum(len(set(a) & set(b)) for a, b in zip(found, true, strict=True))
    return right / there if there else 1.0
