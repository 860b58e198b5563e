"""Low-rank adapters: what they add, what of them trains, and that merging changes nothing."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crem_jax import lazy_array, trees
from crem_jax.config import ConfigError, LoRAConfig
from crem_jax.data.batches.stream import Stream
from crem_jax.model import crem
from crem_jax.model.lora import merge_lora
from crem_jax.train.optim import learning_rates
from tests.support import toy

TARGETS = (r"backbone/layers/(q|k|v|o|mlp/(gate|up|down))/kernel", r"vision/blocks/qkv/kernel")
PLAIN = toy.config()
ADAPTED = PLAIN.replace(lora=LoRAConfig(rank=2, alpha=6.0, targets=TARGETS))


@pytest.fixture(scope="module")
def params(seed):
    """Adapters that have been trained: none of them is zero."""

    @jax.jit
    def make(key):
        leaves = trees.flatten(crem.init(ADAPTED, key))
        adapters = {
            path: x + 0.1 * jax.random.normal(jax.random.fold_in(key, i), x.shape)
            for i, (path, x) in enumerate(leaves.items())
            if re.search("lora_|delta", path)
        }
        return trees.unflatten(leaves | adapters)

    return make(jax.random.key(seed))


@pytest.fixture(scope="module")
def context():
    return Stream({"toy": toy.Toy()}, toy.SPEC, toy.prompter(), seed=0).batch(0).contexts["picture"]


@functools.partial(jax.jit, static_argnums=0)
def chorus(config, params, context):
    return crem.compress(config, params, context).chorus


def test_adapters_start_as_the_model_they_adapt(context, seed):
    make = jax.jit(crem.init, static_argnums=0)
    plain, adapted = (make(config, jax.random.key(seed)) for config in (PLAIN, ADAPTED))
    np.testing.assert_array_equal(chorus(ADAPTED, adapted, context), chorus(PLAIN, plain, context))


@pytest.mark.parametrize("kind", [lazy_array.of, jnp.asarray], ids=["lazy", "arrays"])
def test_a_merged_model_computes_what_the_adapted_one_does(params, context, kind):
    config, merged = merge_lora(ADAPTED, jax.tree.map(kind, params))
    assert config == PLAIN
    merged = jax.tree.map(np.asarray, merged)
    expected = chorus(ADAPTED, params, context)
    np.testing.assert_allclose(chorus(PLAIN, merged, context), expected, atol=1e-5)
    base, _ = trees.split(params, {p for p in trees.flatten(params) if re.search("lora|delta", p)})
    assert np.abs(chorus(PLAIN, base, context) - expected).max() > 1e-3


def test_any_box_of_a_lazily_merged_kernel_is_that_of_the_whole(params):
    _, merged = merge_lora(ADAPTED, jax.tree.map(lazy_array.of, params))
    for path in ("backbone/layers/o/kernel", "vision/blocks/qkv/kernel", "backbone/embedding"):
        leaf = trees.flatten(merged)[path]
        box = tuple(slice(size // 2, size) for size in leaf.shape)
        np.testing.assert_allclose(leaf[box], np.asarray(leaf)[box], rtol=1e-6)


def test_adapters_and_the_chorus_train_and_nothing_else_unless_asked(params):
    rates = learning_rates(((r"backbone/norm/scale", 0.5),), params, adapted=True)
    trained = {path: rate for path, rate in rates.items() if rate}
    kernels = [path for path in rates if any(re.fullmatch(t, path) for t in TARGETS)]
    expected = {path.replace("kernel", name) for path in kernels for name in ("lora_a", "lora_b")}
    assert len(kernels) == 8
    assert set(trained) == expected | {"compressor/chorus_delta", "backbone/norm/scale"}
    assert trained["backbone/norm/scale"] == 0.5


def test_a_target_that_matches_nothing_is_refused():
    config = PLAIN.replace(lora=LoRAConfig(2, 2.0, (TARGETS[0], "backbone/layers/qq/kernel")))
    with pytest.raises(ConfigError, match=r"'backbone/layers/qq/kernel' matches no kernel; they"):
        crem.abstract(config)
