"""Int8 weights: what `Dense` computes is the rounded kernel, and rounding costs little."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import crem_jax
from crem_jax import trees
from crem_jax.model.int8 import quantise
from crem_jax.model.pooling import pool_traced
from tests.support import hf_models as hf
from tests.support import samples
from tests.support.cli_runner import crem

SLOTS, PATCHES, TARGETS = 32, 32, 6
KERNELS = {f"backbone/layers/{name}/kernel" for name in ("q", "k", "v", "o")}
KERNELS |= {f"backbone/layers/mlp/{name}/kernel" for name in ("gate", "up", "down")}


@pytest.fixture(scope="module")
def oracle(seed, tmp_path_factory):
    return hf.oracle(tmp_path_factory.getbasetemp(), seed, bool(seed % 2))


@pytest.fixture(scope="module")
def served(oracle):
    return quantise(oracle.params, "float32")


def restored(served: dict, like: dict) -> dict:
    """Q s in float32, in the shape of the kernels it came from."""
    leaves = trees.flatten(served)
    out = {path: leaves[path] for path in trees.flatten(like)}
    for path in KERNELS:
        scale = leaves[f"{path}_scale"]
        inputs = out[path].ndim - scale.ndim
        out[path] = out[path] * scale.reshape(len(scale), *(1,) * inputs, *scale.shape[1:])
    return trees.unflatten(out)


def test_every_decoder_kernel_and_nothing_else_is_int8(oracle, served):
    leaves = trees.flatten(served)
    assert {path for path, leaf in leaves.items() if leaf.dtype == np.int8} == KERNELS
    for path, leaf in trees.flatten(oracle.params).items():
        if path not in KERNELS:
            np.testing.assert_array_equal(leaves[path], leaf)


def test_rounding_is_off_by_half_a_step_of_the_output_at_most(oracle, served):
    exact, got = trees.flatten(oracle.params), trees.flatten(restored(served, oracle.params))
    leaves = trees.flatten(served)
    for path in KERNELS:
        scale = leaves[f"{path}_scale"]
        inputs = tuple(range(1, 1 + exact[path].ndim - scale.ndim))
        np.testing.assert_allclose(np.abs(exact[path]).max(axis=inputs) / 127, scale, rtol=1e-6)
        worst = np.abs(got[path] - exact[path]).max(axis=inputs)
        assert (worst <= 0.501 * scale).all()


def outputs(oracle, params) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings [B, D], and the logits [n, V] of all real target slots."""
    rows = samples.rows_of_every_kind(np.random.default_rng(0))
    context, target = hf.split(oracle, rows, SLOTS, PATCHES, TARGETS)
    memory = hf.compress(oracle.config, params, context)
    z = jnp.array([False, True, False, True])
    hidden, _ = hf.decode(oracle.config, params, memory, target, z)
    logits = np.asarray(hf.logits(oracle.config, params, hidden))
    return np.asarray(pool_traced(memory.chorus)), logits[target.valid]


def test_the_model_computes_with_the_rounded_kernels(oracle, served):
    got = outputs(oracle, served)
    expected = outputs(oracle, restored(served, oracle.params))
    np.testing.assert_allclose(got[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(got[1], expected[1], atol=1e-4)


def test_embeddings_stay_where_they_were(oracle, served):
    got, exact = outputs(oracle, served)[0], outputs(oracle, oracle.params)[0]
    assert (np.sum(got * exact, axis=-1) > 0.999).all()


def test_load_find_and_tell_take_int8(capsys, tiny_model_dir, tmp_path):
    model = crem_jax.load(tiny_model_dir, weights="int8")
    assert trees.flatten(model.params)["backbone/layers/q/kernel"].dtype == jnp.int8
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    picture = tmp_path / "picture.png"
    Image.fromarray(pixels).save(picture)
    argv = ["find", tiny_model_dir, "a tree", "--in", tmp_path, "--out", tmp_path / "grid.jpg"]
    found = crem(capsys, *argv, "--weights", "int8", "--json").json["results"][0]
    one, other = model.encode([pixels, "a tree"])
    assert found["score"] == pytest.approx(float(one @ other), abs=1e-5)
    argv = ["tell", tiny_model_dir, picture, "what?", "--max_new_tokens", 4, "--weights", "int8"]
    answer = "".join(model.stream({"image": pixels, "text": "what?"}, max_new_tokens=4))
    assert crem(capsys, *argv).out == f"{answer}\n"
    with pytest.raises(ValueError, match="weights 'int4' is not one of int8"):
        crem_jax.load(tiny_model_dir, weights="int4")


def test_a_hugging_face_directory_is_rounded_as_it_is_read(oracle, served):
    model = crem_jax.load(oracle.directory, weights="int8", dtype="bfloat16")
    leaves, expected = trees.flatten(model.params), trees.flatten(served)
    assert {str(leaf.dtype) for leaf in leaves.values()} == {"int8", "float32", "bfloat16"}
    for path in KERNELS:
        np.testing.assert_array_equal(leaves[path], expected[path])
        np.testing.assert_array_equal(leaves[f"{path}_scale"], expected[f"{path}_scale"])
