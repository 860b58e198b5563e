"""Pictures in requests: data URIs, and remote files if they are allowed; never paths."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import re

from PIL import Image

from crem_jax.data.images.decode import peek
from crem_jax.data.images.processor import ImageProcessor, PatchedPicture
from crem_jax.serve.errors import ApiError

Image.init()
FORMATS = tuple(
    name for name in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF") if name in Image.OPEN
)
"""Accepted formats: others of Pillow's start programs or are seldom tested."""

_DATA = re.compile(r"data:image/[\w.+-]{1,40}(?:;[\w=.+-]{1,40})*;base64,", re.ASCII)
_SHOWN = 40


def decode_data_uri(uri: str, where: str) -> bytes:
    """The bytes of a `data:image/…;base64,…` URI.

    Args:
      where: the part of the request, for errors.

    Raises:
      ApiError: 400, it is not such a URI, or not valid base64.
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


@dataclasses.dataclass(frozen=True)
class CutPicture:
    """Decodes pictures and cuts them into patches; runs in worker processes, see `decoders`.

    Attributes:
      max_pixels: largest number of pixels of a picture.
    """

    processor: ImageProcessor
    max_pixels: int

    def __call__(self, task: tuple[bytes, str]) -> PatchedPicture:
        """Cuts the picture of a task, (encoded bytes, its name for errors).

        Raises:
          PictureError: it has another format than FORMATS, is damaged, or has too many pixels.
        """
        data, where = task
        picture, size = peek(data, max_pixels=self.max_pixels, formats=FORMATS, name=where)
        return self.processor.cut(picture, size)


def data_uri(data: bytes) -> str:
    """An encoded picture as a data URI."""
    kind = "jpeg"
    if data.startswith(b"\x89PNG"):
        kind = "png"
    elif data[8:12] == b"WEBP":
        kind = "webp"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
