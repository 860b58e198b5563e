"""TPU chips by Google's published figures."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of a TPU chip (cloud.google.com/tpu/docs).

    Attributes:
      flops: peak bfloat16 FLOP/s. hbm: memory in bytes. bandwidth: of HBM, in bytes/s.
      links: outgoing bytes/s over all links to other chips.
    """

    name: str
    flops: float
    hbm: float
    bandwidth: float
    links: float


GIB = 2.0**30

CHIPS = {
    "v4": Chip("v4", 275e12, 32 * GIB, 1228e9, 300e9),
    "v5e": Chip("v5e", 197e12, 16 * GIB, 819e9, 200e9),
    "v5p": Chip("v5p", 459e12, 95 * GIB, 2765e9, 600e9),
    "v6e": Chip("v6e", 918e12, 32 * GIB, 1640e9, 400e9),
    "tpu7x": Chip("tpu7x", 2307e12, 192 * GIB, 7380e9, 600e9),
}
