"""Search among vectors that are kept in the memory of accelerators, split over a mesh."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from crem_jax.errors import CremError


class DeviceVectors:
    """Vectors split by rows over all devices of a mesh.

    Every device finds the best of its own rows; those are gathered and ranked. `recall` 1 compares
    and sorts exactly (`jax.lax.top_k`); less uses `jax.lax.approx_max_k` (arXiv 2206.14286), much
    faster on TPUs, with so much expected recall. The products are computed in float32 either way.

    Args:
      vectors: [n, D], L2-normalised. mesh: any; its axes are all used for rows.
      dtype: of the stored vectors.
    """

    def __init__(self, vectors: np.ndarray, mesh: Mesh, dtype: str = "bfloat16"):
        self.count, dim = vectors.shape
        padded = -(-self.count // mesh.size) * mesh.size
        rows = np.zeros((padded, dim), jnp.dtype(dtype))
        rows[: self.count] = vectors
        self._mesh = mesh
        self._rows = jax.device_put(rows, NamedSharding(mesh, PartitionSpec(mesh.axis_names)))

    def search(
        self, queries: np.ndarray, top: int, recall: float = 1.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers int32 [q, top] and cosines float32 [q, top], best first.

        Args:
          queries: float32 [q, D]. top: at most the number of vectors.

        Raises:
          ValueError: `top` or `recall` is out of range.
        """
        if not 1 <= top <= self.count:
            raise CremError(f"top = {top} is not in 1..{self.count} (vectors)")
        if not 0 < recall <= 1:
            raise CremError(f"recall = {recall} is not above 0 and at most 1")
        queries = jnp.asarray(queries, jnp.float32)
        scores, rows = _search(self._mesh, self.count, top, recall, self._rows, queries)
        return np.asarray(rows), np.asarray(scores)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _search(mesh: Mesh, count: int, top: int, recall: float, rows: jax.Array, queries: jax.Array):
    axes = mesh.axis_names

    def own(part: jax.Array, queries: jax.Array) -> tuple[jax.Array, jax.Array]:
        first = jax.lax.axis_index(axes) * len(part)
        scores = jnp.einsum(
            "QD,RD->QR", queries, part.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
        )
        real = first + jnp.arange(len(part)) < count
        scores = jnp.where(real, scores, -jnp.inf)
        k = min(top, len(part))
        if recall < 1:
            best, row = jax.lax.approx_max_k(scores, k, recall_target=recall)
        else:
            best, row = jax.lax.top_k(scores, k)
        gather = functools.partial(jax.lax.all_gather, axis_name=axes, axis=1, tiled=True)
        best, row = gather(best), gather(first + row)
        best, at = jax.lax.top_k(best, top)
        return best, jnp.take_along_axis(row, at, axis=1)

    return jax.shard_map(
        own,
        mesh=mesh,
        in_specs=(PartitionSpec(axes), PartitionSpec()),
        out_specs=PartitionSpec(),
        check_vma=False,
    )(rows, queries)
