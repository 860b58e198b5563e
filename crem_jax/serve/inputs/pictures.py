"""Pictures of requests: data URIs, and remote files where they are allowed; never paths."""

from __future__ import annotations

import base64
import binascii
import io
import re

from PIL import Image

from crem_jax.data.images.decode import PictureError, peek
from crem_jax.serve.errors import ApiError

Image.init()
FORMATS = tuple(
    name for name in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF") if name in Image.OPEN
)
"""Formats that are opened: Pillow knows others that start programs or are seldom tested."""

_DATA = re.compile(r"data:image/[\w.+-]{1,40}(?:;[\w=.+-]{1,40})*;base64,", re.ASCII)
_SHOWN = 40


def decode_data_uri(uri: str, where: str) -> bytes:
    """The bytes of a `data:image/…;base64,…` URI.

    Args:
      where: names the part of the request in errors.

    Raises:
      ApiError: 400, it is no such URI or no proper base64.
    """
    head = _DATA.match(uri[:256])
    if head is None:
        raise ApiError(
            400,
            f"{where}: expected a data URI (data:image/png;base64,…), got {uri[:_SHOWN]!r}",
            where,
            "invalid_image_url",
        )
    try:
        return base64.b64decode(uri[head.end() :].encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ApiError(400, f"{where}: is no base64: {error}", where, "invalid_base64") from error


def open_bytes(data: bytes, where: str, max_pixels: int) -> Image.Image:
    """An encoded picture, of known size but not decoded yet.

    Raises:
      ApiError: 400, it is no picture of a known format, or has too many pixels.
    """
    try:
        if not data:
            raise PictureError(f"{where}: is empty")
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        image.filename = where  # names it in errors of decoding
        picture, _ = peek(image, max_pixels=max_pixels)
        return picture
    except PictureError as error:
        raise ApiError(400, str(error), where, "invalid_image") from error
    except Exception as error:  # Pillow's readers have no common base class for bad data
        message = f"{where}: is no picture; expected {', '.join(FORMATS)}"
        raise ApiError(400, message, where, "invalid_image") from error


def data_uri(data: bytes) -> str:
    """An encoded picture as a data URI."""
    kind = "jpeg"
    if data.startswith(b"\x89PNG"):
        kind = "png"
    elif data[8:12] == b"WEBP":
        kind = "webp"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
