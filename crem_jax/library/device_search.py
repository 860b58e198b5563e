"""Exact search on accelerators, with a library's vectors sharded over their memory."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from crem_jax.errors import CremError
from crem_jax.library.conditions import SECONDS
from crem_jax.library.entry import Hit
from crem_jax.library.stores.protocols import Entries
from crem_jax.mesh import make_mesh

_ROWS = 1024  # rows per device are a multiple of this, so that a growing library seldom recompiles


def accelerators() -> list[jax.Device]:
    """This process's devices other than CPUs."""
    return [device for device in jax.local_devices() if device.platform != "cpu"]


class DeviceSearch:
    """Searches a library exactly, comparing a query with all entries on devices.

    Vectors are loaded when a column is first searched, and reloaded when the library has changed;
    for a database without versions (`Entries.version`), on every search. Threads may search
    concurrently.

    Args:
      devices: devices over which the vectors are sharded; None is all of this process.
    """

    def __init__(self, entries: Entries, devices: Sequence[jax.Device] | None = None):
        self._entries, self._mesh = entries, make_mesh(devices=devices or jax.local_devices())
        self._lock = threading.Lock()  # guards _loaded
        self._loaded: dict[str, tuple[int | None, np.ndarray, DeviceVectors]] = {}

    def search(
        self,
        vector: np.ndarray,
        column: str,
        top: int,
        where: str | None,
        seconds: float = SECONDS,
    ) -> list[Hit]:
        """The entries nearest to a float32 [D] query by cosine, best first.

        Args:
          column: the vector column. where: a filter in the database's own language.
          seconds: that the filter may take.
        """
        ids, vectors = self._load(column)
        chosen = np.ones(len(ids), bool)
        if where is not None:
            named = [batch["id"] for batch in self._entries.scan(["id"], where, seconds)]
            chosen = np.isin(ids, np.concatenate(named or [ids[:0]]))
        top = min(top, int(chosen.sum()))
        if not top:
            return []
        (rows,), (scores,) = vectors.search(vector[None], top, only=chosen)
        entries = self._entries.get(ids[rows].tolist())
        return [
            Hit(dataclasses.replace(entry, vectors=np.zeros((0, 0), np.float16)), float(score))
            for entry, score in zip(entries, scores, strict=True)
            if entry is not None  # deleted meanwhile
        ]

    def _load(self, column: str) -> tuple[np.ndarray, DeviceVectors]:
        """The ids and vectors of the table's newest version."""
        with self._lock:
            version = self._entries.version()
            if version is None or column not in self._loaded or self._loaded[column][0] != version:
                batches = list(self._entries.scan(["id", column]))
                ids = np.concatenate([batch["id"] for batch in batches] or [np.zeros(0, object)])
                stored = [batch[column] for batch in batches] or [np.zeros((0, 1), np.float16)]
                vectors = DeviceVectors(np.concatenate(stored), self._mesh, "float16")
                self._loaded[column] = version, ids, vectors
            return self._loaded[column][1:]


class DeviceVectors:
    """Vectors sharded by rows over all devices of a mesh.

    Each device finds the best of its rows; these are gathered and ranked. With `recall` 1 the
    search is exact (`jax.lax.top_k`); below, it uses `jax.lax.approx_max_k` (arXiv 2206.14286) with
    that expected recall, which is much faster on TPUs. Products are computed in float32.

    Args:
      vectors: [n, D], L2-normalised. mesh: any mesh; rows are sharded over all its axes.
      dtype: type in which the vectors are stored.
    """

    def __init__(self, vectors: np.ndarray, mesh: Mesh, dtype: str = "bfloat16"):
        self.count, dim = vectors.shape
        unit = mesh.size * _ROWS
        padded = max(-(-self.count // unit), 1) * unit
        rows = np.zeros((padded, dim), jnp.dtype(dtype))
        rows[: self.count] = vectors
        self._mesh, self._by_rows = mesh, NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._rows = jax.device_put(rows, self._by_rows)

    def search(
        self,
        queries: np.ndarray,
        top: int,
        recall: float = 1.0,
        only: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The nearest rows, best first: indices int32 [q, top] and cosines float32 [q, top].

        Args:
          queries: float32 [q, D]. top: at most the number of vectors.
          only: bool [n], the rows to search, at least `top` of them; None is all.

        Raises:
          CremError: `top` or `recall` is out of range.
        """
        if not 1 <= top <= self.count:
            raise CremError(f"top = {top} is not in 1..{self.count} (vectors)")
        if not 0 < recall <= 1:
            raise CremError(f"recall = {recall} is not above 0 and at most 1")
        real = np.zeros(len(self._rows), bool)
        real[: self.count] = True if only is None else only
        some = jnp.asarray(queries, jnp.float32)
        mask = jax.device_put(real, self._by_rows)
        scores, rows = _search(self._mesh, top, recall, self._rows, mask, some)
        return np.asarray(rows), np.asarray(scores)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _search(
    mesh: Mesh, top: int, recall: float, rows: jax.Array, real: jax.Array, queries: jax.Array
):
    axes = mesh.axis_names

    def own(part: jax.Array, real: jax.Array, queries: jax.Array) -> tuple[jax.Array, jax.Array]:
        first = jax.lax.axis_index(axes) * len(part)
        scores = jnp.einsum(
            "QD,RD->QR", queries, part.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
        )
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
        in_specs=(PartitionSpec(axes), PartitionSpec(axes), PartitionSpec()),
        out_specs=PartitionSpec(),
        check_vma=False,
    )(rows, real, queries)
