"""Samples `[V, T, U, Q, A]` built by hand: tokens, M-RoPE positions, regions and patches.

Nothing here uses our prompt builder or mask, so that it can serve as their oracle.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from crem_jax.data.inputs.padding import ContextRow, TargetRow
from crem_jax.types import CHORUS, CONTEXT, PAD, TARGET, Patches

END, IM_START, IM_END, VISION_START, VISION_END, IMAGE, VIDEO = range(256, 263)


@dataclasses.dataclass(frozen=True)
class Row:
    """A sample `[V, T, U, Q, A]`: pictures first, then text, the chorus and the target."""

    context: tuple[int, ...]
    target: tuple[int, ...]
    grids: tuple[tuple[int, int], ...]
    pixels: tuple[np.ndarray, ...]

    def sequence(self, chorus: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """tokens [n], positions [n, 3] and regions [n], from the paper's rule, token by token."""
        tokens = [*self.context, *chorus, *self.target]
        regions = [CONTEXT] * len(self.context) + [CHORUS] * len(chorus)
        regions += [TARGET] * len(self.target)
        positions, start, picture, i = [], 0, 0, 0
        while i < len(tokens):
            if tokens[i] != IMAGE:
                positions.append((start,) * 3)
                start, i = start + 1, i + 1
                continue
            rows, columns = (side // 2 for side in self.grids[picture])
            positions += [
                (start, start + r, start + c) for r in range(rows) for c in range(columns)
            ]
            start, i, picture = start + max(rows, columns), i + rows * columns, picture + 1
        return np.array(tokens), np.array(positions), np.array(regions)

    def packed(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pixels [p, values], places [p, 2] and picture numbers [p] of all patches."""
        places, numbers = [], []
        for number, (height, width) in enumerate(self.grids, start=1):
            for r in range(0, height, 2):
                for c in range(0, width, 2):
                    places += [(r, c), (r, c + 1), (r + 1, c), (r + 1, c + 1)]
            numbers += [number] * (height * width)
        pixels = np.concatenate([np.zeros((0, 48), np.uint8), *self.pixels])
        return pixels, np.array(places, np.int32).reshape(-1, 2), np.array(numbers, np.int32)

    def halves(self) -> tuple[ContextRow, TargetRow]:
        """What `pad_contexts` and `pad_targets` take."""
        tokens, position, _ = self.sequence(())
        n = len(self.context)
        context = ContextRow(tokens[:n], position[:n], *self.packed())
        return context, TargetRow(tokens[n:], np.full(len(self.target), -1))


def random_row(
    rng: np.random.Generator,
    grids: tuple[tuple[int, int], ...] = (),
    text: int = 3,
    target: int = 4,
) -> Row:
    """Random bytes around pictures of the given patch grids (even numbers)."""

    def words(count: int) -> list[int]:
        return [int(token) for token in rng.integers(0, 256, count)]

    context = [IM_START, *words(2)]
    for height, width in grids:
        context += [VISION_START, *[IMAGE] * (height * width // 4), VISION_END]
    pixels = tuple(rng.integers(0, 256, (h * w, 48), dtype=np.uint8) for h, w in grids)
    return Row((*context, *words(text)), tuple(words(target)), grids, pixels)


def rows_of_every_kind(rng: np.random.Generator) -> list[Row]:
    """One picture, pictures of different sizes, text only; lengths drawn at random."""

    def length() -> int:
        return int(rng.integers(1, 6))

    kinds = [((2, 4),), ((4, 2), (2, 2), (4, 4)), (), ((4, 4), (2, 6))]
    return [random_row(rng, grids, length(), length()) for grids in kinds]


@dataclasses.dataclass(frozen=True)
class Batch:
    """Whole sequences padded on one side: numpy [B, W], positions [B, W, 3], packed patches."""

    rows: list[Row]
    tokens: np.ndarray
    position: np.ndarray
    region: np.ndarray
    patches: Patches


def whole(rows: list[Row], chorus: tuple[int, ...], width: int, patches: int, side: str) -> Batch:
    """Pads on the "left" or the "right"."""
    shape = (len(rows), width)
    tokens, position = np.full(shape, END), np.zeros((*shape, 3), np.int32)
    region = np.full(shape, PAD)
    pixels = np.zeros((len(rows), patches, 48), np.uint8)
    places = np.zeros((len(rows), patches, 2), np.int32)
    picture = np.zeros((len(rows), patches), np.int32)
    for i, row in enumerate(rows):
        sequence = row.sequence(chorus)
        n = len(sequence[0])
        at = slice(0, n) if side == "right" else slice(width - n, width)
        tokens[i, at], position[i, at], region[i, at] = sequence
        packed = row.packed()
        p = len(packed[2])
        pixels[i, :p], places[i, :p], picture[i, :p] = packed
    return Batch(rows, tokens, position, region, Patches(pixels, places, picture))
