"""Reads the items of a data source for indexing, each with an id and a content hash."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from crem_jax.data.images.decode import open_picture
from crem_jax.data.records import Item, Picture
from crem_jax.data.sources.base import read_record
from crem_jax.data.sources.command_line import parse_source
from crem_jax.data.sources.registry import make_source
from crem_jax.data.sources.selected import where
from crem_jax.errors import CremError

_BARE = ("folder", "jsonl")  # kinds whose records need no training targets
_THUMBNAIL = 192  # pixels of the longer side


@dataclasses.dataclass(frozen=True, eq=False)
class IndexItem:
    """One item of a source, before it is encoded.

    Attributes:
      id: its id in the library. item: the texts and images to encode.
      content: hash of the item and its text.
      uri: the picture's path, if it is a file. text: its text. metadata: further JSON values.
    """

    id: str
    item: Item
    content: str
    uri: str
    text: str
    metadata: Mapping[str, Any]


class IndexItemError(CremError):
    """An item whose id is known cannot be used.

    Attributes:
      id: the item's id.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(reason)
        self.id = name


class IndexSource:
    """The items of a source given on the command line (`crem prepare`'s grammar).

    Args:
      text: the source as written on the command line. prefix: prepended to every id.

    Attributes:
      name: the source's description, with an absolute path.

    Raises:
      CremError, OSError: the source cannot be used.
    """

    def __init__(self, text: str, prefix: str = ""):
        kind, arguments = parse_source(text)
        if kind in _BARE:
            arguments = {"bare": True, **arguments}
        self._source = make_source(kind, arguments, text)
        self._prefix = prefix
        path = arguments.get("path")
        rest = {k: v for k, v in arguments.items() if k not in ("path", "bare")}
        options = ",".join(f"{key}={value}" for key, value in rest.items())
        place = os.path.abspath(path) if path else ""
        self.name = f"{kind}:{place}" + (f",{options}" if options else "")

    def __len__(self) -> int:
        return len(self._source)

    def where(self, index: int) -> str:
        return where(self._source, index)

    def item(self, index: int) -> IndexItem:
        """Item `index`, with its picture files read but not decoded.

        Raises:
          IndexItemError: a picture file cannot be read. CremError: it is not a valid record.
        """
        record = read_record(self._source, index)
        text = next((item.text for item in record.positives if item.text), "")
        files = [i for i in record.query.images if isinstance(i, str | os.PathLike)]
        # A record without an id is named after its location, independent of the working directory.
        own = record.id if record.id != self.where(index) else os.path.basename(record.id)
        name = f"{self._prefix}{own}"
        for shown_name in (name, *(os.fspath(file) for file in files)):
            try:
                shown_name.encode()
            except UnicodeEncodeError as error:
                shown = shown_name.encode(errors="backslashreplace").decode()
                raise IndexItemError("", f"{shown}: the name is not UTF-8") from error
        try:
            pictures = tuple(map(_read, record.query.images))
        except OSError as error:
            raise IndexItemError(name, f"{error.filename}: {error.strerror}") from error
        item = dataclasses.replace(record.query, images=pictures)
        texts = json.dumps([item.text, text, record.metadata], sort_keys=True)
        digest = hashlib.blake2b(digest_size=16)
        for part in (texts.encode(), *map(_bytes, item.images)):
            digest.update(len(part).to_bytes(8, "little") + part)
        uri = os.path.abspath(files[0]) if files else ""
        return IndexItem(name, item, digest.hexdigest(), uri, text, record.metadata)


def thumbnail(picture: Picture) -> tuple[bytes, tuple[int, int]]:
    """A small encoded copy of a picture, and the original's (width, height) in pixels.

    Raises:
      PictureError: the picture cannot be decoded.
    """
    image = open_picture(picture)
    size = image.size
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    files = []
    for kind in ("PNG", "JPEG"):
        file = io.BytesIO()
        image.save(file, kind)
        files.append(file.getvalue())
    return min(files, key=len), size


def _read(picture: Picture) -> Picture:
    if isinstance(picture, str | os.PathLike):
        return Path(picture).read_bytes()
    return picture


def _bytes(picture: Picture) -> bytes:
    if isinstance(picture, bytes):
        return picture
    pixels: Any = np.asarray(picture)
    size = picture.size if isinstance(picture, Image.Image) else pixels.shape
    return repr(size).encode() + pixels.tobytes()
