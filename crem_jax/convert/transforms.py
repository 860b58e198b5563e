"""Layout conversions between crem_jax's parameters and Hugging Face's tensors, as numpy views."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

Shape = tuple[int, ...]

_CACHE_BYTES = 256 << 10


@dataclasses.dataclass(frozen=True)
class Same:
    """The same layout on both sides; base class of the other conversions."""

    def hf_shape(self, shape: Shape) -> Shape:
        return shape

    def to_crem(self, array: np.ndarray, shape: Shape) -> np.ndarray:
        return array

    def to_hf(self, array: np.ndarray) -> np.ndarray:
        return array


@dataclasses.dataclass(frozen=True)
class Flat(Same):
    """Axes flattened into one: a bias [heads, H] is [heads * H] in Hugging Face's model."""

    def hf_shape(self, shape: Shape) -> Shape:
        return (math.prod(shape),)

    def to_crem(self, array: np.ndarray, shape: Shape) -> np.ndarray:
        return array.reshape(shape)

    def to_hf(self, array: np.ndarray) -> np.ndarray:
        return array.reshape(self.hf_shape(array.shape))


@dataclasses.dataclass(frozen=True)
class Linear(Same):
    """A kernel [*in, *out], whose first `contract` axes are inputs, is a matrix [out, in]."""

    contract: int = 1

    def hf_shape(self, shape: Shape) -> Shape:
        return math.prod(shape[self.contract :]), math.prod(shape[: self.contract])

    def to_crem(self, array: np.ndarray, shape: Shape) -> np.ndarray:
        return array.T.reshape(shape)

    def to_hf(self, array: np.ndarray) -> np.ndarray:
        return array.reshape(self.hf_shape(array.shape)[::-1]).T


@dataclasses.dataclass(frozen=True)
class Patch(Same):
    """A patch kernel [C, t, p * p, E] is a convolution kernel [E, C, t, p, p]."""

    def hf_shape(self, shape: Shape) -> Shape:
        channels, time, pixels, features = shape
        return features, channels, time, math.isqrt(pixels), math.isqrt(pixels)

    def to_crem(self, array: np.ndarray, shape: Shape) -> np.ndarray:
        return np.moveaxis(array, 0, -1).reshape(shape)

    def to_hf(self, array: np.ndarray) -> np.ndarray:
        return np.moveaxis(array, -1, 0).reshape(self.hf_shape(array.shape))


def copy(source: np.ndarray, out: np.ndarray) -> np.ndarray:
    """`out[...] = source`, three times as fast as numpy if `source` is transposed.

    It copies block by block of the source's rows, which stay in the CPU's cache until the last of
    their columns has been read.
    """
    if source.dtype != out.dtype or not source.ndim:
        out[...] = source
        return out
    bits = f"u{source.itemsize}"  # numpy copies bfloat16 value by value, holding the lock
    source, target = source.view(bits), out.view(bits)
    axis = int(np.argmax(source.strides))
    step = max(_CACHE_BYTES // max(source.strides[axis], 1), 1)
    ahead = (slice(None),) * axis
    for start in range(0, source.shape[axis], step):
        block = (*ahead, slice(start, start + step))
        target[block] = source[block]
    return out
