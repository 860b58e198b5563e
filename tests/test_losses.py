"""The losses against references written as loops in float64, and against torch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import toy

from crem_jax.data.records import Item
from crem_jax.data.rows import pad_targets, split_hashes
from crem_jax.train.losses import info_nce, language_modelling, positives

loss_of = jax.jit(info_nce, static_argnames="symmetric")


def unit(rng: np.random.Generator, rows: int, width: int = 8) -> np.ndarray:
    x = rng.standard_normal((rows, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def one_way(scores: np.ndarray, wanted: np.ndarray, rows: list[int], columns: list[int]) -> float:
    """Every positive against the negatives of its row; mean over positives, then over rows."""
    per_row = []
    for i in rows:
        negatives = [np.exp(scores[i, j]) for j in columns if not wanted[i, j]]
        each = [
            -np.log(np.exp(scores[i, j]) / (np.exp(scores[i, j]) + sum(negatives)))
            for j in columns
            if wanted[i, j]
        ]
        if each:
            per_row.append(np.mean(each))
    return float(np.mean(per_row)) if per_row else 0.0


def reference(queries, candidates, wanted, query_valid, candidate_valid, temperature, symmetric):
    """Loss and P@1 in float64."""
    scores = queries.astype(np.float64) @ candidates.astype(np.float64).T / temperature
    rows, columns = np.flatnonzero(query_valid), np.flatnonzero(candidate_valid)
    loss = one_way(scores, wanted, rows, columns)
    if symmetric:
        loss = (loss + one_way(scores.T, wanted.T, columns, rows)) / 2
    hits = []
    for i in rows:
        best = max((scores[i, j] for j in columns if wanted[i, j]), default=-np.inf)
        other = max((scores[i, j] for j in columns if not wanted[i, j]), default=-np.inf)
        hits.append(best > other)
    return loss, np.mean(hits) if hits else 0.0


@pytest.fixture
def sample(rng):
    """Five queries, nine candidates: 0 and 1 duplicates of each other and wanted by query 0; query
    1 wants 2 and 3; query 2 wants what query 1 wants; 7 and 8 are hard negatives; the query and
    the candidate in the last place are padding."""
    texts = ["a", "a", "b", "c", "d", "e", "f", "hard", "harder"]
    wants = [["a"], ["b", "c"], ["c"], ["d", "gone"], ["e"], ["f"]]
    candidate_hash = split_hashes([Item(text).content_hash() for text in texts])
    positive_hash = np.zeros((len(wants), 3, 2), np.uint32)
    for i, names in enumerate(wants):
        positive_hash[i, : len(names)] = split_hashes([Item(name).content_hash() for name in names])
    wanted = np.array([[text in names for text in texts] for names in wants])
    query_valid = np.array([True] * 5 + [False])
    candidate_valid = np.array([True] * 6 + [False] + [True] * 2)
    vectors = unit(rng, len(wants)), unit(rng, len(texts))
    return vectors, positive_hash, candidate_hash, wanted, query_valid, candidate_valid


def test_positives_are_found_by_content_and_duplicates_are_positives_too(sample):
    _, positive_hash, candidate_hash, wanted, *_ = sample
    np.testing.assert_array_equal(positives(positive_hash, candidate_hash), wanted)


def test_padding_is_nobodys_positive():
    assert not positives(np.zeros((2, 3, 2), np.uint32), np.zeros((4, 2), np.uint32)).any()


def test_hashes_that_agree_in_one_half_are_different():
    wanted = positives(np.array([[[1, 2]]], np.uint32), np.array([[1, 3], [3, 2], [1, 2]]))
    np.testing.assert_array_equal(wanted, [[False, False, True]])


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("temperature", [0.02, 0.3, 1.0])
def test_info_nce_equals_a_brute_force_reference(sample, symmetric, temperature):
    vectors, _, _, *rest = sample
    got, metrics = loss_of(*vectors, *rest, temperature, symmetric=symmetric)
    loss, p1 = reference(*vectors, *rest, temperature, symmetric)
    np.testing.assert_allclose(got, loss, rtol=1e-4)
    np.testing.assert_allclose(metrics["retrieval_p1"], p1, rtol=1e-6)


def test_padding_and_other_positives_get_no_gradient(sample):
    (queries, candidates), _, _, *rest = sample

    def loss(queries, candidates):
        return info_nce(queries, candidates, *rest, 0.1)[0]

    by_query, by_candidate = jax.jit(jax.grad(loss, (0, 1)))(queries, candidates)
    assert not by_query[5].any()
    assert not by_candidate[6].any()
    assert np.abs(np.asarray(by_candidate))[[7, 8]].min() > 0
    only_first = np.arange(6) == 0
    rest[1] = only_first
    by_candidate = jax.jit(jax.grad(lambda c: info_nce(queries, c, *rest, 0.1)[0]))(candidates)
    expected = by_candidate[0] / by_candidate[0, 0], queries[0] / queries[0, 0]
    np.testing.assert_allclose(*expected, rtol=1e-4)


def test_constant_embeddings_score_zero_not_one(sample):
    _, _, _, *rest = sample
    constant = np.ones((6, 8), np.float32), np.ones((9, 8), np.float32)
    _, metrics = loss_of(*constant, *rest, 0.02)
    assert metrics["retrieval_p1"] == 0.0


def test_a_batch_without_retrieval_has_loss_and_gradient_zero(rng):
    queries, candidates = unit(rng, 2), unit(rng, 3)
    nothing = np.zeros((2, 3), bool), np.zeros(2, bool), np.zeros(3, bool)
    value, gradient = jax.jit(
        jax.value_and_grad(lambda q: info_nce(q, candidates, *nothing, 0.02, symmetric=True)[0])
    )(queries)
    assert value == 0.0
    assert not np.asarray(gradient).any()


def test_extreme_scores_stay_finite(rng):
    queries = unit(rng, 3)
    wanted, valid = np.roll(np.eye(3, dtype=bool), 1, axis=1), np.ones(3, bool)
    value, gradient = jax.jit(
        jax.value_and_grad(lambda q: info_nce(q, q, wanted, valid, valid, 1e-3)[0])
    )(queries)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_language_modelling_equals_torch_cross_entropy(rng):
    logits = 3 * rng.standard_normal((3, 5, 11)).astype(np.float32)
    answer = rng.integers(-1, 11, (3, 5)).astype(np.int32)
    answer[0, 0], answer[0, 1] = -1, 4
    loss, right = language_modelling(jnp.asarray(logits), jnp.asarray(answer))
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits).reshape(-1, 11),
        torch.from_numpy(answer).reshape(-1).long(),
        ignore_index=-1,
        reduction="none",
    )
    np.testing.assert_allclose(np.asarray(loss).reshape(-1), expected.numpy(), atol=2e-6)
    np.testing.assert_array_equal(right, (logits.argmax(-1) == answer) & (answer >= 0))


def test_loss_is_on_the_answer_of_every_assistant_turn_and_nothing_else():
    prompter = toy.prompter()
    turns = [("What is it?", "a bird"), ("Which number?", "12"), ("Where?", "on a tree")]
    row = prompter.target(turns)
    end = prompter.config.eos_token_id
    expected = [token for _, answer in turns for token in (*prompter.user_tokens(answer), end)]
    labelled = row.label >= 0
    assert row.label[labelled].tolist() == expected
    np.testing.assert_array_equal(row.tokens[1:][labelled[:-1]], row.label[labelled])
    target = pad_targets([row, None], prompter.config, 60, 20)
    n = len(expected)
    assert target.answer[0, :n].tolist() == expected
    assert (target.answer[0, n:] == -1).all()
    assert (target.answer[1] == -1).all()
    np.testing.assert_array_equal(target.tokens[0, target.answer_slot[0, :n] + 1], expected)
