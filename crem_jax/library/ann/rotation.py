"""A random rotation that is far cheaper than a dense one."""

from __future__ import annotations

import math

import numpy as np


class Rotation:
    """Random signs, then the Kronecker product of two random rotations: [n, D] -> [n, D].

    D = a · b with a and b as close as possible: D · (a + b) multiplications per vector instead of
    D². The same D and seed always give the same rotation.
    """

    def __init__(self, dim: int, seed: int = 0):
        rng = np.random.default_rng([dim, seed])
        a = next(a for a in range(math.isqrt(dim), 0, -1) if dim % a == 0)
        self._signs = rng.choice(np.array([-1, 1], np.float32), dim)
        self._left, self._right = (_orthogonal(rng, size) for size in (a, dim // a))

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        a, b = len(self._left), len(self._right)
        grid = (vectors * self._signs).reshape(-1, b) @ self._right
        return np.matmul(self._left, grid.reshape(-1, a, b)).reshape(-1, a * b)


def _orthogonal(rng: np.random.Generator, size: int) -> np.ndarray:
    q, r = np.linalg.qr(rng.standard_normal((size, size)))
    return (q * np.sign(np.diag(r))).astype(np.float32)
