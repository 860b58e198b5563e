"""Sampling parameters, and choosing the next token."""

from __future__ import annotations

import dataclasses
import math
import secrets
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crem_jax.errors import CremError

_ODD = 0x9E3779B1
"""Step between the seeds of consecutive batches; odd, so that they only repeat after 2³²."""

_SEEDS = np.iinfo(np.int32)


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class Sampling:
    """Parameters of greedy decoding or nucleus sampling (arXiv 1904.09751).

    Requests with equal parameters can share a batch. Under `jax.jit` the fields are arrays: float32
    [], float32 [] and int32 [].

    Attributes:
      temperature: 0 is greedy.
      top_p: probability mass of the nucleus, from 0 (the most likely token alone) to 1.
      seed: an int32; None draws a random one for each batch.

    Raises:
      CremError: a number is out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = 0

    def __post_init__(self):
        if not 0 <= self.temperature < math.inf:
            raise CremError(f"temperature = {self.temperature} is not a number of at least 0")
        if not 0 <= self.top_p <= 1:
            raise CremError(f"top_p = {self.top_p} is not a number from 0 to 1")
        if self.seed is not None and not _SEEDS.min <= self.seed <= _SEEDS.max:
            raise CremError(f"seed = {self.seed} is not in {_SEEDS.min}..{_SEEDS.max}")

    def for_batch(self, number: int = 0) -> Sampling:
        """The parameters for batch `number` of a call: another seed for each but batch 0."""
        if self.seed is None:
            return dataclasses.replace(self, seed=secrets.randbelow(_SEEDS.max + 1))
        mixed = np.uint32((int(self.seed) + number * _ODD) % 2**32).view(np.int32)
        return dataclasses.replace(self, seed=int(mixed))

    def tree_flatten(self) -> tuple[tuple[Any, ...], None]:
        kinds = (np.float32, np.float32, np.int32)
        return tuple(map(_as_scalar, dataclasses.astuple(self), kinds)), None

    @classmethod
    def tree_unflatten(cls, _: None, leaves: tuple[Any, ...]) -> Sampling:
        sampling = object.__new__(cls)  # traced values have no range to check
        for field, leaf in zip(dataclasses.fields(cls), leaves, strict=True):
            object.__setattr__(sampling, field.name, leaf)
        return sampling


GREEDY = Sampling()


def _as_scalar(value: Any, kind: type) -> Any:
    """A number as a scalar of one type, so that nothing is compiled twice."""
    return kind(value) if isinstance(value, int | float | np.generic) else value


def next_token(
    logits: jax.Array, key: jax.Array, temperature: jax.Array, top_p: jax.Array
) -> jax.Array:
    """The next tokens: greedy at temperature 0, else by nucleus sampling.

    Args:
      logits: float32 [B, V]. temperature, top_p: float32 [].

    Returns:
      int32 [B].
    """
    greedy = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jax.lax.cond(
        temperature > 0, lambda: _nucleus(logits, key, temperature, top_p), lambda: greedy
    )


def _nucleus(logits, key, temperature, top_p) -> jax.Array:
    scaled = logits / jnp.maximum(temperature, 1e-6)
    ordered = jnp.sort(scaled, axis=-1, descending=True)
    share = jax.nn.softmax(ordered, axis=-1)
    # A token is in the nucleus if those before it sum to less than top_p; the best one always is.
    inside = (jnp.cumsum(share, axis=-1) - share < top_p).at[..., 0].set(True)
    floor = jnp.min(jnp.where(inside, ordered, jnp.inf), axis=-1, keepdims=True)
    nucleus = jnp.where(scaled >= floor, scaled, -jnp.inf)
    return jax.random.categorical(key, nucleus, axis=-1).astype(jnp.int32)
