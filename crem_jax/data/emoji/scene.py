"""A scene: one to four emoji in the quadrants of a canvas, and how scenes are drawn and sampled.

Some pairs of objects (about one in eight, chosen by hash) never meet in a training scene, and every
held-out scene has such a pair: a test of composition, not of memory.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools

import numpy as np
from PIL import Image

from crem_jax.data.emoji.drawing import colour_gain, paste, random_background, to_pixels
from crem_jax.data.emoji.emoji import Emoji, load_emoji
from crem_jax.data.emoji.sign import Sign, board
from crem_jax.errors import CremError

# fmt: off
OBJECTS = (
    "tiger", "panda", "frog", "penguin", "octopus", "butterfly", "whale", "red apple", "banana",
    "watermelon", "carrot", "pizza", "doughnut", "sunflower", "cactus", "mushroom", "rocket",
    "sailboat", "bicycle", "key", "guitar", "alarm clock", "umbrella", "soccer ball", "crown",
    "balloon", "rainbow", "gem stone", "house",
)
# fmt: on
HANDS = ("waving hand", "thumbs up", "raised fist")
NAMES = OBJECTS + HANDS
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
CELLS = ("top left", "top right", "bottom left", "bottom right")
"""The quadrants in reading order; cell c is in row c // 2 and column c % 2."""

HELD_OUT_SHARE = 0.12
REPEAT_SHARE = 0.15
COUNT_SHARES = {"train": (0.3, 0.2, 0.2, 0.3), "heldout": (0.1, 0.25, 0.35, 0.3)}
"""How often a scene has one, two, three and four objects, before those of the other split are
dropped. Scenes of one object teach places on their own; held-out ones have two at least."""

_HAND_WEIGHT = 2.0  # hands are few among the objects and carry all the tone questions
_SPRITE_STEPS = 6


@dataclasses.dataclass(frozen=True, order=True)
class SceneObject:
    """An object in a cell (index into CELLS); `tone` is a skin tone for hands and "" otherwise."""

    cell: int
    name: str
    tone: str = ""

    @property
    def label(self) -> str:
        """What a caption calls it: "tiger", "dark waving hand"."""
        return f"{self.tone} {self.name}" if self.tone else self.name


@dataclasses.dataclass(frozen=True)
class Scene:
    """Things in reading order, at most one a cell, and perhaps a sign in a cell that is free."""

    things: tuple[SceneObject, ...]
    sign: Sign | None = None

    def __post_init__(self):
        cells = [thing.cell for thing in self.things]
        if not cells or sorted(set(cells)) != cells or not 0 <= cells[0] <= cells[-1] < len(CELLS):
            raise CremError(
                f"a scene's cells are {cells}; expected distinct rising numbers in 0..3"
            )
        if self.sign and self.sign.cell not in self.free:
            raise CremError(f"the sign's cell {self.sign.cell} is none of the free {self.free}")

    @property
    def names(self) -> tuple[str, ...]:
        """The object names in reading order, repeats included."""
        return tuple(thing.name for thing in self.things)

    @property
    def free(self) -> tuple[int, ...]:
        """The cells without a thing."""
        taken = {thing.cell for thing in self.things}
        return tuple(cell for cell in range(len(CELLS)) if cell not in taken)

    def unique(self) -> tuple[SceneObject, ...]:
        """The things whose name no other thing of the scene has: "the tiger" means one of these."""
        return tuple(thing for thing in self.things if self.names.count(thing.name) == 1)

    def draw(self, rng: np.random.Generator, size: int = 96) -> np.ndarray:
        """uint8 [size, size, 3]: place, size, background and brightness vary with `rng`."""
        if size < 16 or size % 2:
            raise CremError(f"scene size is {size}; expected an even number of at least 16")
        canvas = np.array(random_background(rng, size))
        half = size // 2
        for thing in self.things:
            sprite = _sprite(thing.name, thing.tone, half, int(rng.integers(_SPRITE_STEPS)))
            top, left = rng.integers(0, half - sprite.shape[0] + 1, 2)
            paste(canvas, sprite, (thing.cell // 2) * half + top, (thing.cell % 2) * half + left)
        if self.sign:
            sprite, cell = board(self.sign.text, half), self.sign.cell
            top, left = (int(rng.integers(half - side + 1)) for side in sprite.shape[:2])
            paste(canvas, sprite, (cell // 2) * half + top, (cell % 2) * half + left)
        canvas *= colour_gain(rng, common=0.04, channel=0.04)
        return to_pixels(canvas)


@functools.cache
def _catalogue() -> dict[tuple[str, str], Emoji]:
    """(name, tone) → its emoji, for every object and every tone that a hand has a picture for."""
    by_name = {emoji.name: emoji for emoji in load_emoji("all")}
    catalogue = {(name, ""): by_name[name] for name in OBJECTS}
    for name, tone in itertools.product(HANDS, TONES):
        if f"{name}: {tone} skin tone" in by_name:
            catalogue[name, tone] = by_name[f"{name}: {tone} skin tone"]
    return catalogue


@functools.cache
def tones_of(name: str, split: str) -> tuple[str, ...]:
    """The tones a hand may have in a split's scenes: ("",) for objects.

    Training scenes show no picture of the held-out emoji.
    """
    return tuple(
        tone
        for (other, tone), emoji in _catalogue().items()
        if other == name and (split == "heldout" or emoji.split == "train")
    )


@functools.cache
def _sprite(name: str, tone: str, cell: int, step: int) -> np.ndarray:
    """float32 [side, side, 4], premultiplied: 75 to 96 % of the cell in `_SPRITE_STEPS` sizes."""
    side = round(cell * (0.75 + 0.21 * step / (_SPRITE_STEPS - 1)))
    sprite = _catalogue()[name, tone].sprite.resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(sprite, np.float32)


@functools.cache
def held_out_pairs() -> frozenset[frozenset[str]]:
    """The pairs of different objects that never share a training scene."""

    def share(pair: tuple[str, str]) -> float:
        digest = hashlib.blake2b("|".join(sorted(pair)).encode(), digest_size=4).digest()
        return int.from_bytes(digest, "little") / 2**32

    pairs = itertools.combinations(NAMES, 2)
    return frozenset(frozenset(pair) for pair in pairs if share(pair) < HELD_OUT_SHARE)


def has_held_out_pair(scene: Scene) -> bool:
    """Whether two objects of the scene form a held-out pair."""
    pairs = itertools.combinations(set(scene.names), 2)
    return any(frozenset(pair) in held_out_pairs() for pair in pairs)


def sample_scene(rng: np.random.Generator, split: str = "train") -> Scene:
    """A random scene of the split, "train" or "heldout" (which has at least two objects)."""
    if split not in ("train", "heldout"):
        raise CremError(f"unknown scene split {split!r}; expected 'train' or 'heldout'")
    while True:
        count = 1 + int(rng.choice(4, p=COUNT_SHARES[split]))
        names = list(rng.choice(NAMES, count, replace=False, p=_weights()))
        if count > 1 and rng.random() < REPEAT_SHARE:
            names[-1] = names[0]
        cells = sorted(rng.permutation(len(CELLS))[:count].tolist())
        order = rng.permutation(count)
        things = []
        for cell, which in zip(cells, order, strict=True):
            name = str(names[which])
            tones = tones_of(name, split)
            things.append(SceneObject(cell, name, tones[rng.integers(len(tones))]))
        scene = Scene(tuple(things))
        if has_held_out_pair(scene) == (split == "heldout"):
            return scene


@functools.cache
def _weights() -> np.ndarray:
    weights = np.array([_HAND_WEIGHT if name in HANDS else 1.0 for name in NAMES])
    return weights / weights.sum()
