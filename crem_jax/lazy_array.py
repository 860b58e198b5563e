"""Arrays that are read piece by piece on demand, for models larger than memory.

A tree of LazyArrays stands for a model on disk. Converting, verifying, and loading onto a device
mesh all read it piece by piece, so none of them holds more than a few pieces at once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

Index = tuple[slice, ...]
"""One slice with explicit bounds for each axis."""

PIECE_BYTES = 128 << 20
"""Number of bytes read, converted and written at a time."""

CHUNK_BYTES = 32 << 20
"""Bytes of a checkpoint's storage chunk, the smallest unit that a host reads for its shard."""


@dataclasses.dataclass(frozen=True, eq=False)
class LazyArray:
    """An array of which any box can be read as a numpy array.

    Attributes:
      shape: of the whole array. dtype: of the arrays that `read` returns.
      read: a pure function of the box, given as one slice with explicit bounds for each axis.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[Index], np.ndarray]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __getitem__(self, index: Any) -> np.ndarray:
        """Reads a box of slices without steps, as JAX shardings give them; `[...]` reads it all."""
        index = index if isinstance(index, tuple) else () if index is ... else (index,)
        index += (slice(None),) * (self.ndim - len(index))
        bounds = (s.indices(n) for s, n in zip(index, self.shape, strict=True))
        return self.read(tuple(slice(start, stop) for start, stop, _ in bounds))

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        out = np.empty(self.shape, dtype or self.dtype)
        for index in self.pieces():
            out[index] = self.read(index)
        return out

    def chunks(self) -> tuple[int, ...]:
        """Shape of the units to store it in, at most CHUNK_BYTES each where rows allow."""
        return _box(self.shape, self.dtype.itemsize, CHUNK_BYTES)

    def pieces(self) -> Iterator[Index]:
        """Boxes that cover the array in order, whole chunks along the first axis."""
        if not self.shape:
            yield ()
            return
        unit = self.chunks()[0]
        row = max(self.nbytes // max(self.shape[0], 1), 1)
        step = max(PIECE_BYTES // (row * unit), 1) * unit
        rest = tuple(slice(0, n) for n in self.shape[1:])
        for start in range(0, self.shape[0], step):
            yield (slice(start, min(start + step, self.shape[0])), *rest)

    def astype(self, dtype: Any) -> LazyArray:
        """The same array, converted as it is read."""
        dtype = np.dtype(dtype)
        if dtype == self.dtype:
            return self
        return LazyArray(self.shape, dtype, lambda index: self.read(index).astype(dtype))


def of(array: Any) -> LazyArray:
    """Any array (numpy, JAX, lazy) as a LazyArray."""
    if isinstance(array, LazyArray):
        return array
    shape, dtype = tuple(np.shape(array)), np.dtype(array.dtype)
    return LazyArray(shape, dtype, lambda index: np.asarray(array[index]))


def materialise(tree: Any, dtype: Any = None, shardings: Any = None) -> Any:
    """A tree of LazyArrays as arrays.

    Args:
      dtype: to convert to; None keeps each array's own.
      shardings: a tree of `jax.sharding.Sharding`: then the arrays are JAX's, and each process
        reads no more than the boxes of its own devices. None gives numpy arrays.
    """

    def whole(leaf: LazyArray) -> np.ndarray:
        return np.asarray(leaf, dtype)

    def spread(leaf: LazyArray, sharding: jax.sharding.Sharding) -> jax.Array:
        leaf = leaf if dtype is None else leaf.astype(dtype)
        return jax.make_array_from_callback(leaf.shape, sharding, leaf.__getitem__)

    if shardings is None:
        return jax.tree.map(whole, tree)
    return jax.tree.map(spread, tree, shardings)


def same(one: LazyArray, other: LazyArray) -> bool:
    """Whether both hold the same bits; compared piece by piece."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    pairs = ((one.read(index), other.read(index)) for index in one.pieces())
    return all(np.array_equal(_bits(a), _bits(b)) for a, b in pairs)


def _bits(array: np.ndarray) -> np.ndarray:
    return array.view(f"u{array.itemsize}")


def _box(shape: Sequence[int], itemsize: int, most: int) -> tuple[int, ...]:
    """The largest box of whole trailing axes within `most` bytes, or one row of a larger one."""
    box = list(shape)
    for axis in range(len(shape)):
        inner = math.prod(shape[axis + 1 :]) * itemsize
        box[axis] = max(min(most // max(inner, 1), shape[axis]), 1)
        if inner <= most:
            break
    return tuple(box)
