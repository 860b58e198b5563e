"""Every attention kernel gives what the dense softmax over the drawn mask gives, gradients too."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crem_jax.config import ConfigError
from crem_jax.mesh import spread_heads
from crem_jax.model import crem, kernels, mask
from crem_jax.model.attention import as_mask, attend, implementation
from crem_jax.model.pooling import pool_traced
from crem_jax.types import CHORUS, CONTEXT, PAD, Context, Patches, Target
from tests.support import toy

BATCH, HEADS, GROUPS, SLOTS, ROWS, CHORUSES = 3, 4, 2, 150, 20, 4
"""Two tiles of context, so that blocks end inside it; one of target."""


def arrays(rng, *shapes):
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


@pytest.fixture
def region(rng) -> jax.Array:
    """Contexts of several lengths, closed by the chorus."""
    lengths = np.array([SLOTS - CHORUSES, 60, 1])[:, None]
    slot = np.arange(SLOTS)
    region = np.where(slot < lengths, CONTEXT, PAD)
    return jnp.asarray(np.where(slot >= SLOTS - CHORUSES, CHORUS, region))


@pytest.fixture
def valid() -> jax.Array:
    return jnp.arange(ROWS) < jnp.array([ROWS, 7, 0])[:, None]


def both(run, real, *inputs):
    """Gradients and output of `run(how, *inputs)`, dense and by splash attention.

    real: bool [B, T]; what padding rows give means nothing.
    """

    def weighted(how, *inputs):
        out = jnp.where(real[:, :, None, None], run(how, *inputs), 0.0)
        return jnp.sum(jnp.cos(jnp.arange(out.size)).reshape(out.shape) * out), out

    return [
        jax.jit(jax.grad(functools.partial(weighted, how), range(len(inputs)), has_aux=True))(
            *inputs
        )
        for how in ("xla", "splash")
    ]


def compare(results):
    (dense_grads, dense), (splash_grads, splash) = results
    np.testing.assert_allclose(splash, dense, atol=1e-5)
    for got, expected in zip(splash_grads, dense_grads, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4)


def test_splash_equals_dense_on_the_context(rng, region):
    kv = (BATCH, GROUPS, SLOTS, 32)
    inputs = arrays(rng, (BATCH, HEADS, SLOTS, 32), kv, kv)

    def run(how, q, k, v):
        return attend(q, [(k, v, mask.context_mask(region))], how)

    compare(both(run, region != PAD, *inputs))


def test_splash_equals_dense_on_memory_and_target_and_leaks_nothing(rng, region, valid):
    kv, own = (BATCH, GROUPS, SLOTS, 32), (BATCH, GROUPS, ROWS, 32)
    inputs = arrays(rng, (BATCH, HEADS, ROWS, 32), kv, kv, own, own)
    z = jnp.array([True, False, True])

    def run(how, q, mk, mv, k, v):
        memory = (mk, mv, mask.memory_mask(region, z))
        return attend(q, [memory, (k, v, mask.target_mask(valid, valid))], how)

    results = both(run, valid, *inputs)
    compare(results)
    unseen = (region == PAD) | ((region == CONTEXT) & z[:, None])
    for grads, _ in results:
        for grad in grads[1:3]:
            leaked = jnp.sum(jnp.abs(grad), axis=(1, 3))
            assert float(jnp.max(jnp.where(unseen, leaked, 0.0))) == 0.0
            assert float(jnp.min(jnp.where(unseen, 1.0, leaked)[:2])) > 0.0  # row 2 has no target


def test_splash_equals_dense_on_packed_pictures_and_their_padding(rng):
    inputs = arrays(rng, *[(2, 2, 140, 80)] * 3)
    segment = np.repeat([[1, 2, 3, 0], [1, 0, 0, 0]], 35, axis=1).astype(np.int32)

    def run(how, q, k, v):
        return attend(q, [(k, v, mask.segment_mask(jnp.asarray(segment)))], how)

    compare(both(run, jnp.asarray(segment > 0), *inputs))


def test_the_gpu_kernels_arguments_mean_the_same(rng, region, valid):
    """Odd lengths, masks and layout of the call; the kernel itself needs a GPU."""
    kv, own = (BATCH, GROUPS, SLOTS - 1, 32), (BATCH, GROUPS, ROWS - 1, 32)
    q, mk, mv, k, v = arrays(rng, (BATCH, HEADS, ROWS - 1, 32), kv, kv, own, own)
    region, valid = region[:, 1:], valid[:, :-1]
    sights = mask.memory_mask(region, valid[:, 0]), mask.target_mask(valid, valid)
    segments = [(mk, mv, sights[0]), (k, v, sights[1])]
    expected = attend(q, segments)
    masks = [(k, v, as_mask(sight, ROWS - 1)) for k, v, sight in segments]
    got = kernels.cudnn(q, masks, "xla")
    np.testing.assert_allclose(got[valid], expected[valid], atol=1e-5)


def test_a_model_is_the_same_by_splash_attention_and_by_the_dense_softmax(rng, seed):
    config = toy.config()
    text = dataclasses.replace(config.text, num_kv_heads=1, num_layers=1)
    config = config.replace(text=text)
    params = jax.jit(functools.partial(crem.init, config))(jax.random.key(seed))
    slots, patches = 12, 16
    image = np.arange(slots) < np.array([[3], [4]])
    context = Context(
        tokens=jnp.asarray(
            np.where(image, config.image_token_id, rng.integers(0, 200, (2, slots))), jnp.int32
        ),
        position=jnp.broadcast_to(jnp.arange(slots)[None, :, None], (2, slots, 3)),
        region=jnp.asarray([[0] * 8 + [1] * 4, [0] * 5 + [-1] * 3 + [1] * 4]),
        patches=Patches(
            pixels=jnp.asarray(rng.integers(0, 256, (2, patches, 192)), jnp.uint8),
            position=jnp.asarray(rng.integers(0, 4, (2, patches, 2)), jnp.int32),
            picture=jnp.asarray(np.repeat([[1, 2, 2, 0], [1, 1, 1, 1]], 4, axis=1)),
        ),
    )
    tokens = jnp.asarray(rng.integers(0, 200, (2, 6)), jnp.int32)
    target = Target(tokens, jnp.arange(6) < jnp.array([[6], [4]]), tokens[:, :1], tokens[:, :1])
    z = jnp.array([True, False])

    def outputs(how, params):
        cfg = config.replace(attention=how)
        memory = crem.compress(cfg, params, context)
        hidden, _ = crem.decode(cfg, params, memory, target, z)
        return pool_traced(memory.chorus), crem.logits(cfg, params, hidden)

    (dense, dense_logits), (flash, flash_logits) = (
        jax.jit(functools.partial(outputs, how))(params) for how in ("xla", "splash")
    )
    np.testing.assert_allclose(flash, dense, atol=1e-5)
    np.testing.assert_allclose(flash_logits[target.valid], dense_logits[target.valid], atol=1e-4)


def test_the_kernel_follows_the_devices():
    assert implementation("auto", jnp.bfloat16) == "xla"
    assert implementation("splash", jnp.float32) == "splash"
    with pytest.raises(ConfigError, match="'flash' is not one of auto, xla, splash, cudnn"):
        toy.config(attention="flash")


def test_key_heads_are_repeated_until_every_device_has_its_own():
    heads = jnp.arange(2.0)[None, :, None, None]
    spread = spread_heads(heads, 12, 4)
    assert spread[0, :, 0, 0].tolist() == [0, 0, 1, 1]
    assert spread_heads(heads, 12, 2).shape == heads.shape
