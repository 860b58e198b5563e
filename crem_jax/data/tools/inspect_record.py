"""Inspects single records of a source: faults, sizes and a digest of the content."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from crem_jax.data.images.decode import MAX_PIXELS, PictureError, open_picture
from crem_jax.data.images.patches import MAX_ASPECT
from crem_jax.data.records import EmptySideError, Item, Picture, Record, RecordError
from crem_jax.data.sources.base import read_record
from crem_jax.data.sources.selected import problems
from crem_jax.errors import CremError

_CHARACTERS_A_TOKEN = 40  # longer texts than this allows are too long without being counted


@dataclasses.dataclass(frozen=True)
class Limits:
    """Upper bounds that a good record respects.

    Attributes:
      max_pixels, max_aspect: of an image. max_tokens: of one text. seconds: to inspect one record.
    """

    max_pixels: int = MAX_PIXELS
    max_aspect: float = MAX_ASPECT
    max_tokens: int = 4096
    seconds: float = 60.0


@dataclasses.dataclass(frozen=True, slots=True)
class RecordFindings:
    """The findings of a worker about one record.

    Attributes:
      id: of the record; "" if it could not be read.
      faults: (kind, reason) pairs.
      warnings: reasons.
      digest: of its content; 0 if it could not be read.
      tokens: numbers of tokens of the query's text, the longest candidate and the conversation.
      sizes: (width, height) in pixels of its images.
    """

    id: str = ""
    faults: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()
    digest: int = 0
    tokens: tuple[int, int, int] = (0, 0, 0)
    sizes: tuple[tuple[int, int], ...] = ()


@dataclasses.dataclass(frozen=True)
class RecordInspector:
    """Inspects records first … stop - 1 of a source; yields one RecordFindings for each."""

    source: Any
    limits: Limits
    tokenizer_file: str

    def __call__(self, span: tuple[int, int]) -> Iterator[RecordFindings]:
        for index in range(*span):
            try:
                yield self._inspect(index)
            except EmptySideError as error:
                yield RecordFindings(faults=(("empty", str(error)),))
            except CremError as error:
                yield RecordFindings(faults=(("record", str(error)),))

    def _inspect(self, index: int) -> RecordFindings:
        record = read_record(self.source, index)
        warnings = tuple(problems(self.source, index))
        items = [record.query, *record.positives, *record.negatives]
        faults, sizes, digests = [], [], []
        for item in items:
            digest = hashlib.blake2b(item.text.encode(errors="surrogatepass"), digest_size=8)
            for picture in item.images:
                size, content, found = _inspect_image(picture, self.limits)
                faults += found
                sizes += [size] if size else []
                digest.update(content)
            digests.append(digest.digest())
        tokens, too_long = self._tokens(record)
        positives = set(digests[1 : 1 + len(record.positives)])
        if positives & set(digests[1 + len(record.positives) :]):
            faults.append(("negative", "a hard negative is one of the positives"))
        return RecordFindings(
            id=record.id,
            faults=tuple(dict.fromkeys([*faults, *too_long])),
            warnings=warnings,
            digest=_whole_digest(digests, record),
            tokens=tokens,
            sizes=tuple(sizes),
        )

    def _tokens(self, record: Record) -> tuple[tuple[int, int, int], list[tuple[str, str]]]:
        texts = [part for turn in record.turns for part in turn]
        sides = {
            "query": [record.query],
            "candidate": [*record.positives, *record.negatives],
            "conversation": [Item(text) for text in texts if text.strip()],
        }
        counts, faults, limit = [], [], self.limits.max_tokens
        for side, items in sides.items():
            found = [self._count(item.text) for item in items]
            total = sum(found) if side == "conversation" else max(found, default=0)
            counts.append(total)
            if total > limit:
                faults.append(("tokens", f"the {side} has more than {limit} text tokens"))
        return (counts[0], counts[1], counts[2]), faults

    def _count(self, text: str) -> int:
        if len(text) > self.limits.max_tokens * _CHARACTERS_A_TOKEN:
            return self.limits.max_tokens + 1
        tokenizer = _tokenizer(self.tokenizer_file)
        try:
            return len(tokenizer.encode(text, add_special_tokens=False).ids)
        except Exception as error:  # the tokenizers library raises bare Exception too
            raise RecordError(
                f"a text cannot be tokenised; expected valid Unicode: it begins {text[:40]!a}"
            ) from error


@functools.cache
def _tokenizer(file: str) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(file)


def _inspect_image(
    picture: Picture, limits: Limits
) -> tuple[tuple[int, int] | None, bytes, list[tuple[str, str]]]:
    """A picture's (width, height) if it has any, a digest of its content, and its faults."""
    if isinstance(picture, str):
        return _inspect_file(picture, limits)
    return _inspect_picture(picture, limits)


def _inspect_picture(picture: Picture, limits: Limits):
    try:
        image = open_picture(picture, max_pixels=limits.max_pixels)
        content = _content(picture)
    except PictureError as error:
        return None, str(error).encode(), [(_kind(picture, str(error)), str(error))]
    except OSError as error:
        return None, b"", [("damaged", f"cannot be read: {error}")]
    faults = []
    aspect = max(image.size) / min(image.size)
    if aspect > limits.max_aspect:
        name = picture if isinstance(picture, str) else "a picture"
        faults.append(
            ("aspect", f"{name}: is {image.width}x{image.height}, {aspect:.0f} times as long")
        )
    return image.size, content, faults


# A picture is often shared by records that follow each other.
_inspect_file = functools.lru_cache(maxsize=1024)(_inspect_picture)


def _content(picture: Picture) -> bytes:
    if isinstance(picture, str | os.PathLike):
        picture = Path(picture).read_bytes()
    data = picture if isinstance(picture, bytes) else np.asarray(picture).tobytes()
    return hashlib.blake2b(data, digest_size=8).digest()


def _kind(picture: Picture, reason: str) -> str:
    if isinstance(picture, str | os.PathLike) and not os.path.exists(picture):
        return "missing"
    return "too large" if "is too large" in reason else "damaged"


def _whole_digest(digests: list[bytes], record: Record) -> int:
    parts = [f"{len(record.positives)}".encode(), *digests]
    parts += [text.encode(errors="surrogatepass") for turn in record.turns for text in turn]
    whole = hashlib.blake2b(digest_size=8)
    for part in parts:
        whole.update(len(part).to_bytes(8, "little") + part)
    return int.from_bytes(whole.digest(), "little") or 1
