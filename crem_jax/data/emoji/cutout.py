"""Cutting pictures out of the white paper they were drawn on."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

PAPER = 250
"""A pixel whose darkest channel is at least this bright may be paper."""

_NEIGHBOURS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]


def cut_out(pictures: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, 3] pictures on white → uint8 [N, H, W, 4] with a soft alpha channel.

    White that is connected to the border becomes transparent; white inside a picture stays. A pixel
    at the seam is a mixture of paper and object: its alpha is its darkness over that of its darkest
    neighbour, and the paper is taken out of its colour, so that compositing on white gives the
    input back to within rounding.
    """
    count, height, width, _ = pictures.shape
    red, green, blue = np.moveaxis(pictures, -1, 0)
    darkness = 255 - np.minimum(np.minimum(red, green), blue)
    white = np.pad(darkness <= 255 - PAPER, ((0, 0), (1, 1), (1, 1)), constant_values=True)
    in_plane = np.zeros((3, 3, 3), bool)
    in_plane[1] = [[0, 1, 0], [1, 1, 1], [0, 1, 0]]
    labels, _ = ndimage.label(white, structure=in_plane)
    paper = labels == labels[:, :1, :1]
    touching = paper[:, :-2, 1:-1] | paper[:, 2:, 1:-1] | paper[:, 1:-1, :-2] | paper[:, 1:-1, 2:]
    paper = paper[:, 1:-1, 1:-1]
    seam = touching & ~paper

    n, y, x = np.nonzero(seam)
    own = darkness[n, y, x].astype(np.float32)
    darkest = own.copy()
    for dy, dx in _NEIGHBOURS:
        near_y, near_x = (y + dy).clip(0, height - 1), (x + dx).clip(0, width - 1)
        darkest = np.maximum(darkest, darkness[n, near_y, near_x])
    alpha = own / darkest
    colour = 255 - (255 - pictures[n, y, x].astype(np.float32)) / alpha[:, None]

    out = np.empty((count, height, width, 4), np.uint8)
    out[..., :3] = pictures
    out[..., 3] = np.where(paper, 0, 255)
    out[n, y, x, :3] = colour.round().clip(0, 255)
    out[n, y, x, 3] = (255 * alpha).round()
    out[paper] = 0
    return out
