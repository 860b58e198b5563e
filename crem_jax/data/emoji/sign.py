"""Signs in scenes: a short word or number on a board, for what a picture says in letters."""

from __future__ import annotations

import dataclasses
import functools
import hashlib

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SAY = "what does the sign say?"
# fmt: off
WORDS = (
    "air", "art", "bag", "bar", "bed", "box", "bus", "cat", "cup", "day", "dog", "ear", "egg",
    "eye", "fox", "ice", "key", "leg", "map", "men", "new", "oil", "pen", "red", "sea", "ski",
    "sun", "tea", "top", "van", "web", "zoo",
)
# fmt: on
NUMBERS = 1000
"""Signs say a word, or a number below this."""

_HELD_OUT_SHARE = 0.15
_INK, _BOARD = (20, 20, 20), (255, 246, 200)


@dataclasses.dataclass(frozen=True)
class Sign:
    """What is written in a cell (index into `scene.CELLS`)."""

    cell: int
    text: str


@functools.cache
def texts(split: str) -> tuple[str, ...]:
    """What signs of a split say, words and numbers; those of "heldout" are never trained on."""

    def share(text: str) -> float:
        digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
        return int.from_bytes(digest, "little") / 2**32

    every = (*WORDS, *map(str, range(NUMBERS)))
    return tuple(t for t in every if (share(t) < _HELD_OUT_SHARE) == (split == "heldout"))


def sample_sign(rng: np.random.Generator, free: tuple[int, ...], split: str) -> Sign:
    """A sign in one of the free cells; half of them are words."""
    words = rng.random() < 0.5
    options = tuple(text for text in texts(split) if text.isalpha() == words)
    return Sign(free[rng.integers(len(free))], options[rng.integers(len(options))])


@functools.cache
def board(text: str, cell: int) -> np.ndarray:
    """float32 [height, width, 4], premultiplied: the text as large as a cell of that side holds."""
    margin = max(1, cell // 16)
    font = ImageFont.load_default(cell // 2)
    left, top, right, bottom = font.getbbox(text)
    shrink = min(1.0, (0.96 * cell - 2 * margin) / (right - left))
    if shrink < 1:
        font = ImageFont.load_default(cell // 2 * shrink)
        left, top, right, bottom = font.getbbox(text)
    size = (int(right - left) + 2 * margin, int(bottom - top) + 2 * margin)
    image = Image.new("RGBA", size, (*_BOARD, 255))
    ImageDraw.Draw(image).text((margin - left, margin - top), text, (*_INK, 255), font)
    return np.asarray(image, np.float32)
