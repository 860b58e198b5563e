"""TPU topologies to plan for, without access to a TPU."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils, topologies
from jax.sharding import AxisType, Mesh

from crem_jax.chips import CHIPS, Chip
from crem_jax.config import ConfigError
from crem_jax.mesh import AXES


@dataclasses.dataclass(frozen=True)
class Pod:
    """Chips wired together.

    Attributes:
      devices: JAX's, `per_chip` of them on every chip (v4 and tpu7x have two).
    """

    topology: str
    chip: Chip
    chips: int
    devices: Sequence

    @property
    def per_chip(self) -> int:
        return len(self.devices) // self.chips

    def mesh(self, shape: tuple[int, int, int]) -> Mesh:
        """Neighbours on the mesh are neighbours in the pod.

        Raises:
          ConfigError: the shape does not use every device.
        """
        if math.prod(shape) != len(self.devices):
            raise ConfigError(
                f"mesh {tuple(shape)} needs {math.prod(shape)} devices, "
                f"{self.topology} has {len(self.devices)}"
            )
        try:
            grid = mesh_utils.create_device_mesh(shape, self.devices)
        except (NotImplementedError, ValueError):  # no neighbourly order of this shape
            grid = np.asarray(self.devices).reshape(shape)
        return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def find_pod(topology: str) -> Pod:
    """The pod of a name such as "v5e:16x16", "v5p:4x8x8".

    Raises:
      ConfigError: no such pod, or libtpu is not installed.
    """
    match = re.fullmatch(r"([a-z0-9]+):(\d+(?:x\d+)*)", topology)
    if not match or match[1] not in CHIPS:
        raise ConfigError(
            f"--topology {topology!r} is not KIND:SIZE with a kind of {', '.join(CHIPS)}, "
            "such as v5e:16x16, v6e:16x16 or v5p:4x8x8"
        )
    try:
        import libtpu  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "planning for TPUs needs their compiler: pip install 'crem_jax[plan]'"
        ) from error
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(f"--topology {topology!r}: {str(error).splitlines()[0]}") from error
    chips = math.prod(int(size) for size in match[2].split("x"))
    return Pod(topology, CHIPS[match[1]], chips, devices)
