"""Ranks image files by their similarity to a query."""

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
class PictureHit:
    """A picture file and its cosine similarity to the query."""

    path: Path
    score: float


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The result of `rank_pictures`.

    Attributes:
      hits: best first. skipped: (file, reason why it cannot be used).
    """

    hits: tuple[PictureHit, ...]
    skipped: tuple[tuple[Path, str], ...]


def rank_pictures(
    model: Model,
    query: Item,
    paths: Sequence[Path],
    k: int | None = None,
    dim: int | None = None,
) -> Ranking:
    """Ranks picture files by cosine similarity; files that cannot be used are listed as skipped.

    Args:
      k: use only the first k chorus tokens; None is all.
      dim: use only the first `dim` components of the embeddings; None is all.

    Raises:
      CremError: the model has no chorus tokens, the query cannot be used, or no file can.
    """
    (wanted,) = model.encode([query], k, dim)
    hits: list[PictureHit] = []
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
            hits += _scored(usable, model.encode(rows, k, dim) @ wanted)
    if not hits:
        raise CremError(
            f"none of the {len(paths)} pictures can be read; the first: {skipped[0][1]}"
        )
    return Ranking(tuple(sorted(hits, key=lambda hit: -hit.score)), tuple(skipped))


def _scored(paths: Iterable[Path], scores: np.ndarray) -> list[PictureHit]:
    return [PictureHit(path, float(score)) for path, score in zip(paths, scores, strict=True)]
