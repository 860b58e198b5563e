"""The compression-aware mask: its drawing, and what it keeps from flowing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crem_jax.model import crem, mask
from crem_jax.types import CHORUS, CONTEXT, KV, PAD, TARGET
from tests.support import hf_models as hf
from tests.support import samples

SLOTS, PATCHES, TARGETS = 32, 32, 6
REGIONS = {"V": CONTEXT, "T": CONTEXT, "U": CHORUS, "Q": TARGET, "A": TARGET}


def drawings() -> tuple[list[str], np.ndarray, np.ndarray]:
    """The slots' letters and the masks for z = 0 and z = 1 drawn in the module's docstring."""
    lines = [line.split() for line in mask.__doc__.splitlines()]
    halves = [(line[: len(line) // 2], line[len(line) // 2 :]) for line in lines if len(line) > 3]
    rows = [pair for pair in halves if all(set(half[1:]) <= {"x", "."} for half in pair)]
    letters = [left[0] for left, _ in rows]
    assert letters == [right[0] for _, right in rows]
    assert (letters, letters) in halves, "the drawing heads its columns with the slots"
    cells = np.array([[half[1:] for half in pair] for pair in rows]) == "x"
    return letters, cells[:, 0], cells[:, 1]


def assembled(region: jax.Array, valid: jax.Array, z: jax.Array) -> np.ndarray:
    """The whole mask from its parts: context on itself, target on memory, target on itself."""
    slots, width = region.shape[1], valid.shape[1]
    whole = np.zeros((len(region), slots + width, slots + width), bool)
    whole[:, :slots, :slots] = mask.context_mask(region).visible(slots)
    whole[:, slots:, :slots] = mask.memory_mask(region, z).visible(width)
    whole[:, slots:, slots:] = mask.target_mask(valid, valid).visible(width)
    return whole


def test_the_mask_equals_its_drawing():
    letters, *expected = drawings()
    assert letters == list("VTUUQAA")
    region = jnp.array([[CONTEXT, CONTEXT, CHORUS, CHORUS]] * 2)
    got = assembled(region, jnp.ones((2, 3), bool), jnp.array([False, True]))
    np.testing.assert_array_equal(got, np.stack(expected))


def test_the_mask_equals_the_papers_formula_on_real_slots(rng):
    region = jnp.asarray(rng.choice([CONTEXT, CONTEXT, PAD, CHORUS], (8, 12)))
    valid = jnp.asarray(rng.random((8, 6)) < 0.7)
    z = jnp.asarray(rng.random(8) < 0.5)
    both = jnp.concatenate([region, jnp.where(valid, TARGET, PAD)], axis=1)
    got, real = assembled(region, valid, z), np.asarray(both != PAD)
    np.testing.assert_array_equal(got[real], np.asarray(hf.whole_mask(both, z))[real])


def test_padding_is_never_seen_and_never_blind():
    region = jnp.array([[CONTEXT, PAD, PAD, CHORUS]])
    for z in (False, True):
        got = assembled(region, jnp.array([[True, False, True]]), jnp.array([z]))[0]
        padding = [1, 2, 5]
        assert not np.delete(got, padding, axis=0)[:, padding].any()
        assert got.any(axis=1).all()


def test_patches_see_their_own_picture_only():
    got = mask.segment_mask(jnp.array([[1, 1, 2, 0]])).visible(4)[0]
    np.testing.assert_array_equal(got[:3, :3], [[1, 1, 0], [1, 1, 0], [0, 0, 1]])
    assert not got[:3, 3].any()


@pytest.fixture(scope="module")
def sample(seed, tmp_path_factory):
    """The model, and the same memory and target that the tests of compress and decode use."""
    oracle = hf.oracle(tmp_path_factory.getbasetemp(), seed, bool(seed % 2))
    rows = samples.rows_of_every_kind(np.random.default_rng(seed))
    context, target = hf.split(oracle, rows, SLOTS, PATCHES, TARGETS)
    return oracle, context, target


@pytest.fixture(scope="module")
def gradients(sample):
    """z -> (|d loss / d KV| [B, S] over the memory's slots, region [B, S])."""
    oracle, context, target = sample
    memory = hf.compress(oracle.config, oracle.params, context)
    weight = jax.random.normal(jax.random.key(0), (*target.tokens.shape, hf.VOCAB))

    @jax.jit
    def gradient(kv, z):
        def loss(kv):
            hidden, _ = crem.decode(oracle.config, oracle.params, memory.replace(kv=kv), target, z)
            out = crem.logits(oracle.config, oracle.params, hidden)
            return jnp.sum(out * weight * target.valid[..., None])

        return jax.grad(loss)(kv)

    def of(z: bool) -> tuple[np.ndarray, np.ndarray]:
        got = gradient(memory.kv, jnp.full(len(target.tokens), z))
        total = np.abs(got.keys).sum(axis=(0, 2, 4)) + np.abs(got.values).sum(axis=(0, 2, 4))
        return total, np.asarray(memory.region)

    return of


def test_answer_cannot_see_the_context_when_compressed(gradients):
    gradient, region = gradients(True)
    assert (gradient[region != CHORUS] == 0.0).all()
    assert (gradient[region == CHORUS] > 0.0).all()


def test_answer_sees_all_of_the_memory_when_native(gradients):
    gradient, region = gradients(False)
    assert (gradient[region != PAD] > 0.0).all()
    assert (gradient[region == PAD] == 0.0).all()


def test_pixels_reach_a_compressed_answer_through_the_chorus_alone(sample):
    oracle, context, target = sample
    yes = jnp.ones(len(target.tokens), bool)

    @jax.jit
    def vision_gradient(cut_chorus, z):
        def loss(vision):
            params = {**oracle.params, "vision": vision}
            memory = crem.compress(oracle.config, params, context)
            chorus = (memory.region == CHORUS)[None, :, None, :, None] & cut_chorus
            kv = jax.tree.map(lambda x: jnp.where(chorus, jax.lax.stop_gradient(x), x), memory.kv)
            memory = memory.replace(kv=KV(kv.keys, kv.values))
            hidden, _ = crem.decode(oracle.config, params, memory, target, z)
            return jnp.sum(jnp.sin(crem.logits(oracle.config, params, hidden)))

        return jax.grad(loss)(oracle.params["vision"])

    def largest(tree) -> float:
        return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))

    assert largest(vision_gradient(True, yes)) == 0.0
    assert largest(vision_gradient(False, yes)) > 1e-3
    assert largest(vision_gradient(True, ~yes)) > 1e-3


def test_a_compressed_answer_does_not_change_with_the_context_it_cannot_see(sample):
    oracle, context, target = sample
    memory = hf.compress(oracle.config, oracle.params, context)
    hidden = (memory.region == CONTEXT)[None, :, None, :, None]
    noise = jax.tree.map(
        lambda x: jnp.where(hidden, 100 * jax.random.normal(jax.random.key(1), x.shape), x),
        memory.kv,
    )
    other = memory.replace(kv=noise)
    for z, same in ((True, True), (False, False)):
        before, after = (hf.answers(oracle, m, target, z) for m in (memory, other))
        assert np.array_equal(before[target.valid], after[target.valid]) == same
