"""From an RGB picture to Qwen2-VL's patches: which size, resized how, cut in which order.

The arithmetic and the order of the patches are those of Hugging Face's `Qwen2VLImageProcessorPil`.
Normalisation is left to the model, so that pictures travel as uint8.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
from PIL import Image

from crem_jax.errors import CremError

MAX_ASPECT = 200
"""Long over short side, beyond which Hugging Face refuses a picture and `fit_size` stretches it."""


def fit_size(
    height: int,
    width: int,
    *,
    patch: int,
    merge: int,
    min_pixels: int,
    max_pixels: int,
    hard_max: bool = False,
) -> tuple[int, int]:
    """The (height, width) to resize a picture to, both multiples of `patch * merge`.

    This is Qwen2-VL's `smart_resize`: close to the given aspect ratio, with `min_pixels` to
    `max_pixels` pixels. A picture longer than MAX_ASPECT, which `smart_resize` refuses, gets the
    size of one with its short side stretched to 1/MAX_ASPECT of the long one.

    As in `smart_resize`, long strips and close limits can end above `max_pixels`. `hard_max=True`
    takes whole rows or columns of merged patches off the longer side until the limit holds, for
    static shapes; sizes within the limit stay as they are.

    Raises:
      ValueError: a side below 1, or limits that leave no size.
    """
    unit = patch * merge
    if height < 1 or width < 1:
        raise ValueError(f"a picture of {height}x{width} pixels (height x width) has no pixels")
    if not 1 <= min_pixels <= max_pixels or max_pixels < unit * unit:
        raise CremError(
            f"min_pixels={min_pixels} and max_pixels={max_pixels} leave no size; expected "
            f"1 <= min_pixels <= max_pixels and max_pixels >= (patch * merge)^2 = {unit * unit}"
        )
    shortest = math.ceil(max(height, width) / MAX_ASPECT)
    height, width = max(height, shortest), max(width, shortest)

    rows, columns = round(height / unit), round(width / unit)
    if rows * columns * unit * unit > max_pixels:
        shrink = math.sqrt((height * width) / max_pixels)
        rows = max(1, math.floor(height / shrink / unit))
        columns = max(1, math.floor(width / shrink / unit))
    elif rows * columns * unit * unit < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows = math.ceil(height * grow / unit)
        columns = math.ceil(width * grow / unit)
    while hard_max and rows * columns * unit * unit > max_pixels:
        rows, columns = (rows - 1, columns) if rows > columns else (rows, columns - 1)
    return rows * unit, columns * unit


def fill_grid(height: int, width: int, tokens: int) -> tuple[int, int]:
    """The (rows, columns) of at most `tokens` vision tokens that a picture fills best.

    For a static shape: the most tokens among the grids that keep the picture's aspect as well as
    `fit_size` does, which rounds each side to the nearest row or column; a strip with more than
    `tokens` rows or columns gets a grid of one.

    Raises:
      ValueError: a side or `tokens` below 1.
    """
    if height < 1 or width < 1 or tokens < 1:
        raise ValueError(f"cannot fill {tokens} tokens with a picture of {height}x{width} pixels")
    if height > width:
        return fill_grid(width, height, tokens)[::-1]
    aspect = width / height
    best = (1, min(tokens, round(aspect)))
    ideal = math.sqrt(tokens / aspect)
    for rows in range(max(1, math.floor(ideal) - 1), min(tokens, math.ceil(ideal) + 1) + 1):
        # Some scale rounds to both: (columns ± 1/2) / (rows ± 1/2) is around the true aspect.
        columns = min(tokens // rows, math.ceil((rows + 0.5) * aspect + 0.5) - 1)
        if columns + 0.5 > (rows - 0.5) * aspect and rows * columns > best[0] * best[1]:
            best = (rows, columns)
    return best


def resize(image: Image.Image, height: int, width: int, fast: bool = False) -> np.ndarray:
    """An RGB image as read-only uint8 [height, width, 3], bicubic as in Hugging Face's processor.

    Args:
      fast: by SIMD instructions, seven times as fast; a few values in a thousand differ from
        Pillow's, by 1 or 2 of 255.

    Raises:
      ValueError: `fast`, and cykooz-resizer is not installed.
    """
    if fast:
        # One direction after the other, as Pillow does, which rounds and clips in between.
        for size in ((width, image.height), (width, height)):
            if image.size != size:
                image = _resize_once(image, size)
    elif image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


def _resize_once(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    resizer, options = fast_resizer()
    out = Image.new("RGB", size)
    resizer.resize_pil(image, out, options)
    return out


def fast_resizer() -> tuple[Any, Any]:
    """This thread's resizer, which has buffers of its own, and its options.

    Raises:
      ValueError: cykooz-resizer is not installed.
    """
    if not hasattr(_threads, "resizer"):
        try:
            from cykooz_resizer import FilterType, ResizeAlg, ResizeOptions, Resizer
        except ModuleNotFoundError as error:
            raise CremError(
                "data.fast_resize needs the package cykooz-resizer: pip install 'crem_jax[fast]'"
            ) from error
        algorithm = ResizeAlg.convolution(FilterType.catmull_rom)  # a = -1/2, Pillow's bicubic
        _threads.resizer = Resizer(), ResizeOptions(resize_alg=algorithm)
    return _threads.resizer


_threads = threading.local()


def patchify(pixels: np.ndarray, patch: int, merge: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels as Qwen2-VL's patches, the `merge * merge` patches of one vision token consecutive.

    Hugging Face's `pixel_values` repeat each channel of a still picture as two frames; this keeps
    one of them.

    Args:
      pixels: uint8 [H, W, 3], H and W multiples of `patch * merge`.
      patch: side of a patch in pixels.
      merge: side of a vision token in patches.

    Returns:
      patches: uint8 [N, 3 * patch * patch], N = H * W / patch^2, each patch channel first.
      positions: int32 [N, 2], (row, column) of each patch on the grid, for the vision rotary.

    Raises:
      ValueError: another shape or type.
    """
    unit = patch * merge
    shape = pixels.shape
    if len(shape) != 3 or shape[2] != 3 or shape[0] % unit or shape[1] % unit or 0 in shape:
        raise ValueError(
            f"cannot patchify pixels of shape {shape}; expected [H, W, 3] with H and W positive "
            f"multiples of patch * merge = {unit}"
        )
    if pixels.dtype != np.uint8:
        raise ValueError(f"cannot patchify {pixels.dtype} pixels; expected uint8")
    rows, columns = shape[0] // unit, shape[1] // unit
    # [rows, merge, patch, columns, merge, patch, C] -> [rows, columns, merge, merge, C, ph, pw]
    blocks = pixels.reshape(rows, merge, patch, columns, merge, patch, 3)
    patches = blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, 3 * patch * patch)
    grid = np.indices((rows * merge, columns * merge), dtype=np.int32)
    grid = grid.reshape(2, rows, merge, columns, merge)
    positions = np.ascontiguousarray(grid.transpose(1, 3, 2, 4, 0).reshape(-1, 2))
    return patches, positions
