"""Maps a library: thumbnails placed by the first two principal components of the embeddings."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from crem_jax.library.library import Library

_MARGIN = 0.02  # quantile cut off on each side; entries beyond it are moved to the edge


def projection(library: Library, k: int | None = None) -> tuple[list[str], np.ndarray, float]:
    """Projects all embeddings onto their first two principal components.

    Args:
      k: number of chorus tokens of the embeddings; None is all.

    Returns:
      The ids, coordinates float32 [N, 2], and the share of the variance that they explain.

    Raises:
      LibraryError: no embeddings of k chorus tokens are stored.
    """
    column, count, dim = library.info.column(k), 0, library.info.dim
    total, products = np.zeros(dim), np.zeros((dim, dim))
    for batch in library.scan([column]):
        vectors = batch[column].astype(np.float64)
        count += len(vectors)
        total += vectors.sum(0)
        products += vectors.T @ vectors
    mean = total / max(count, 1)
    values, axes = np.linalg.eigh(products / max(count, 1) - np.outer(mean, mean))
    plane = axes[:, [-1, -2]]
    plane *= np.sign(plane[np.abs(plane).argmax(0), [0, 1]])  # an eigenvector's sign is arbitrary
    ids: list[str] = []
    places = [np.zeros((0, 2), np.float32)]
    for batch in library.scan(["id", column]):
        ids += batch["id"].tolist()
        places.append(((batch[column].astype(np.float64) - mean) @ plane).astype(np.float32))
    shown = float(values[-2:].sum() / max(values.sum(), 1e-12))
    return ids, np.concatenate(places), shown


def draw_map(
    library: Library, path: str | os.PathLike, k: int | None = None, cells: int = 24, side: int = 64
) -> dict:
    """Draws a grid with one entry per non-empty cell, the one nearest to the cell's centre.

    Args:
      path: the PNG file to write. k: as for `projection`.
      cells: number of cells along each side. side: side of a thumbnail in pixels.

    Returns:
      {"entries", "drawn", "variance"}: entries in all, entries drawn, share of explained variance.

    Raises:
      LibraryError: the library is empty, or has no embeddings of k chorus tokens.
    """
    from crem_jax.library.entry import LibraryError

    ids, places, variance = projection(library, k)
    if not ids:
        raise LibraryError("the library is empty; there is nothing to draw")
    low, high = np.quantile(places, [_MARGIN, 1 - _MARGIN], axis=0)
    spot = np.clip((places - low) / np.maximum(high - low, 1e-12), 0, 1) * (cells - 1)
    cell = np.rint(spot).astype(int)
    order = np.argsort(np.abs(spot - cell).sum(1), kind="stable")
    _, first = np.unique(cell[order], axis=0, return_index=True)
    chosen = order[first]
    sheet = Image.new("RGB", (cells * side, cells * side), "white")
    for i, entry in zip(chosen, library.get([ids[i] for i in chosen]), strict=True):
        if entry is not None:
            column, row = cell[i]
            sheet.paste(_tile(entry, side), (column * side, (cells - 1 - row) * side))
    sheet.save(path, "PNG")
    return {"entries": len(ids), "drawn": len(chosen), "variance": variance}


def _tile(entry, side: int) -> Image.Image:
    """A square with the entry's thumbnail, or with its text if it has no picture."""
    tile = Image.new("RGB", (side, side), "white")
    if entry.thumbnail:
        image = Image.open(io.BytesIO(entry.thumbnail)).convert("RGB")
        image.thumbnail((side - 2, side - 2))
        tile.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    else:
        ImageDraw.Draw(tile).text((2, side // 3), (entry.text or entry.id)[:12], "black")
    return tile
