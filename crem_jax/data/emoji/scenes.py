"""Scenes as training records: caption retrieval, visual questions, grounding, and conversations."""

from __future__ import annotations

import dataclasses

import numpy as np

from crem_jax.data.emoji.questions import SEE, caption, caption_edits, questions
from crem_jax.data.emoji.scene import CELLS, Scene, sample_scene
from crem_jax.data.emoji.sign import sample_sign
from crem_jax.data.records import Item, Record
from crem_jax.errors import CremError

LENGTHS = {"train": 100_000, "heldout": 256}
"""Scenes are drawn, not stored: the training length is nominal."""

_SEEDS = {"train": 0, "heldout": 3}  # with seed 3 all held-out captions differ
_CAPTION_TURN_SHARE = 0.6
_TASK_SHARES = {"caption": 0.70, "question": 0.15, "find": 0.15}


class Scenes:
    """Random access to scenes as training records.

    Args:
      split: "train" or "heldout" (scenes with pairs of objects that training never shows together).
      negatives: one-attribute caption edits given as hard negatives with every caption.
      size: side of the square canvas in pixels.
      turns: (question, answer) pairs a record.
      text: share of the scenes with a free quadrant that have a sign there: a word or a number.
    """

    def __init__(
        self,
        split: str = "train",
        negatives: int = 3,
        size: int = 96,
        turns: int = 3,
        text: float = 0.0,
    ):
        if split not in LENGTHS:
            raise CremError(f"unknown scene split {split!r}; expected one of {tuple(LENGTHS)}")
        if not 0 <= text <= 1:
            raise CremError(f"text is {text}; expected a share from 0 to 1")
        self.text = text
        self.split = split
        self.negatives = negatives
        self.size = size
        self.turns = turns

    def __len__(self) -> int:
        return LENGTHS[self.split]

    def scene(self, index: int) -> Scene:
        """The scene that `record(index)` without a generator shows."""
        return self._sample(self._generator(index))

    def record(self, index: int, rng: np.random.Generator | None = None) -> Record:
        """A training record.

        With `rng` a training record is a fresh random scene. Without it, and always for the
        held-out split, the record is a function of (split, index) and its task is the caption.
        """
        fixed = rng is None or self.split == "heldout"
        if rng is None or fixed:
            rng = self._generator(index)
        scene = self._sample(rng)
        canvas = scene.draw(rng, self.size)
        task = "caption" if fixed else str(rng.choice(list(_TASK_SHARES), p=_task_shares()))
        asked = [(question, answer) for _, question, answer in questions(scene, rng)]
        query, positive = Item(images=(canvas,)), Item(text=caption(scene))
        negatives: tuple[Item, ...] = ()
        if task == "caption":
            edits = caption_edits(scene, self.negatives, rng)
            negatives = tuple(Item(text=edit) for edit in edits)
        elif task == "question":
            question, answer = asked[rng.integers(len(asked))]
            query, positive = Item(text=question, images=(canvas,)), Item(text=answer)
        else:
            phrase, crop = self._referred(scene, canvas, rng)
            query, positive = Item(text=phrase, images=(canvas,)), Item(images=(crop,))
        return Record(
            id=f"scenes/{self.split}/{index}",
            query=query,
            positives=(positive,),
            negatives=negatives,
            turns=self._conversation(scene, asked, rng),
            source="scenes",
        )

    def _sample(self, rng: np.random.Generator) -> Scene:
        scene = sample_scene(rng, self.split)
        if self.text and scene.free and rng.random() < self.text:
            scene = dataclasses.replace(scene, sign=sample_sign(rng, scene.free, self.split))
        return scene

    def _generator(self, index: int) -> np.random.Generator:
        return np.random.default_rng([_SEEDS[self.split], index])

    def _referred(
        self, scene: Scene, canvas: np.ndarray, rng: np.random.Generator
    ) -> tuple[str, np.ndarray]:
        """A phrase that means one thing of the scene, and the crop of that thing's cell."""
        thing = scene.things[rng.integers(len(scene.things))]
        alone = thing in scene.unique()
        half = self.size // 2
        top, left = (thing.cell // 2) * half, (thing.cell % 2) * half
        phrase = f"find the {thing.name}" + ("" if alone else f" {CELLS[thing.cell]}")
        return phrase, canvas[top : top + half, left : left + half].copy()

    def _conversation(
        self, scene: Scene, asked: list[tuple[str, str]], rng: np.random.Generator
    ) -> tuple[tuple[str, str], ...]:
        turns = asked[: self.turns]
        if turns and rng.random() < _CAPTION_TURN_SHARE:
            turns[rng.integers(len(turns))] = (SEE, caption(scene))
        return tuple(turns)


def _task_shares() -> list[float]:
    return list(_TASK_SHARES.values())
