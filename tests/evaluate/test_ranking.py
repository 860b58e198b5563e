"""Ranking measures give the benefit of no doubt."""

from __future__ import annotations

import numpy as np
import pytest

from crem_jax.evaluate.ranking import precision_at, ranks


def test_a_rank_counts_the_better_candidates():
    scores = np.array([[0.9, 0.1, 0.5, 0.3], [0.9, 0.1, 0.5, 0.3]])
    positive = np.array([[False, False, True, False], [True, False, False, True]])
    assert ranks(scores, positive).tolist() == [1, 0]


def test_a_tie_is_a_miss():
    scores, positive = np.array([[0.5, 0.5, 0.1]]), np.array([[True, False, False]])
    assert ranks(scores, positive).tolist() == [1]
    assert precision_at(scores, positive) == 0.0
    assert precision_at(scores, positive, 2) == 1.0


def test_a_tie_between_positives_is_no_miss():
    assert ranks(np.array([[0.5, 0.5]]), np.array([[True, True]])).tolist() == [0]


def test_constant_scores_give_zero():
    assert precision_at(np.ones((7, 7)), np.eye(7, dtype=bool), 6) == 0.0


def test_random_scores_equal_a_sort(rng):
    scores = rng.standard_normal((20, 30))
    positive = np.zeros((20, 30), bool)
    positive[np.arange(20), rng.integers(0, 30, 20)] = True
    order = np.argsort(-scores, axis=1)
    expected = [int(np.flatnonzero(positive[i, order[i]])[0]) for i in range(20)]
    assert ranks(scores, positive).tolist() == expected
    assert precision_at(scores, positive, 5) == np.mean(np.array(expected) < 5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_refused(value):
    scores = np.zeros((2, 3))
    scores[1, 2] = value
    with pytest.raises(ValueError, match="1 scores are not finite"):
        ranks(scores, np.eye(2, 3, dtype=bool))


def test_a_query_without_positive_is_refused():
    with pytest.raises(ValueError, match="1 queries have no positive candidate"):
        ranks(np.zeros((2, 2)), np.array([[True, False], [False, False]]))
