"""Ranks pictures of a folder by how well they match a query."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from crem_jax.api import Model
    from crem_jax.data.records import Item

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
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


def pictures_in(folder: str | os.PathLike) -> list[Path]:
    """The picture files under a folder, subfolders included, hidden ones left out.

    Raises:
      FileNotFoundError, NotADirectoryError: there is no such folder.
      ValueError: it has no pictures.
    """
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"folder {folder} does not exist")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; expected a folder of pictures")
    paths = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    ]
    if not paths:
        raise ValueError(f"folder {folder} has no pictures ({', '.join(SUFFIXES)})")
    return paths


def rank_pictures(
    model: Model, query: Item, paths: Sequence[Path], k: int | None = None
) -> Ranking:
    """Ranks pictures; those that cannot be used are left out and told.

    Args:
      k: read only the first k chorus tokens; None is all.

    Raises:
      ValueError: the model cannot find, the query cannot be used, or no picture can.
    """
    (wanted,) = model.encode([query], k)
    found: list[Found] = []
    skipped: list[tuple[Path, str]] = []
    for first in range(0, len(paths), _AT_ONCE):
        usable, rows = [], []
        for path in paths[first : first + _AT_ONCE]:
            try:
                rows.append(model.prepare(path))
            except ValueError as error:
                skipped.append((path, str(error)))
            else:
                usable.append(path)
        if rows:
            found += _scored(usable, model.encode(rows, k) @ wanted)
    if not found:
        raise ValueError(
            f"none of the {len(paths)} pictures can be read; the first: {skipped[0][1]}"
        )
    return Ranking(tuple(sorted(found, key=lambda hit: -hit.score)), tuple(skipped))


def _scored(paths: Iterable[Path], scores: np.ndarray) -> list[Found]:
    return [Found(path, float(score)) for path, score in zip(paths, scores, strict=True)]
