"""Ranks pictures of a folder by how well they match a query."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from crem_jax.errors import CremError

if TYPE_CHECKING:
    from crem_jax.data.records import Item
    from crem_jax.inference.model import Model

_AT_ONCE = 256  # pictures whose patches are held in memory


@dataclasses.dataclass(frozen=True)
class Found:
    """A picture and its cosine similarity to the query."""

    path: Path
    score: float


@dataclasses.dataclass(frozen=True)
class Ranking:
    """found: best first. skipped: (file, why it cannot be used)."""

    found: tuple[Found, ...]
    skipped: tuple[tuple[Path, str], ...]


def rank_pictures(
    model: Model,
    query: Item,
    paths: Sequence[Path],
    k: int | None = None,
    dim: int | None = None,
) -> Ranking:
    """Ranks pictures; those that cannot be used are left out and listed.

    Args:
      k: read only the first k chorus tokens; None is all.
      dim: compare only the first numbers of the embeddings; None is all.

    Raises:
      CremError: the model cannot find, the query cannot be used, or no picture can.
    """
    (wanted,) = model.encode([query], k, dim)
    found: list[Found] = []
    skipped: list[tuple[Path, str]] = []
    for first in range(0, len(paths), _AT_ONCE):
        usable, rows = [], []
        for path in paths[first : first + _AT_ONCE]:
            try:
                rows.append(model.runner.prepare(path))
            except CremError as error:
                skipped.append((path, str(error)))
            else:
                usable.append(path)
        if rows:
            found += _scored(usable, model.encode(rows, k, dim) @ wanted)
    if not found:
        raise CremError(
            f"none of the {len(paths)} pictures can be read; the first: {skipped[0][1]}"
        )
    return Ranking(tuple(sorted(found, key=lambda hit: -hit.score)), tuple(skipped))


def _scored(paths: Iterable[Path], scores: np.ndarray) -> list[Found]:
    return [Found(path, float(score)) for path, score in zip(paths, scores, strict=True)]
