"""Dense layers, norms and MLPs, whose parameters have the logical axis names of `mesh.RULES`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from crem_jax.mesh import constrain


@jax.custom_vjp
def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[R, I] @ [I, O] -> [R, O].

    The kernel's gradient is computed as xᵀ g. JAX's own rule gives (gᵀ x)ᵀ, for which XLA's CPU
    compiler recomputes the activation behind g column by column, a seventh of a step's time.
    """
    return x @ kernel


def _matmul_forward(x, kernel):
    return x @ kernel, (x, kernel)


def _matmul_backward(saved, g):
    x, kernel = saved
    by_rows, by_outputs = (((0,), (0,)), ((), ())), (((1,), (1,)), ((), ()))
    return jax.lax.dot_general(g, kernel, by_outputs), jax.lax.dot_general(x, g, by_rows)


matmul.defvjp(_matmul_forward, _matmul_backward)


class Dense(nn.Module):
    """y = x W + b with several output axes; float32 parameters, arithmetic in `dtype`.

    W may be int8 with a `kernel_scale` per output channel (`model.int8`). If the parameters hold an
    adapter, `lora_a` and `lora_b` (`model.lora`), y = x (W + A B) + b.

    Attributes:
      features: shape of the output axes, such as (heads, head dimension).
      axes: logical names of the kernel's axes, contracted ones first.
      contract: number of trailing axes of x that are contracted.
      scale: of the initial kernel, as of `variance_scaling` over the fan-in.
    """

    features: Sequence[int]
    axes: Sequence[str]
    contract: int = 1
    use_bias: bool = True
    scale: float = 1.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inner, features = x.shape[-self.contract :], tuple(self.features)
        init = nn.initializers.variance_scaling(
            self.scale,
            "fan_in",
            "truncated_normal",
            in_axis=tuple(range(self.contract)),
            out_axis=tuple(range(self.contract, self.contract + len(features))),
        )
        kernel = self.param("kernel", partitioned(init, tuple(self.axes)), inner + features)
        rows, size = x.shape[: -self.contract], math.prod(inner)
        x = x.astype(self.dtype).reshape(-1, size)
        y = matmul(x, kernel.astype(self.dtype).reshape(size, -1))
        y = y.reshape(rows + features)
        if self.has_variable("params", "kernel_scale"):
            y = (y * self.get_variable("params", "kernel_scale")).astype(self.dtype)
        if self.has_variable("params", "lora_a"):
            a: jax.Array = self.get_variable("params", "lora_a").astype(self.dtype)
            b: jax.Array = self.get_variable("params", "lora_b").astype(self.dtype)
            more = matmul(matmul(x, a.reshape(size, -1)), b.reshape(b.shape[0], -1))
            y = y + more.reshape(y.shape)
        if self.use_bias:
            names = tuple(self.axes[self.contract :])
            zeros = partitioned(nn.initializers.zeros_init(), names)
            y = y + self.param("bias", zeros, features).astype(self.dtype)
        return y


def partitioned(init: Callable[..., Any], names: tuple[str, ...]) -> Callable[..., Any]:
    """An initialiser that attaches logical axis names to its parameter.

    flax types it as the box that holds the names; a module sees the array itself.
    """
    return nn.with_logical_partitioning(init, names)


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32."""

    eps: float
    axis: str = "embed"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        ones = partitioned(nn.initializers.ones_init(), (self.axis,))
        scale = self.param("scale", ones, (x.shape[-1],))
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        return (y * scale).astype(x.dtype)


class LayerNorm(nn.Module):
    """Layer norm with scale and bias in float32."""

    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        ones = partitioned(nn.initializers.ones_init(), ("vision_embed",))
        zeros = partitioned(nn.initializers.zeros_init(), ("vision_embed",))
        scale = self.param("scale", ones, (x.shape[-1],))
        bias = self.param("bias", zeros, (x.shape[-1],))
        y = x.astype(jnp.float32)
        mean = jnp.mean(y, axis=-1, keepdims=True)
        y = (y - mean) * jax.lax.rsqrt(jnp.var(y, axis=-1, keepdims=True) + self.eps)
        return (y * scale + bias).astype(x.dtype)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)).

    Attributes:
      features: inner width. axes: logical names of the outer and the inner width.
      scale: as of `Dense`, for `down`.
    """

    features: int
    scale: float = 1.0
    dtype: jnp.dtype = jnp.float32
    use_bias: bool = False
    axes: tuple[str, str] = ("embed", "mlp")

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def dense(name, features, axes, scale=1.0):
            return Dense(
                (features,), axes, use_bias=self.use_bias, scale=scale, dtype=self.dtype, name=name
            )

        gate = dense("gate", self.features, self.axes)(x)
        up = dense("up", self.features, self.axes)(x)
        hidden = constrain(nn.silu(gate) * up, "batch", "length", self.axes[1])
        return dense("down", x.shape[-1], self.axes[::-1], self.scale)(hidden)
