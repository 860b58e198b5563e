"""compress → decode is the one-pass masked forward, cut in two where the chorus ends."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crem_jax.config import STYLES
from crem_jax.model.decoder import empty_cache
from crem_jax.model.pooling import pool_traced
from crem_jax.types import CHORUS, CONTEXT, PAD, TARGET
from tests.support import hf_models as hf
from tests.support import samples

SLOTS, PATCHES, TARGETS = 32, 32, 6


@pytest.fixture(scope="module")
def oracle(seed, tmp_path_factory):
    style = STYLES[seed // 2 % len(STYLES)]
    return hf.oracle(tmp_path_factory.getbasetemp(), seed, bool(seed % 2), style)


@pytest.fixture(scope="module")
def rows(seed):
    return samples.rows_of_every_kind(np.random.default_rng(seed))


@pytest.fixture(scope="module")
def halves(oracle, rows):
    """Memory and target; every row has padding between its text and its chorus."""
    context, target = hf.split(oracle, rows, SLOTS, PATCHES, TARGETS)
    assert (context.region == -1).any(axis=1).all()
    return hf.compress(oracle.config, oracle.params, context), target


@pytest.mark.parametrize("z", [[0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0]], ids=str)
def test_compress_then_decode_equals_the_one_pass_masked_forward(oracle, rows, halves, z):
    memory, target = halves
    got = hf.answers(oracle, memory, target, z)
    whole = samples.whole(rows, oracle.config.chorus_ids, 36, PATCHES, "right")
    _, expected = hf.ours(oracle, whole, np.array(z, bool))
    for b in range(len(rows)):
        worst = np.abs(got[b][target.valid[b]] - expected[b][whole.region[b] == TARGET]).max()
        assert worst <= 1e-5


def test_the_embedding_equals_the_one_pass_forward(oracle, rows, halves):
    whole = samples.whole(rows, oracle.config.chorus_ids, 36, PATCHES, "right")
    hidden, _ = hf.ours(oracle, whole, False)
    mean = hidden[whole.region == CHORUS].reshape(len(rows), hf.K, -1).mean(axis=1)
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(pool_traced(halves[0].chorus), expected, atol=1e-5)


def test_a_text_only_bucket_equals_the_same_text_in_a_picture_bucket(oracle, rows, halves):
    text = [rows[2]] * len(rows)
    context, target = hf.split(oracle, text, 16, 0, TARGETS)
    assert context.patches is None
    memory = hf.compress(oracle.config, oracle.params, context)
    np.testing.assert_allclose(
        pool_traced(memory.chorus)[0], pool_traced(halves[0].chorus)[2], atol=1e-5
    )
    expected = hf.answers(oracle, *halves, [0, 0, 0, 1])
    got = hf.answers(oracle, memory, target, [0, 1, 0, 0])
    real = target.valid[0]
    np.testing.assert_allclose(got[0][real], expected[2][real], atol=1e-5)


@pytest.mark.parametrize("z", [False, True], ids=["native", "compressed"])
def test_token_by_token_with_a_cache_equals_decoding_at_once(oracle, halves, z):
    memory, target = halves
    expected = hf.answers(oracle, memory, target, z)
    memory = memory.chorus_only() if z else memory
    cache, hidden = empty_cache(memory, TARGETS + 2), []
    for t in range(TARGETS):
        step = jax.tree.map(lambda x, t=t: x[:, t : t + 1], target)
        step = step.replace(answer_slot=target.answer_slot, answer=target.answer)
        no = jnp.zeros(len(target.tokens), bool)
        out, cache = hf.decode(oracle.config, oracle.params, memory, step, no, cache)
        hidden.append(out)
    got = np.asarray(hf.logits(oracle.config, oracle.params, jnp.concatenate(hidden, axis=1)))
    np.testing.assert_allclose(got[target.valid], expected[target.valid], atol=1e-5)
    np.testing.assert_array_equal(cache.count, target.valid.sum(axis=1))


def test_a_cache_read_in_pieces_skips_the_padding_between_them(oracle, halves):
    memory, target = halves
    expected = hf.answers(oracle, memory, target, False)
    no = jnp.zeros(len(target.tokens), bool)
    first = target.replace(valid=target.valid & (np.arange(TARGETS) < 1))
    cache = empty_cache(memory, 2 * TARGETS)
    _, cache = hf.decode(oracle.config, oracle.params, memory, first, no, cache)
    rest = jax.tree.map(lambda x: np.roll(x, -1, axis=1), target)
    rest = rest.replace(valid=rest.valid & (np.arange(TARGETS) < TARGETS - 1))
    rest = rest.replace(answer_slot=target.answer_slot, answer=target.answer)
    rest.valid[:, -1] = False
    hidden, _ = hf.decode(oracle.config, oracle.params, memory, rest, no, cache)
    got = np.asarray(hf.logits(oracle.config, oracle.params, hidden))
    for b in range(len(no)):
        n = rest.valid[b].sum()
        np.testing.assert_allclose(got[b, :n], expected[b, 1 : n + 1], atol=1e-5)


def test_chorus_only_equals_hiding_the_context(oracle, halves):
    memory, target = halves
    expected = hf.answers(oracle, memory, target, True)
    small = memory.chorus_only()
    assert small.kv.keys.shape[3] == hf.K
    for z in (False, True):
        got = hf.answers(oracle, small, target, z)
        np.testing.assert_allclose(got[target.valid], expected[target.valid], atol=1e-5)


def test_sinks_are_the_first_context_slots_kept_beside_the_chorus(oracle, halves):
    memory, target = halves
    slots = np.arange(memory.region.shape[1])
    later = (memory.region == CONTEXT) & (slots >= 2)
    expected = hf.answers(
        oracle, memory.replace(region=np.where(later, PAD, memory.region)), target, 0
    )
    small = memory.chorus_only(sinks=2)
    assert small.kv.keys.shape[3] == hf.K + 2
    got = hf.answers(oracle, small, target, False)
    np.testing.assert_allclose(got[target.valid], expected[target.valid], atol=1e-5)
    native = hf.answers(oracle, memory, target, False)
    all_kept = hf.answers(oracle, memory.chorus_only(sinks=999), target, False)
    np.testing.assert_allclose(all_kept[target.valid], native[target.valid], atol=1e-5)
    assert not np.allclose(got[target.valid], native[target.valid], atol=1e-3)


@pytest.mark.parametrize("k", [1, 4])
def test_k_of_the_chorus_equals_compressing_with_k_tokens(oracle, rows, halves, k):
    memory, target = halves
    few = dataclasses.replace(oracle, config=oracle.config.replace(num_chorus=k))
    context, _ = hf.split(few, rows, SLOTS, PATCHES, TARGETS)
    reference = hf.compress(few.config, few.params, context)
    np.testing.assert_allclose(
        pool_traced(memory.chorus, k), pool_traced(reference.chorus), atol=1e-5
    )
    for z in (False, True):
        expected = hf.answers(few, reference, target, z)[target.valid]
        truncated = hf.answers(oracle, memory.truncate(k), target, z)[target.valid]
        np.testing.assert_allclose(truncated, expected, atol=1e-5)
    np.testing.assert_allclose(
        hf.answers(oracle, memory.chorus_only(k), target, False)[target.valid], expected, atol=1e-5
    )


def test_each_row_may_keep_another_number_of_chorus_tokens(oracle, halves):
    memory, target = halves
    counts = np.array([1, 4, hf.K, 4])
    got = hf.answers(oracle, memory.truncate(counts), target, True)
    for b, k in enumerate(counts):
        expected = hf.answers(oracle, memory.truncate(int(k)), target, True)[b]
        np.testing.assert_allclose(got[b][target.valid[b]], expected[target.valid[b]], atol=1e-5)
