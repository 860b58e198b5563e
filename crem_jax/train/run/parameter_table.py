"""The table of a run's parameters: what there is, how it lies on the devices, what trains."""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax

from crem_jax import trees
from crem_jax.train.objective.step import TrainState

FILE = "parameters.txt"


def parameter_table(state: TrainState, rates: Mapping[str, float]) -> str:
    """One line a parameter and the totals.

    Args:
      state: arrays, or ShapeDtypeStructs with shardings.
      rates: path -> multiplier of the learning rate, 0 for what is frozen.
    """
    leaves = trees.flatten(state.params)
    rows = [("parameter", "shape", "count", "type", "split over", "learning rate")]
    for path, leaf in leaves.items():
        rows.append(
            (
                path,
                "×".join(map(str, leaf.shape)) or "1",
                f"{math.prod(leaf.shape):,}",
                str(leaf.dtype),
                _split(leaf.sharding),
                f"× {rates[path]:g}" if rates[path] else "frozen",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, "", _summary(state, rates)]) + "\n"


def _summary(state: TrainState, rates: Mapping[str, float]) -> str:
    leaves = trees.flatten(state.params)
    count = sum(math.prod(leaf.shape) for leaf in leaves.values())
    trained = sum(math.prod(leaf.shape) for path, leaf in leaves.items() if rates[path])
    moments = _bytes(state.opt_state)
    return (
        f"{count:,} parameters ({_size(_bytes(state.params))}), of which {trained:,} train "
        f"({trained / count:.1%}; optimiser state {_size(moments)})"
    )


def _bytes(tree: object) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _split(sharding: object) -> str:
    spec = getattr(sharding, "spec", ())
    axes = [axis if isinstance(axis, str) else "×".join(axis) for axis in spec if axis]
    return ", ".join(axes) or "-"


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.2f} GB"
