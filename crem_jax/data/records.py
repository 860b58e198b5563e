"""The record type of all data sources.

A record is homogeneous data in the paper's sense (arXiv 2602.19091, section 3.3): its `query` is
compressed once and then serves both losses, as a retrieval query and as the context of a
conversation. Either half may be absent.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from crem_jax.errors import CremError

Picture = np.ndarray | Image.Image | bytes | str | os.PathLike
"""An image: uint8 [H, W, 3] pixels, a PIL image, encoded bytes, or a path."""


class RecordError(CremError):
    """A record cannot be used; the message names it and says what is wrong with it."""


class EmptySideError(RecordError):
    """A side of a record, or what is to be learnt from it, is empty."""


@dataclasses.dataclass(frozen=True, eq=False)
class Item:
    """One thing to embed: text, pictures, or both. Pictures precede the text in the prompt.

    Attributes:
      known_hash: the value of `content_hash`, if a data set stores it; saves hashing the images.
    """

    text: str = ""
    images: tuple[Picture, ...] = ()
    known_hash: int | None = None

    def __post_init__(self):
        if not isinstance(self.text, str):
            raise CremError(f"an item's text is a {type(self.text).__name__}; expected a str")
        if not self.text.strip() and not self.images:
            raise CremError("an item needs text or at least one picture; both are empty")

    def content_hash(self) -> int:
        """64-bit hash of the content: equal items are duplicates, never each other's negatives."""
        if self.known_hash is not None:
            return self.known_hash
        digest = hashlib.blake2b(self.text.encode(errors="surrogatepass"), digest_size=8)
        for image in self.images:
            digest.update(b"\0")
            digest.update(_content_bytes(image))
        return int.from_bytes(digest.digest(), "little")

    @staticmethod
    def of(value: Any) -> Item:
        """Makes an Item of an input to `encode`: text, an image, {"text":…, "image(s)":…}."""
        if isinstance(value, Item):
            return value
        if isinstance(value, str):
            return Item(text=value)
        if isinstance(value, Mapping):
            unknown = set(value) - {"text", "image", "images"}
            if unknown:
                raise CremError(
                    f"unknown keys {sorted(unknown)} in an item; expected 'text', 'image', 'images'"
                )
            images = tuple(value.get("images", ()))
            if value.get("image") is not None:
                images = (value["image"], *images)
            return Item(text=value.get("text", "") or "", images=images)
        if isinstance(value, np.ndarray | Image.Image | bytes | os.PathLike):
            return Item(images=(value,))
        raise CremError(
            f"cannot embed a {type(value).__name__}; expected text, a picture, or a mapping with "
            "'text' and/or 'image'"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """One training sample.

    Attributes:
      id: names the record in errors and metrics.
      query: the context that is compressed.
      positives: items the query should find. The first is encoded; the others only never count
        as negatives.
      negatives: hard negatives, encoded and shared with the whole batch.
      turns: (question, answer) pairs asked about `query`; the loss is on every answer.
      source: the data set it came from.
      metadata: JSON values that a library stores with the query and can filter by.
    """

    id: str
    query: Item
    positives: tuple[Item, ...] = ()
    negatives: tuple[Item, ...] = ()
    turns: tuple[tuple[str, str], ...] = ()
    source: str = ""
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _content_bytes(image: Picture) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, np.ndarray):
        return repr(image.shape).encode() + image.tobytes()
    if isinstance(image, Image.Image):
        try:
            content = image.tobytes()
        except Exception as error:  # it is decoded here; Pillow's errors have no common base class
            raise RecordError(f"a picture of it is truncated or damaged: {error}") from error
        return f"{image.mode}{image.size}".encode() + content
    return os.fspath(image).encode(errors="surrogatepass")
