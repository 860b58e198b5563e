"""A picture as a model reads it: opened, resized by the model's own rule, cut into patches."""

from __future__ import annotations

import dataclasses

import numpy as np

from crem_jax.config import VisionConfig
from crem_jax.data.images.decode import open_picture, peek
from crem_jax.data.images.patches import fast_resizer, fit_size, patchify, resize
from crem_jax.data.records import Picture


@dataclasses.dataclass(frozen=True, eq=False)
class PatchedPicture:
    """What is left of a picture when it has been cut, in place of the picture itself.

    Attributes:
      size: its upright (height, width) before. grid: (rows, columns) of vision tokens.
      patches: uint8 [p, values]. positions: int32 [p, 2], the places of the patches.
    """

    size: tuple[int, int]
    grid: tuple[int, int]
    patches: np.ndarray
    positions: np.ndarray


@dataclasses.dataclass(frozen=True)
class ImageProcessor:
    """Cuts pictures for one vision tower.

    Args:
      hard_max: never exceed the tower's max_pixels, see `fit_size`.
      fast_jpeg: decode large JPEGs at a fraction of their size, see `open_picture`.
      fast_resize: resize by SIMD instructions, see `resize`.

    Raises:
      ValueError: `fast_resize` without the package it needs.
    """

    vision: VisionConfig
    hard_max: bool = False
    fast_jpeg: bool = False
    fast_resize: bool = False

    def __post_init__(self):
        if self.fast_resize:
            fast_resizer()  # raises now, not at the first picture

    def peek(
        self, picture: Picture | PatchedPicture
    ) -> tuple[Picture | PatchedPicture, tuple[int, int]]:
        """`decode.peek`, which leaves a picture that has been cut as it is."""
        if isinstance(picture, PatchedPicture):
            return picture, picture.size
        return peek(picture)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of vision tokens by Qwen2-VL's rule."""
        vision = self.vision
        unit = vision.patch_size * vision.merge_size
        size = fit_size(
            height,
            width,
            patch=vision.patch_size,
            merge=vision.merge_size,
            min_pixels=vision.min_pixels,
            max_pixels=vision.max_pixels,
            hard_max=self.hard_max,
        )
        return size[0] // unit, size[1] // unit

    def patches(
        self, picture: Picture | PatchedPicture, grid: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [p, values] patches of a picture for (rows, columns) of vision tokens, and their
        int32 [p, 2] places.

        Raises:
          PictureError: it cannot be decoded.
          ValueError: it has been cut for another grid.
        """
        if isinstance(picture, PatchedPicture):
            if picture.grid != grid:
                raise ValueError(f"a picture cut for a grid of {picture.grid} cannot have {grid}")
            return picture.patches, picture.positions
        vision = self.vision
        unit = vision.patch_size * vision.merge_size
        size = grid[0] * unit, grid[1] * unit
        pixels = picture if isinstance(picture, np.ndarray) else None
        if pixels is None or pixels.dtype != np.uint8 or pixels.shape != (*size, 3):
            image = open_picture(picture, near=size if self.fast_jpeg else None)
            pixels = resize(image, *size, fast=self.fast_resize)
        return patchify(pixels, vision.patch_size, vision.merge_size)

    def cut(self, picture: Picture, size: tuple[int, int]) -> PatchedPicture:
        """A picture of a known upright (height, width), as `peek` gives them, on its own grid."""
        grid = self.grid(*size)
        return PatchedPicture(size, grid, *self.patches(picture, grid))
