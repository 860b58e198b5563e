"""Low-rank adapters (LoRA, arXiv 2106.09685): beside a frozen kernel W, y = x (W + s A B).

Parameters, beside the `kernel` [*layers, *in, *out] of every `layers.Dense` that is adapted:

  lora_a  [*layers, *in, rank]    random
  lora_b  [*layers, rank, *out]   zeros, so that training starts at the model it adapts
  s = alpha / rank

where `layers` is the leading axis of a scanned stack, absent elsewhere. As matrices (in and out
flattened) they are the transposes of PEFT's lora_A.weight [rank, in] and lora_B.weight [out, rank].
Whatever the targets, `compressor/chorus_delta` [K, D], initially zeros, is trained and added to the
chorus tokens' rows of the embedding: these tokens are new, while the embedding stays frozen.
"""

from __future__ import annotations

import re
import zlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from crem_jax import trees
from crem_jax.config import ConfigError, ModelConfig
from crem_jax.lazy_array import LazyArray

CHORUS_DELTA = "compressor/chorus_delta"
_TWO_INPUTS = ("heads", "vision_heads")
"""First axes of kernels with two input axes (output projections); all others have one."""


def is_adapter(path: str) -> bool:
    """Whether the parameter at a path belongs to an adapter."""
    return path.endswith(("/lora_a", "/lora_b")) or path == CHORUS_DELTA


def add_adapters(config: ModelConfig, params: Any, key: jax.Array) -> dict[str, Any]:
    """Adds the adapters that `config.lora` specifies to boxed parameters.

    Raises:
      ConfigError: a target matches no kernel.
    """
    leaves = trees.flatten(params)
    kernels = [path for path in leaves if path.endswith("/kernel")]
    assert config.lora is not None
    added: dict[str, Any] = {}
    for target in config.lora.targets:
        chosen = [path for path in kernels if re.fullmatch(target, path)]
        if not chosen:
            raise ConfigError(
                f"model.lora.targets: {target!r} matches no kernel; they look like {kernels[0]}"
            )
        for path in chosen:
            own = jax.random.fold_in(key, zlib.crc32(path.encode()))
            a, b = _adapter(leaves[path], config.lora.rank, own)
            stem = path.removesuffix("kernel")
            added |= {f"{stem}lora_a": a, f"{stem}lora_b": b}
    if config.num_chorus:
        zeros = jnp.zeros((config.num_chorus, config.text.hidden_size))
        added[CHORUS_DELTA] = nn.LogicallyPartitioned(zeros, ("chorus", "embed"))
    return trees.merge(params, trees.unflatten(added))


def scaled(config: ModelConfig, params: Any) -> Any:
    """The parameters with every B multiplied by alpha / rank, as `layers.Dense` expects."""
    if config.lora is None:
        return params
    scale = config.lora.alpha / config.lora.rank
    leaves = trees.flatten(params)
    return trees.unflatten(
        {path: x * scale if path.endswith("/lora_b") else x for path, x in leaves.items()}
    )


def merge_lora(config: ModelConfig, params: Any) -> tuple[ModelConfig, dict[str, Any]]:
    """Merges the adapters: every adapted kernel W is replaced by W + s A B.

    LazyArrays stay lazy; a model without adapters is returned unchanged.
    """
    if config.lora is None:
        return config, params
    leaves, scale = trees.flatten(params), config.lora.alpha / config.lora.rank
    merged = {path: leaf for path, leaf in leaves.items() if not is_adapter(path)}
    for path in [path for path in leaves if path.endswith("/lora_a")]:
        stem = path.removesuffix("lora_a")
        a, b = leaves[path], leaves[f"{stem}lora_b"]
        layers = len(a.shape) + len(b.shape) - 2 - len(leaves[f"{stem}kernel"].shape)
        merged[f"{stem}kernel"] = _plus(leaves[f"{stem}kernel"], _Product(a, b, scale, layers))
    if CHORUS_DELTA in leaves:
        rows = config.text.vocab_size, config.first_chorus_id
        delta = _Rows(leaves[CHORUS_DELTA], *rows)
        merged["backbone/embedding"] = _plus(leaves["backbone/embedding"], delta)
    return config.replace(lora=None), trees.unflatten(merged)


def _adapter(kernel: nn.LogicallyPartitioned, rank: int, key: jax.Array) -> tuple[Any, Any]:
    """Initial A and B for a boxed kernel."""
    shape, names = kernel.value.shape, kernel.names
    layers = 1 if names[0] == "layers" else 0
    inputs = layers + (2 if names[layers] in _TWO_INPUTS else 1)
    bound = np.prod(shape[layers:inputs]) ** -0.5  # as PEFT's Kaiming initialisation has it
    a = jax.random.uniform(key, (*shape[:inputs], rank), minval=-bound, maxval=bound)
    b = jnp.zeros((*shape[:layers], rank, *shape[inputs:]))
    return (
        nn.LogicallyPartitioned(a, (*names[:inputs], "rank")),
        nn.LogicallyPartitioned(b, (*names[:layers], "rank", *names[inputs:])),
    )


class _Product:
    """s A B, computed whole or by slices."""

    def __init__(self, a: Any, b: Any, scale: float, layers: int):
        self.a, self.b, self.scale, self.layers = a, b, scale, layers
        self.inputs = len(a.shape) - 1

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        layers, inputs = index[: self.layers], index[self.layers : self.inputs]
        a = np.asarray(self.a[(*layers, *inputs)], np.float32)
        b = np.asarray(self.b[(*layers, slice(None), *index[self.inputs :])], np.float32)
        return self.of(a, b)

    def whole(self) -> jax.Array:
        return self.of(jnp.asarray(self.a, jnp.float32), jnp.asarray(self.b, jnp.float32))

    def of(self, a: Any, b: Any) -> Any:
        stack, rank = a.shape[: self.layers], a.shape[-1]
        shape = (*a.shape[:-1], *b.shape[self.layers + 1 :])
        a, b = a.reshape(*stack, -1, rank), b.reshape(*stack, rank, -1)
        return (self.scale * (a @ b)).reshape(shape)


class _Rows:
    """Zeros [V, D] except for `rows`, from row `first` on; computed whole or by slices."""

    def __init__(self, rows: Any, count: int, first: int):
        self.rows, self.count, self.first = rows, count, first

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        rows = np.asarray(self.rows[(slice(None), index[1])], np.float32)
        out = np.zeros((index[0].stop - index[0].start, rows.shape[1]), np.float32)
        for i, row in enumerate(rows):
            at = self.first + i - index[0].start
            if 0 <= at < len(out):
                out[at] = row
        return out

    def whole(self) -> jax.Array:
        after = self.count - self.first - self.rows.shape[0]
        return jnp.pad(jnp.asarray(self.rows, jnp.float32), ((self.first, after), (0, 0)))


def _plus(array: Any, more: _Product | _Rows) -> Any:
    if not isinstance(array, LazyArray):
        return (jnp.asarray(array).astype(jnp.float32) + more.whole()).astype(array.dtype)

    def read(index: tuple[slice, ...]) -> np.ndarray:
        return (array.read(index).astype(np.float32) + more[index]).astype(array.dtype)

    return LazyArray(array.shape, array.dtype, read)
