"""Splits an axis into n equal parts.

Part j has every n-th element from j on. Each part of a sharded axis thus has elements of every
device, and no element moves between devices.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from crem_jax.errors import CremError


def equal_parts(size: int, largest: int, what: str) -> int:
    """The smallest number of equal parts of at most `largest` elements; 1 if `largest` is 0.

    Args:
      what: names the axis in errors.

    Raises:
      CremError: only far smaller parts divide `size`.
    """
    if not largest or largest >= size:
        return 1
    fewest = -(-size // largest)
    parts = next(count for count in range(fewest, size + 1) if size % count == 0)
    if parts > 4 * fewest:
        raise CremError(
            f"{what} = {size} has no equal parts near {largest}; expected a multiple of 128"
        )
    return parts


def part(tree: Any, parts: int, index: jax.Array | int) -> Any:
    """Part `index` of the first axis of every array."""
    if parts == 1:
        return tree

    def of(x: jax.Array) -> jax.Array:
        split = x.reshape(x.shape[0] // parts, parts, *x.shape[1:])
        return jax.lax.dynamic_index_in_dim(split, index, 1, keepdims=False)

    return jax.tree.map(of, tree)


def join_parts(tree: Any) -> Any:
    """Inverse of `part`: stacked parts [n, size, …] -> [n * size, …]."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), tree)
