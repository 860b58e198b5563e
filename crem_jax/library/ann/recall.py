"""How many of the true nearest neighbours a search finds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


def true_neighbours(
    queries: np.ndarray,
    own: np.ndarray,
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    top: int,
) -> list[np.ndarray]:
    """Keys [≤ top] of the rows of greatest inner product with each query, itself left out.

    Args:
      queries: float32 [q, D], rows that are asked for others. own: their keys [q].
      batches: of (keys [n], vectors [n, D]): all rows, one batch in memory at a time.
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
    """The part of the true neighbours that were found; 1 where there are none."""
    there = sum(map(len, true))
    right = sum(len(set(a) & set(b)) for a, b in zip(found, true, strict=True))
    return right / there if there else 1.0
