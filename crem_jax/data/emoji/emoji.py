"""Single emoji: a picture, its name and its group, drawn afresh each time.

The pictures ship with the package (`crem_jax/assets/emoji`; see its NOTICE).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from crem_jax.data.emoji.cutout import cut_out
from crem_jax.data.emoji.drawing import colour_gain, paste, random_background, to_pixels
from crem_jax.data.records import Item, Record
from crem_jax.errors import CremError

DATA_DIR = Path(__file__).parents[2] / "assets" / "emoji" / "1.0.0"
SPLITS = ("train", "validation", "heldout")
_VALIDATION_SHARE = 16  # one skin-tone variant in so many of those that are not held out
WHAT = "What is this?"
WHICH_GROUP = "Which group?"
_GROUP_SHARE = 0.06  # of the conversations and of the queries; all others are about the name
FILL = 0.92
"""The share of the canvas an emoji fills in the evaluation rendering."""


@dataclasses.dataclass(frozen=True, eq=False)
class Emoji:
    """One emoji. `pixels` is uint8 [96, 96, 4] RGBA (alpha not premultiplied), read-only."""

    pixels: np.ndarray
    emoji: str
    name: str
    group: str
    subgroup: str
    keywords: tuple[str, ...]
    split: str

    @property
    def codepoints(self) -> str:
        """The characters as hexadecimal code points, e.g. "1f44b-1f3ff"."""
        return "-".join(f"{ord(char):x}" for char in self.emoji)

    @functools.cached_property
    def sprite(self) -> Image.Image:
        """The picture with premultiplied alpha, as resizing wants it (mode RGBa)."""
        return Image.fromarray(self.pixels, "RGBA").convert("RGBa")


@functools.cache
def load_emoji(split: str = "all") -> tuple[Emoji, ...]:
    """The packaged emoji of a split ("train", "validation", "heldout" or "all").

    Like the held-out ones, those for validation are skin-tone variants; they choose recipes and
    checkpoints, so that the held-out ones need not.
    """
    if split == "all":
        return tuple(emoji for part in SPLITS for emoji in load_emoji(part))
    if split == "heldout":
        return read_emoji(DATA_DIR, "heldout")
    if split not in SPLITS:
        raise CremError(f"unknown emoji split {split!r}; expected one of {(*SPLITS, 'all')}")
    return tuple(emoji for emoji in _not_held_out() if emoji.split == split)


@functools.cache
def _not_held_out() -> tuple[Emoji, ...]:
    def is_for_validation(emoji: Emoji) -> bool:
        digest = hashlib.blake2b(emoji.emoji.encode(), digest_size=8).digest()
        return "skin tone" in emoji.name and int.from_bytes(digest) % _VALIDATION_SHARE == 0

    return tuple(
        dataclasses.replace(emoji, split="validation") if is_for_validation(emoji) else emoji
        for emoji in read_emoji(DATA_DIR, "train")
    )


def read_emoji(directory: Path, split: str) -> tuple[Emoji, ...]:
    """The emoji of a split of a data set that `build_emoji` wrote."""
    source = tfds.builder_from_directory(directory).as_data_source(
        split, decoders={"image": tfds.decode.SkipDecoding()}
    )
    rows = [source[i] for i in range(len(source))]
    rgb = [np.asarray(Image.open(io.BytesIO(row["image"])).convert("RGB")) for row in rows]
    pixels = np.concatenate([cut_out(np.stack(rgb[i : i + 256])) for i in range(0, len(rgb), 256)])
    pixels.flags.writeable = False
    return tuple(
        Emoji(
            pixels=picture,
            emoji=row["emoji"].decode(),
            name=row["name"].decode(),
            group=row["group"].decode(),
            subgroup=row["subgroup"].decode(),
            keywords=tuple(word.decode() for word in row["keywords"]),
            split=split,
        )
        for row, picture in zip(rows, pixels, strict=True)
    )


@functools.cache
def _names_by_picture() -> dict[bytes, tuple[str, ...]]:
    """Every picture's names: 21 emoji share 8 pictures (flags of one country's territories)."""
    names = defaultdict(list)
    for emoji in load_emoji("all"):
        names[emoji.pixels.tobytes()].append(emoji.name)
    return {picture: tuple(values) for picture, values in names.items() if len(values) > 1}


def same_picture_names(emoji: Emoji) -> tuple[str, ...]:
    """The names that describe this emoji's picture truly, its own first."""
    shared = _names_by_picture().get(emoji.pixels.tobytes(), ())
    return (emoji.name, *(name for name in shared if name != emoji.name))


class EmojiPictures:
    """Random access to single emoji as training records.

    Args:
      split: "train", "validation", "heldout" or "all".
      size: side of the square canvas in pixels.
    """

    def __init__(self, split: str = "train", size: int = 48):
        self._emoji = load_emoji(split)
        self.size = size

    def __len__(self) -> int:
        return len(self._emoji)

    def __getitem__(self, index: int) -> Emoji:
        return self._emoji[index]

    def draw(self, index: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """uint8 [size, size, 3]: centred on white (for evaluation), or augmented by `rng`.

        Pictures are never mirrored: arrows, hands and letters would change their names.
        """
        if rng is None:
            side = round(FILL * self.size)
            top = left = (self.size - side) // 2
            canvas = np.full((self.size, self.size, 3), 255, np.float32)
        else:
            side = int(rng.integers(round(0.75 * self.size), self.size + 1))
            top, left = rng.integers(0, self.size - side + 1, 2)
            canvas = np.array(random_background(rng, self.size))
        sprite = self._emoji[index].sprite.resize((side, side), Image.Resampling.BILINEAR)
        paste(canvas, np.asarray(sprite), top, left)
        if rng is not None:
            canvas *= colour_gain(rng, common=0.05, channel=0.08)
        return to_pixels(canvas)

    def record(self, index: int, rng: np.random.Generator | None = None) -> Record:
        """Record `index`: the evaluation rendering without `rng`, an augmented one with it."""
        emoji = self._emoji[index]
        picture = self.draw(index, rng)
        query = Item(images=(picture,))
        positives = tuple(Item(text=name) for name in same_picture_names(emoji))
        turns = [(WHAT, emoji.name)]
        if rng is not None:
            if rng.random() < _GROUP_SHARE:
                turns = [(WHICH_GROUP, emoji.group)]
            if rng.random() < _GROUP_SHARE:
                query = Item(text=WHICH_GROUP, images=(picture,))
                positives = (Item(text=emoji.group),)
        return Record(
            id=f"emoji/{emoji.codepoints}",
            query=query,
            positives=positives,
            turns=tuple(turns),
            source="emoji",
        )

    def clusters(self) -> list[np.ndarray]:
        """Indices of emoji that look alike, each index in exactly one cluster.

        A cluster is one concept in all its skin tones and genders ("man cook: dark skin tone" and
        "woman cook"); concepts of a single emoji are put together by subgroup.
        """
        concepts = defaultdict(list)
        for index, emoji in enumerate(self._emoji):
            concepts[_concept(emoji.name)].append(index)
        clusters, single = [], defaultdict(list)
        for members in concepts.values():
            if len(members) > 1:
                clusters.append(np.array(members))
            else:
                single[self._emoji[members[0]].subgroup].append(members[0])
        return clusters + [np.array(members) for members in single.values()]

    def clustered_order(self, rng: np.random.Generator, size: int = 4) -> np.ndarray:
        """A permutation of all indices, int64 [N], made of runs of up to `size` of one cluster.

        Consecutive samples of a batch are then hard negatives for each other.
        """
        runs = []
        for members in self.clusters():
            shuffled = rng.permutation(members)
            runs += [shuffled[i : i + size] for i in range(0, len(shuffled), size)]
        return np.concatenate([runs[i] for i in rng.permutation(len(runs))])


def _concept(name: str) -> str:
    """The name without skin tone and gender: "man cook: dark skin tone" → "cook"."""
    base = name.split(":")[0]
    words = [w for w in base.split() if not re.fullmatch(r"m[ae]n|wom[ae]n|person|people", w)]
    return " ".join(words) or "person"
