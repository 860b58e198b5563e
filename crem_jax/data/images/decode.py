"""Pictures in, pixels out: whatever a person has becomes an upright RGB image."""

from __future__ import annotations

import contextlib
import io
import mmap
import os
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from crem_jax.data.images.work import Data, TooMuchWork, check_exif, check_work
from crem_jax.data.records import Picture
from crem_jax.errors import CremError

MAX_PIXELS = 178_956_970
"""Pictures with more pixels are refused: Pillow's own limit against decompression bombs."""

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)


class PictureError(CremError):
    """A picture cannot be used; the message names it and says what is wrong with it."""


def peek(
    picture: Picture,
    *,
    max_pixels: int = MAX_PIXELS,
    formats: Sequence[str] | None = None,
    name: str = "",
) -> tuple[Picture, tuple[int, int]]:
    """A picture with its upright (height, width), read from the header of encoded data alone.

    A path is opened here; what is returned in its place is a PIL image that `open_picture` decodes
    later, without opening the file again.

    Args:
      formats: encoded data of others, by Pillow's names, is no picture; default: all are.
      name: of the picture in errors; default: its path, or what it is.

    Raises:
      PictureError: as `open_picture`, for what a header shows.
    """
    name = name or _name(picture)
    if isinstance(picture, np.ndarray):
        if picture.ndim not in (2, 3):
            raise PictureError(f"{name}: is not a picture; expected [H, W, 3], [H, W, 4] or [H, W]")
        size = picture.shape[0], picture.shape[1]
    else:
        if not isinstance(picture, Image.Image):
            picture = _open_encoded(picture, name, max_pixels, formats)
            picture.filename = name
        # Pillow gives the upright size of a TIFF, and the stored one of all other formats.
        turned = picture.format != "TIFF" and _orientation(picture, header=True) in _SIDEWAYS
        width, height = picture.size[::-1] if turned else picture.size
        size = height, width
    _check_size(*size, name, max_pixels)
    return picture, size


def open_picture(
    picture: Picture, *, max_pixels: int = MAX_PIXELS, near: tuple[int, int] | None = None
) -> Image.Image:
    """Any picture as an upright RGB image, held in memory.

    EXIF rotation is applied, animations give their first frame (a PIL image its current one), and
    what is transparent becomes white. Values of more than 8 bits are scaled: unsigned 16-bit ones
    by 1/257; wider integers likewise if any is above 255; floats by 255 if none is above 1.

    Args:
      picture: a path, encoded bytes, a PIL image, or an array [H, W], [H, W, 1], [H, W, 3] or
        [H, W, 4] (RGBA) of uint8, or of any other real type in a range named above.
      max_pixels: larger pictures are refused before they are decoded.
      near: an upright (height, width) that is enough: a JPEG of at least twice that size is decoded
        at a half, a quarter or an eighth of its own, never below `near`.

    Raises:
      PictureError: missing, unreadable, truncated, too large, empty, or not a picture.
    """
    name = _name(picture)
    if isinstance(picture, np.ndarray):
        return _array_to_rgb(picture, name, max_pixels)
    with contextlib.ExitStack() as stack:
        if isinstance(picture, Image.Image):
            image = picture
        else:
            image = stack.enter_context(_open_encoded(picture, name, max_pixels))
        _check_size(image.height, image.width, name, max_pixels)
        with _decoding(name):
            if near is not None and image.format == "JPEG":
                turned = _orientation(image) in _SIDEWAYS
                image.draft(None, near if turned else near[::-1])
            image.load()
            upright = _UPRIGHT.get(_orientation(image))
            if not _is_deep(image):
                image = _to_rgb(image)
        if _is_deep(image):
            image = _array_to_rgb(np.asarray(image), name, image.height * image.width)
    image.info.clear()  # no tag may turn the upright picture again
    return image if upright is None else image.transpose(upright)


def _name(picture: Picture) -> str:
    if isinstance(picture, bytes):
        return "<bytes>"
    if isinstance(picture, np.ndarray):
        return f"<array of shape {picture.shape}>"
    if isinstance(picture, Image.Image):
        return getattr(picture, "filename", "") or f"<PIL image of mode {picture.mode}>"
    if isinstance(picture, str | os.PathLike):
        return os.fspath(picture)
    raise PictureError(
        f"<{type(picture).__name__}>: is not a picture; expected a path, encoded bytes, a PIL "
        "image or an array [H, W, 3]"
    )


def _open_encoded(
    picture: str | os.PathLike | bytes,
    name: str,
    max_pixels: int,
    formats: Sequence[str] | None = None,
) -> ImageFile.ImageFile:
    """The lazily decoded image of a path or of encoded bytes that is not too much work."""
    if isinstance(picture, bytes):
        if not picture:
            raise PictureError(f"{name}: is empty")
        source: io.BytesIO | str = io.BytesIO(picture)
    else:
        source = os.fspath(picture)
        if os.path.isdir(source):
            raise PictureError(f"{name}: is a folder, not a picture")
        if not os.path.exists(source):
            raise PictureError(f"{name}: does not exist")
        if not os.path.isfile(source):  # to open a pipe would wait for ever
            raise PictureError(f"{name}: is no regular file")
        with _decoding(name):
            size = os.path.getsize(source)
        if size == 0:
            raise PictureError(f"{name}: is empty")
    with _decoding(name, formats):
        with _encoded(source) as data:
            check_work(data, max_pixels)
        return Image.open(source, formats=None if formats is None else tuple(formats))


@contextlib.contextmanager
def _encoded(source: io.BytesIO | str) -> Iterator[Data]:
    """The bytes of a picture; those of a file are read from the disk where they are looked at."""
    if isinstance(source, io.BytesIO):
        yield source.getvalue()
        return
    with open(source, "rb") as file:
        try:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError:  # not every file system has it
            yield file.read()
            return
        with mapped:
            yield mapped


@contextlib.contextmanager
def _decoding(name: str, formats: Sequence[str] | None = None) -> Iterator[None]:
    """Turns whatever Pillow's decoders raise on damaged data into a PictureError."""
    try:
        yield
    except TooMuchWork as error:
        raise PictureError(f"{name}: {error}") from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"{name}: is too large, {error}") from error
    except UnidentifiedImageError as error:
        known = f"none of {', '.join(formats)}" if formats else "no known format"
        raise PictureError(
            f"{name}: is not a picture: {known}, or cut off in its header"
        ) from error
    except MemoryError as error:
        raise PictureError(f"{name}: needs more memory than there is") from error
    except Exception as error:  # the decoders have no common base class for bad data
        if isinstance(error, OSError) and error.strerror:  # no permission, a bad disk
            raise PictureError(f"{name}: cannot be read: {error.strerror}") from error
        raise PictureError(f"{name}: is truncated or damaged: {error}") from error


def _check_size(height: int, width: int, name: str, max_pixels: int) -> None:
    if height < 1 or width < 1:
        raise PictureError(f"{name}: has no pixels, its size is {width}x{height}")
    if height * width > max_pixels:
        raise PictureError(
            f"{name}: is too large, {width}x{height} = {height * width} pixels; "
            f"expected at most {max_pixels}"
        )


def _orientation(image: Image.Image, header: bool = False) -> int:
    """EXIF's orientation; with `header` only if it is known without decoding the picture."""
    if header and image.format == "PNG" and "exif" not in image.info:
        return 1  # Pillow would decode it to look behind the pixels, and not say if that fails
    try:
        exif = image.info.get("exif") or _profile(image)
        if exif:
            check_exif(exif)
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # EXIF that is damaged, or too much work, spoils no pixel
        return 1


def _profile(image: Image.Image) -> bytes:
    """EXIF as ImageMagick writes it into a PNG's texts."""
    text = image.info.get("Raw profile type exif", "")
    return bytes.fromhex("".join(text.split("\n")[3:]))


def _is_deep(image: Image.Image) -> bool:
    """Whether its values have more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        if image.mode == "La":
            image = image.convert("LA")
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _array_to_rgb(array: np.ndarray, name: str, max_pixels: int) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        raise PictureError(f"{name}: is not a picture; expected [H, W, 3], [H, W, 4] or [H, W]")
    _check_size(array.shape[0], array.shape[1], name, max_pixels)
    return _to_rgb(Image.fromarray(_eight_bit(array, name)))


def _eight_bit(values: np.ndarray, name: str) -> np.ndarray:
    """Real values as uint8; `open_picture` says how they are scaled."""
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    kind = values.dtype.kind
    if kind not in "buif":
        raise PictureError(f"{name}: is not a picture: its values are of type {values.dtype}")
    if kind == "f" and not np.isfinite(values).all():
        raise PictureError(f"{name}: has values that are not finite")
    highest = values.max()
    if kind == "b" or (kind == "f" and highest <= 1):
        scale = 255.0
    elif highest > 255 or (kind == "u" and values.dtype.itemsize == 2):
        scale = 1 / 257
    else:
        scale = 1.0
    return np.clip(np.rint(values.astype(np.float64) * scale), 0, 255).astype(np.uint8)
