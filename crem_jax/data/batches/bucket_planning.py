"""Plans buckets for a data set: widths and rows from the sizes of its images."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from crem_jax.data.images.patches import fill_grid
from crem_jax.errors import CremError

STEP = 8
"""Widths are multiples of this many vision tokens (32 patches of Qwen2-VL)."""


Size = tuple[int, int, int]
"""An image: height and width in pixels, and its vision tokens at the model's own resolution."""


def best_widths(
    pictures: Sequence[Size], count: int, keep: float = 0.9, step: int = STEP
) -> tuple[int, ...]:
    """The `count` bucket widths, in vision tokens, with the least total loss, in rising order.

    The loss of an image in a bucket is its padding plus the vision tokens it gives up when shrunk
    to fit; it must keep at least the share `keep` of them. Solved exactly by dynamic programming.

    Args:
      pictures: a sample of the data set. count: the number of widths. step: widths are multiples
        of it.

    Raises:
      CremError: there are no images, or too few widths for every image to keep the share `keep`.
    """
    tally = Counter(pictures)
    order = sorted(tally, key=lambda size: size[2])
    if not order or order[0][2] < 1 or count < 1:
        raise CremError(f"cannot choose {count} widths for {len(order)} sizes")
    values = np.array([tokens for _, _, tokens in order])
    low, high = int(values[0] * keep) // step, -(-int(values[-1]) // step)
    widths = np.arange(max(1, low), high + 1) * step
    weights = np.array([tally[size] for size in order])
    loss = _losses(order, widths, keep) * weights  # [widths, sizes]
    rank = np.searchsorted(values, widths, side="right")  # sizes that fit whole
    summed = np.cumsum(loss, axis=1)

    def whole(b: int) -> float:
        return summed[b, rank[b] - 1] if rank[b] else 0.0

    best = np.array([whole(b) for b in range(len(widths))])
    before = np.full((count, len(widths)), -1)
    for n in range(1, count):
        longer = best.copy()
        for b in range(len(widths)):
            for a in range(b):
                between = slice(rank[a], rank[b])
                total = best[a] + np.minimum(loss[a, between], loss[b, between]).sum()
                if total < longer[b]:
                    longer[b], before[n, b] = total, a
        best = longer
    rest = [summed[b, -1] - whole(b) if whole(b) < np.inf else np.inf for b in range(len(widths))]
    last = int(np.argmin(best + np.array(rest)))
    if not np.isfinite(best[last] + rest[last]):
        raise CremError(
            f"{count} widths are too few for pictures of {values[0]} to {values[-1]} tokens that "
            f"keep {keep:.0%} of them; give more, or a smaller keep"
        )
    chosen = [last]
    for n in range(count - 1, 0, -1):
        if before[n, chosen[-1]] >= 0:
            chosen.append(int(before[n, chosen[-1]]))
    return tuple(int(width) for width in widths[sorted(chosen)])


def share_rows(
    pictures: Sequence[Size], widths: Sequence[int], rows: int, unit: int = 1, keep: float = 0.9
) -> tuple[int, ...]:
    """Distributes `rows` over the widths in proportion to the images that suit each best.

    Args:
      unit: rows of a width are a multiple of it, the number of devices that share a batch.

    Raises:
      CremError: `rows` is not a multiple of `unit`, or is less than one unit per width.
    """
    units = rows // unit
    if rows % unit or units < len(widths):
        raise CremError(
            f"{rows} rows are no multiple of {unit}, or too few for {len(widths)} widths"
        )
    loss = _losses(pictures, np.asarray(widths, np.int64), keep)
    exact = np.bincount(np.argmin(loss, axis=0), minlength=len(widths)) / len(pictures) * units
    shares = np.maximum(np.floor(exact).astype(int), 1)
    while shares.sum() < units:
        shares[np.argmax(exact - shares)] += 1
    while shares.sum() > units:
        shares[np.argmax(np.where(shares > 1, shares - exact, -np.inf))] -= 1
    return tuple(int(share) * unit for share in shares)


def _losses(pictures: Sequence[Size], widths: np.ndarray, keep: float) -> np.ndarray:
    """Tokens lost by each image in each width, [widths, images]; infinite below `keep`."""
    loss = np.full((len(widths), len(pictures)), np.inf)
    for j, (height, width, tokens) in enumerate(pictures):
        for i, room in enumerate(widths):
            used = tokens
            if tokens > room:
                used = (
                    math.prod(fill_grid(height, width, int(room))) if room >= keep * tokens else 0
                )
            if used >= keep * tokens:
                loss[i, j] = loss_of(tokens, used, int(room))
    return loss


def loss_of(tokens: int, used: int, room: int) -> int:
    """Padding slots plus vision tokens given up to fit, of an image in a bucket."""
    return (room - used) + (tokens - used)
