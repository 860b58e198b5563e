"""Pictures as the files they are stored in."""

from __future__ import annotations

import io
import math
import os
from pathlib import Path

import numpy as np
from PIL import Image

from crem_jax.data.images.decode import open_picture
from crem_jax.data.records import Picture

_LOSSY = ("JPEG", "MPO", "WEBP")


def file_bytes(picture: Picture, max_pixels: int | None = None) -> bytes:
    """An encoded picture that can be decoded: the file as it is, or a smaller one.

    Args:
      max_pixels: larger pictures are resized to at most so many, JPEGs and WebPs as JPEG of quality
        95, all others as PNG; so is what is not a file yet.

    Raises:
      PictureError: it cannot be used.
    """
    image = open_picture(picture)  # decodes it whole
    pixels = image.width * image.height
    small = max_pixels is None or pixels <= max_pixels
    if small and isinstance(picture, bytes):
        return picture
    if small and isinstance(picture, str | os.PathLike):
        return Path(picture).read_bytes()
    if max_pixels is not None and pixels > max_pixels:
        shrink = math.sqrt(max_pixels / pixels)
        size = [max(1, math.floor(side * shrink)) for side in image.size]
        image = image.resize(size, Image.Resampling.BICUBIC)
    out = io.BytesIO()
    if _format(picture) in _LOSSY:
        image.save(out, "JPEG", quality=95, subsampling=0)
    else:
        image.save(out, "PNG")
    return out.getvalue()


def _format(picture: Picture) -> str | None:
    if isinstance(picture, np.ndarray | Image.Image):
        return None
    with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as image:
        return image.format
