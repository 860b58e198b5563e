"""Which batches and meshes fit a pod."""

from __future__ import annotations

from collections.abc import Iterator

from ml_collections import ConfigDict

from crem_jax.config import ConfigError
from crem_jax.configs.schema import TrainConfig
from crem_jax.plan.compile import Plan, plan
from crem_jax.plan.pods import Pod


def meshes(devices: int) -> list[tuple[int, int, int]]:
    """Parameters split over all devices, over a quarter, and with their heads split in two."""
    shapes = [(1, devices, 1)]
    if devices % 4 == 0 and devices > 4:
        shapes.append((4, devices // 4, 1))
    if devices % 2 == 0 and devices > 2:
        shapes.append((1, devices // 2, 2))
    return shapes


def sweep(
    config: TrainConfig | ConfigDict, pod: Pod, first: int = 1, chunk: int = 0
) -> Iterator[Plan]:
    """Plans of `first`, twice, four times … as many sequences a chip, until one does not fit.

    A batch that does not divide over a mesh or into chunks is left out, and after three of them in
    a row the mesh is.

    Raises:
      ConfigError: nothing is left.
    """
    planned = False
    refused: ConfigError | None = None
    for shape in meshes(len(pod.devices)):
        batch, misses = first, 0
        while misses < 3:
            try:
                found = plan(config, pod, batch, chunk, shape)
            except ConfigError as error:
                refused, misses = error, misses + 1
            else:
                planned, misses = True, 0
                yield found
                if not found.fits:
                    break
            batch *= 2
    if refused is not None and not planned:
        raise refused
