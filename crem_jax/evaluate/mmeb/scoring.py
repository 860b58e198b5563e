"""Ranks each row's target among the row's candidates, and computes measures from the ranks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from crem_jax.errors import CremError
from crem_jax.evaluate.ranking import ranks

CUTS = (1, 5, 10)
_QUERIES = 256  # whose scores are held in memory
_CANDIDATES = 1 << 14  # that are held in float64


@dataclasses.dataclass(frozen=True, eq=False)
class Ranked:
    """The ranking of each of a data set's N queries.

    Attributes:
      rank: int [N], number of other candidates that score at least as high as the target.
      ties: int [N], number of those that score exactly as high.
      distinct: int [N], number of distinct candidates, the target included.
      best: N arrays of item indices, best first, a target after those that tie with it.
    """

    rank: np.ndarray
    ties: np.ndarray
    distinct: np.ndarray
    best: list[np.ndarray]


def rank(
    vectors: np.ndarray,
    queries: np.ndarray,
    candidates: Sequence[np.ndarray],
    places: Sequence[str] = (),
) -> Ranked:
    """Ranks each row's target, its first candidate, by cosine similarity in float64.

    A repeated candidate counts repeatedly, except for the target. Different items with equal
    embeddings tie, and a tie is a miss: constant embeddings score 0.

    Args:
      vectors: float32 [M, D], L2-normalised embeddings of the items. queries: int [N], indices.
      candidates: N arrays of item indices. places: locations of the items, for errors.

    Raises:
      CremError: an embedding is not finite.
    """
    if not (finite := np.isfinite(vectors).all(axis=1)).all():
        bad = int(np.argmin(finite))
        name = places[bad] if len(places) else f"item {bad}"
        raise CremError(f"{name}: the embedding is not finite")
    used = np.unique(np.concatenate(candidates))
    alike = np.zeros(len(vectors), np.int64)  # item -> column of scores, shared by equal vectors
    alike[used], columns = _equal(vectors[used])
    rank, ties, distinct = (np.zeros(len(queries), np.int64) for _ in range(3))
    out = Ranked(rank, ties, distinct, [])
    for first in range(0, len(queries), _QUERIES):
        rows = range(first, min(first + _QUERIES, len(queries)))
        scores = _products(vectors[queries[rows]], vectors[used[columns]])
        for own, i in zip(scores, rows, strict=True):
            row = candidates[i]
            score, target = own[alike[row]], row == row[0]
            out.rank[i] = ranks(score[None], target[None])[0]
            out.ties[i] = np.sum(~target & (score == score[0]))
            out.distinct[i] = len(np.unique(row))
            out.best.append(row[np.lexsort((target, -score))[: max(CUTS)]])
    return out


def measures(rank: np.ndarray) -> dict[str, float]:
    """hit, ndcg, precision, recall, f1, map and mrr at 1, 5 and 10, with one target per query.

    Args:
      rank: int [N], 0 is first.
    """
    discount, reciprocal = 1 / np.log2(rank + 2), 1 / (rank + 1)
    gains = {
        "hit": lambda cut: 1.0,
        "ndcg_linear": lambda cut: discount,
        "ndcg_exponential": lambda cut: discount,
        "precision": lambda cut: 1 / cut,
        "recall": lambda cut: 1.0,
        "f1": lambda cut: 2 / (cut + 1),
        "map": lambda cut: reciprocal,
        "mrr": lambda cut: reciprocal,
    }
    return {
        f"{name}@{cut}": float(np.mean((rank < cut) * gain(cut)))
        for name, gain in gains.items()
        for cut in CUTS
    }


def _equal(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(column of each vector, the first vector of each column); equal vectors share a column."""
    seen: dict[bytes, int] = {}
    first: list[int] = []
    column = np.zeros(len(vectors), np.int64)
    for i, vector in enumerate(vectors + 0.0):  # -0.0 is 0.0
        column[i] = seen.setdefault(vector.tobytes(), len(seen))
        if column[i] == len(first):
            first.append(i)
    return column, np.asarray(first, np.int64)


def _products(queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """float64 [n, m]."""
    queries = queries.astype(np.float64)
    spans = range(0, len(candidates), _CANDIDATES)
    parts = [queries @ candidates[i : i + _CANDIDATES].astype(np.float64).T for i in spans]
    return np.concatenate(parts, axis=1)
