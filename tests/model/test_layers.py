"""Layers that compute in a way of their own, against the plain way."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from crem_jax.model.layers import Dense, matmul
from crem_jax.model.rope import rotate


def test_matmul_has_the_gradients_of_a_matrix_product():
    x, kernel, g = (
        jax.random.normal(jax.random.key(i), shape)
        for i, shape in enumerate([(7, 3), (3, 5), (7, 5)])
    )
    out, back = jax.vjp(matmul, x, kernel)
    np.testing.assert_allclose(out, np.asarray(x) @ np.asarray(kernel), rtol=1e-5)
    for got, expected in zip(back(g), (g @ kernel.T, x.T @ g), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_dense_contracts_several_axes_into_several():
    dense = Dense((4, 2), ("heads", "head_dim", "a", "b"), contract=2)
    x = jax.random.normal(jax.random.key(0), (5, 6, 3, 2))
    params = dense.init(jax.random.key(1), x)
    kernel = params["params"]["kernel"].unbox()
    assert kernel.shape == (3, 2, 4, 2)
    expected = np.einsum("btnh,nhij->btij", x, kernel)
    np.testing.assert_allclose(dense.apply(params, x), expected, rtol=1e-5, atol=1e-6)


def test_rotation_turns_the_halves_against_each_other():
    angle = np.array([0.3, 1.2], np.float32)
    cos, sin = (np.tile(f(angle), 2)[None, None, None] for f in (np.cos, np.sin))
    x = np.array([1.0, 2.0, 3.0, 4.0], np.float32)[None, None, None]
    first, second = x[..., :2], x[..., 2:]
    c, s = np.cos(angle), np.sin(angle)
    expected = np.concatenate([first * c - second * s, second * c + first * s], axis=-1)
    got = rotate(jnp.asarray(x), (jnp.asarray(cos), jnp.asarray(sin)))
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert rotate(jnp.asarray(x, jnp.bfloat16), (cos, sin)).dtype == jnp.bfloat16
