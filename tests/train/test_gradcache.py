"""Chunks train like the whole batch: the same loss, the same gradients, less memory."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crem_jax import trees
from crem_jax.data.batches.stream import Stream
from crem_jax.train.objective.grad_cache import loss_and_gradient
from crem_jax.train.objective.joint_loss import LossConfig, loss_fn
from crem_jax.train.objective.step import init_params
from crem_jax.types import Batch
from tests.support import toy

KEY = jax.random.key(3)
FULL = LossConfig(
    temperature=0.1, learn_temperature=True, symmetric=True, dims=(8, 16), z_loss=1e-3
)
MODEL = toy.config().replace(text=dataclasses.replace(toy.config().text, num_layers=1))
CHUNKS = (("picture", 2), ("text", 8))


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Hard negatives, several positives, padding, in two buckets."""
    return Stream({"toy": toy.Toy()}, toy.SPEC, toy.prompter(), seed=0).batch(0)


@pytest.fixture(scope="module")
def params(seed):
    make = jax.jit(lambda key: nn.meta.unbox(init_params(MODEL, FULL, key)))
    return make(jax.random.key(seed))


@functools.partial(jax.jit, static_argnames=("loss", "frozen"))
def gradient(params, batch, loss: LossConfig, frozen: frozenset[str] = frozenset()):
    trained, still = trees.split(params, frozen)
    if loss.chunk_rows:
        return loss_and_gradient(trained, still, batch, KEY, MODEL, loss)

    def whole(trained):
        return loss_fn(trees.merge(trained, still), batch, KEY, MODEL, loss)

    (_, metrics), gradient = jax.value_and_grad(whole, has_aux=True)(trained)
    return metrics, gradient


def assert_equal(got, expected):
    (got_metrics, got_gradient), (metrics, whole) = got, expected
    assert set(got_metrics) == set(metrics)
    for name, value in metrics.items():
        np.testing.assert_allclose(got_metrics[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    size = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(whole))
    got_gradient, whole = trees.flatten(got_gradient), trees.flatten(whole)
    assert set(got_gradient) == set(whole)
    for path, leaf in whole.items():
        np.testing.assert_allclose(
            got_gradient[path] / size, leaf / size, rtol=0, atol=1e-5, err_msg=path
        )


@pytest.mark.parametrize(
    "changes",
    [
        dict(vocab_chunk=512),
        pytest.param(
            dict(generation=0.0, symmetric=False, elastic=0.0, dims=()), marks=pytest.mark.slow
        ),
        pytest.param(dict(retrieval=0.0), marks=pytest.mark.slow),
    ],
    ids=["everything", "retrieval alone", "generation alone"],
)
def test_chunks_have_the_loss_and_the_gradients_of_the_whole_batch(params, batch, changes):
    loss = dataclasses.replace(FULL, **changes)
    chunked = dataclasses.replace(loss, chunk_rows=CHUNKS)
    assert_equal(gradient(params, batch, chunked), gradient(params, batch, loss))


@pytest.fixture(scope="module")
def vision(params) -> frozenset[str]:
    """Paths of the vision tower."""
    return frozenset(path for path in trees.flatten(params) if path.startswith("vision/"))


def test_frozen_pictures_are_seen_once(params, batch, vision):
    twice = dataclasses.replace(FULL, chunk_rows=CHUNKS)
    once = dataclasses.replace(twice, cache_vision=True)
    patches = batch.contexts["picture"].patches.pixels.shape[1:]
    assert passes(params, batch, once, vision, patches) == 1
    assert passes(params, batch, twice, vision, patches) == 2


@pytest.mark.slow
def test_pictures_seen_once_give_the_gradients_of_the_whole_batch(params, batch, vision):
    once = dataclasses.replace(FULL, chunk_rows=CHUNKS, cache_vision=True)
    assert_equal(gradient(params, batch, once, vision), gradient(params, batch, FULL, vision))


def passes(params, batch, loss, frozen, patches) -> int:
    """How often the first layer of the vision tower is in the step."""

    def equations(jaxpr):
        for equation in jaxpr.eqns:
            yield equation
            for inner in jax.core.jaxprs_in_params(equation.params):
                yield from equations(inner)

    made = jax.make_jaxpr(lambda p: gradient(p, batch, loss, frozen))(params)
    shape = (2, *patches)
    return sum(
        equation.primitive.name == "dot_general"
        and any(v.aval.shape == shape for v in equation.invars)
        for equation in equations(made.jaxpr)
    )


def temp_bytes(params, batch, loss: LossConfig) -> int:
    compiled = gradient.lower(params, batch, loss).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_memory_does_not_grow_with_the_batch(params, batch):
    def times(count: int) -> Batch:
        return jax.tree.map(lambda x: np.concatenate([x] * count), batch)

    loss = dataclasses.replace(FULL, generation=0.0, dims=(), symmetric=False)
    chunked = dataclasses.replace(loss, chunk_rows=CHUNKS)
    growth = {
        name: temp_bytes(params, times(8), one) - temp_bytes(params, batch, one)
        for name, one in (("whole", loss), ("chunked", chunked))
    }
    assert growth["chunked"] < 0.1 * growth["whole"]


def test_chunks_that_do_not_divide_their_bucket_are_refused(params, batch):
    loss = dataclasses.replace(FULL, chunk_rows=(("picture", 3),))
    with pytest.raises(ValueError, match=r"chunk_rows\.picture = 3 does not divide data\.buckets"):
        gradient(params, batch, loss)


ON_A_MESH = """
import json, sys
import jax, numpy as np
from tests.support import tiny_run
from crem_jax import mesh as meshes, trees
from crem_jax.plan.hlo import collectives
from crem_jax.train import layout
from crem_jax.train.setup import make_parts
from crem_jax.train.objective.step import train_step

config, shape, cache_vision = tiny_run.tiny_config(2), *json.loads(sys.argv[1])
if cache_vision:
    config.optim.rates = (("vision/.*", 0.0),)
config.optim.update(lr=1e-2, warmup=0, eps=1e-3)
config.loss.update(learn_temperature=True)
whole = make_parts(config)
config.loss.update(vocab_chunk=512, chunk_rows=dict(picture=4, text=8))
config.loss.cache_vision = cache_vision
chunked = make_parts(config)
start = jax.device_get(layout.fresh_state(whole, jax.random.key(0)))
batch = whole.stream.batch(0)
alone, expected = jax.jit(lambda s, b: train_step(s, b, seed=0, **whole.step_arguments()))(
    start, batch)
mesh = meshes.make_mesh(shape)
shardings = jax.tree.map(lambda leaf: leaf.sharding, layout.abstract_state(chunked, mesh))
with jax.set_mesh(mesh):
    inputs = jax.device_put(start, shardings), layout.put(batch, mesh), np.uint32(0)
    step = layout.jit_step(chunked, shardings, mesh).lower(*inputs).compile()
    state, metrics = step(*inputs)
alone, state = (trees.flatten(jax.device_get(s.params)) for s in (alone, state))
reduced = [each.bytes for each in collectives(step.as_text()) if each.kind == "all-reduce"]
print(json.dumps({
    "reduced": sum(reduced) / sum(leaf.nbytes for leaf in alone.values()),
    "losses": [float(expected["loss"]), float(metrics["loss"])],
    "norms": [float(expected["grad_norm"]), float(metrics["grad_norm"])],
    "apart": max(float(np.abs(alone[path] - state[path]).max()) for path in alone),
    "moved": max(float(np.abs(alone[p] - x).max()) for p, x in trees.flatten(start.params).items()),
}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "cache_vision"), [((2, 2, 2), False), ((4, 1, 1), False), ((4, 1, 1), True)]
)
def test_chunks_on_a_mesh_train_like_the_whole_batch_on_one_device(shape, cache_vision):
    """Rows over data and fsdp, the vocabulary and its chunks over tensor; or rows over data alone,
    where the gradient is summed over the devices once, and not for every chunk.
    """
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={np.prod(shape)}",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = [sys.executable, "-c", ON_A_MESH, json.dumps([shape, cache_vision])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    got = json.loads(done.stdout.splitlines()[-1])
    np.testing.assert_allclose(*got["losses"], rtol=1e-5)
    np.testing.assert_allclose(*got["norms"], rtol=1e-5)
    assert got["apart"] <= 1e-5
    assert got["moved"] > 1e-3
    if shape == (4, 1, 1):
        assert got["reduced"] < 1.1
