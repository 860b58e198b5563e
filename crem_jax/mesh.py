"""The device mesh, and the table that maps logical axes to mesh axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from crem_jax.errors import CremError

AXES = ("data", "fsdp", "tensor")

RULES: tuple[tuple[str, Any], ...] = (
    ("batch", ("data", "fsdp")),
    ("vocab", "tensor"),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("vision_embed", "fsdp"),
    ("vision_heads", "tensor"),
    ("vision_mlp", "tensor"),
    ("layers", None),
    ("head_dim", None),
    ("qkv", None),
    ("channels", None),
    ("time", None),
    ("pixels", None),
    ("merge", None),
    ("length", None),
    ("rank", None),
    ("chorus", None),
)
"""Logical axis -> mesh axes, for parameters and activations; of an array's axes, the first in this
table gets a mesh axis.

The rows of an activation take data and fsdp, so its embed axis stays whole; parameters, split along
embed over fsdp, are gathered layer by layer.
"""


def make_mesh(
    shape: tuple[int, int, int] | None = None, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A (data, fsdp, tensor) mesh.

    Args:
      shape: sizes of the three axes; None puts all devices on `data`.
      devices: None is all devices of all processes.

    Raises:
      CremError: the shape does not use every device.
    """
    count = jax.device_count() if devices is None else len(devices)
    shape = shape or (count, 1, 1)
    if int(np.prod(shape)) != count:
        raise CremError(f"mesh {tuple(shape)} needs {int(np.prod(shape))} devices, found {count}")
    types = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(tuple(shape), AXES, axis_types=types, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh) -> NamedSharding:
    """The sharding of an array whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def spec(names: Sequence[str | None], shape: Sequence[int], mesh: Any) -> PartitionSpec:
    """The PartitionSpec of an array by RULES; an axis that does not divide evenly stays whole.

    Args:
      names: logical names of its axes. mesh: a Mesh or AbstractMesh.
    """

    def fits(axes: Any, size: int) -> bool:
        axes = (axes,) if isinstance(axes, str) else axes
        return size % int(np.prod([mesh.shape[axis] for axis in axes])) == 0

    wanted = nn.logical_to_mesh_axes(names, RULES) or ()
    pairs = zip(wanted, shape, strict=True)
    return PartitionSpec(*(axes if axes and fits(axes, size) else None for axes, size in pairs))


def param_shardings(abstract_params: Any, mesh: Mesh) -> Any:
    """The shardings of a tree of boxed parameters (`crem.abstract`)."""

    def of(leaf: Any) -> NamedSharding:
        if not isinstance(leaf, nn.LogicallyPartitioned):
            return replicated(mesh)
        return NamedSharding(mesh, spec(leaf.names, leaf.value.shape, mesh))

    return jax.tree.map(of, abstract_params, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata))


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Constrains an activation's sharding by RULES on the current mesh (`jax.set_mesh`), if any."""
    mesh = _automatic_mesh()
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, spec(names, x.shape, mesh))


def by_rows_and_heads(
    attention: Callable[..., jax.Array],
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    rows: jax.Array,
    columns: jax.Array,
) -> jax.Array:
    """Maps an attention kernel that the compiler cannot partition over batch rows and heads.

    Args:
      attention: (q, k, v, rows, columns) -> [B, N, T, H].
      q: [B, N, T, H]. k, v: [B, G, C, H]. rows: [B, T]. columns: [B, C].
    """
    mesh = _automatic_mesh()
    if mesh is None:
        return attention(q, k, v, rows, columns)
    by_head = spec(("batch", "heads", "length", "head_dim"), q.shape, mesh)
    if by_head[1]:
        k, v = (spread_heads(x, q.shape[1], mesh.shape["tensor"]) for x in (k, v))
    ids = PartitionSpec(by_head[0])
    return jax.shard_map(
        attention,
        in_specs=(by_head, by_head, by_head, ids, ids),
        out_specs=by_head,
        check_vma=False,
    )(q, k, v, rows, columns)


def spread_heads(x: jax.Array, heads: int, parts: int) -> jax.Array:
    """Repeats key/value heads until they divide by `parts` devices, aligned with their query heads.

    Args:
      x: [B, G, C, H]. heads: number of query heads, a multiple of `parts` and of G.
    """
    groups = x.shape[1]
    return jnp.repeat(x, math.lcm(groups, parts) // groups, axis=1)


def _automatic_mesh() -> Any:
    """The current mesh if the compiler partitions over it; None without one or in `shard_map`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or any(t != AxisType.Auto for t in mesh.axis_types):
        return None
    return mesh
