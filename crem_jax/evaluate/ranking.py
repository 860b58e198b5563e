"""Ranking measures. A tie is a miss: a constant embedding scores 0, not 100."""

from __future__ import annotations

import numpy as np

from crem_jax.errors import CremError


def ranks(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """The pessimistic rank of each query's best positive; 0 is first.

    Args:
      scores: float [Q, M]. positive: bool [Q, M], at least one True per row.

    Returns:
      int [Q]: how many other candidates score at least as high as the best positive.

    Raises:
      CremError: a score is not finite, or a row has no positive.
    """
    if not np.isfinite(scores).all():
        raise CremError(f"{np.sum(~np.isfinite(scores))} scores are not finite")
    if not positive.any(axis=1).all():
        raise CremError(f"{np.sum(~positive.any(axis=1))} queries have no positive candidate")
    best = np.where(positive, scores, -np.inf).max(axis=1, keepdims=True)
    return np.sum(~positive & (scores >= best), axis=1)


def precision_at(scores: np.ndarray, positive: np.ndarray, k: int = 1) -> float:
    """Precision@k: the share of queries with a positive among the first k; arguments as `ranks`."""
    return float(np.mean(ranks(scores, positive) < k))
