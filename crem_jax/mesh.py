"""The device mesh and THE table from logical axes to mesh axes."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")

RULES: tuple[tuple[str, Any], ...] = (
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
)
"""Logical parameter axis -> mesh axis. Rows of a batch are split over data and fsdp."""


def make_mesh(shape: tuple[int, int, int] | None = None) -> Mesh:
    """A (data, fsdp, tensor) mesh; by default all devices on `data`.

    Raises:
      ValueError: the shape does not use every device.
    """
    count = jax.device_count()
    shape = shape or (count, 1, 1)
    if int(np.prod(shape)) != count:
        raise ValueError(f"mesh {tuple(shape)} needs {int(np.prod(shape))} devices, found {count}")
    return jax.make_mesh(tuple(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh) -> NamedSharding:
    """Sharding of an array whose first axis counts rows of a batch."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def param_shardings(abstract_params: Any, mesh: Mesh) -> Any:
    """Shardings of a tree of boxed parameters; an axis that does not divide stays whole."""

    def of(leaf: Any) -> NamedSharding:
        if not isinstance(leaf, nn.LogicallyPartitioned):
            return replicated(mesh)
        spec = nn.logical_to_mesh_axes(leaf.names, RULES)
        fitting = [
            axis if axis is not None and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(spec, leaf.value.shape, strict=True)
        ]
        return NamedSharding(mesh, PartitionSpec(*fitting))

    return jax.tree.map(of, abstract_params, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata))
