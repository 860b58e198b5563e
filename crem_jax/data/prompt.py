"""Items and conversations become token rows; rows become static-shaped batches.

    context  [system] <|im_start|>user⏎ {pictures} {text} | padding | {chorus}
    target   {question}<|im_end|>⏎<|im_start|>assistant⏎{answer}<|im_end|>⏎<|im_start|>user⏎ …

The same tokens as the chat template gives in one string, split where the chorus ends.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np

from crem_jax.config import ModelConfig
from crem_jax.data.image import fit_size, open_picture, patchify, resize
from crem_jax.data.records import Item, Picture
from crem_jax.types import CHORUS, CONTEXT, PAD, Context, Patches, Target


class PromptError(ValueError):
    """A prompt does not fit the model or the bucket it was meant for."""


@dataclasses.dataclass(frozen=True, eq=False)
class ContextRow:
    """One context before padding.

    Attributes:
      tokens: int32 [n] of V and T, without the chorus.
      position: int32 [n, 3].
      pixels: uint8 [p, values]; patch_position: int32 [p, 2]; picture: int32 [p].
    """

    tokens: np.ndarray
    position: np.ndarray
    pixels: np.ndarray
    patch_position: np.ndarray
    picture: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class TargetRow:
    """One target region before padding. tokens: int32 [n]; label: int32 [n], -1 off the answers."""

    tokens: np.ndarray
    label: np.ndarray


class Prompter:
    """Builds rows for one model.

    Args:
      config: the model's.
      tokenizer: a transformers tokenizer holding Qwen2-VL's special tokens.
      hard_max: never exceed the model's max_pixels, which Qwen2-VL's own rule does for long strips;
        for batches of static shape.
    """

    def __init__(self, config: ModelConfig, tokenizer, hard_max: bool = False):
        self.config = config
        self.tokenizer = tokenizer
        self.hard_max = hard_max
        self.user_tokens = functools.lru_cache(maxsize=1 << 17)(self._user_tokens)
        text, system = self.user_tokens, config.system_prompt
        start, end = (
            tokenizer.convert_tokens_to_ids(f"<|im_{word}|>") for word in ("start", "end")
        )
        opening = (start, *text(f"system\n{system}"), end, *text("\n")) if system else ()
        self._head = (*opening, start)
        self._to_answer = (end, *text("\n"), start, *text("assistant\n"))
        self._end = (end,)
        self._to_question = (*text("\n"), start, *text("user\n"))

    def _user_tokens(self, text: str) -> tuple[int, ...]:
        """Tokens of a text that is not ours; special tokens written in it stay plain text."""
        # Always the same switch: it is state of the tokenizer that other threads would see flip.
        encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        return tuple(encoded["input_ids"])

    def context(self, item: Item | None) -> ContextRow:
        """Tokens, M-RoPE positions (Qwen2-VL section 2.1) and patches of one item.

        None is the bare opening of a conversation, before a question without pictures.
        """
        cfg = self.config
        item = item or _NOTHING
        # One piece with what precedes it, as a tokenizer may join line breaks.
        opening = self.user_tokens("user\n" if item.images else f"user\n{item.text}")
        tokens, positions = [*self._head, *opening], []
        pixels, patch_positions, pictures = [], [], []
        start = len(tokens)
        positions.append(_text_positions(0, start))
        for number, image in enumerate(item.images, start=1):
            patches, patch_position = self.patches(image)
            pixels.append(patches)
            patch_positions.append(patch_position)
            pictures.append(np.full(len(patches), number, np.int32))
            rows, columns = (patch_position.max(axis=0) + 1) // cfg.vision.merge_size
            tokens.append(cfg.vision_start_token_id)
            tokens.extend([cfg.image_token_id] * int(rows * columns))
            tokens.append(cfg.vision_end_token_id)
            positions.append(_text_positions(start, 1))
            grid = np.indices((1, rows, columns)).reshape(3, -1).T
            positions.append((grid + start + 1).astype(np.int32))
            start += 1 + int(max(rows, columns))
            positions.append(_text_positions(start, 1))
            start += 1
        text = self.user_tokens(item.text) if item.images else ()
        tokens.extend(text)
        positions.append(_text_positions(start, len(text)))
        needed = start + len(text) + cfg.num_chorus
        if needed > cfg.text.max_positions:
            raise PromptError(
                f"the prompt needs {needed} positions, chorus included, more than the model's "
                f"{cfg.text.max_positions} positions; its text begins {item.text[:40]!r}"
            )
        values = cfg.vision.patch_values
        return ContextRow(
            tokens=np.asarray(tokens, np.int32),
            position=np.concatenate(positions),
            pixels=_stack(pixels, (0, values), np.uint8),
            patch_position=_stack(patch_positions, (0, 2), np.int32),
            picture=_stack(pictures, (0,), np.int32),
        )

    def patches(self, image: Picture) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [p, values] patches of a picture and their int32 [p, 2] places."""
        vision = self.config.vision
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3:
            image = open_picture(image)
            height, width = image.height, image.width
        else:
            height, width = image.shape[:2]
        size = fit_size(
            height,
            width,
            patch=vision.patch_size,
            merge=vision.merge_size,
            min_pixels=vision.min_pixels,
            max_pixels=vision.max_pixels,
            hard_max=self.hard_max,
        )
        if not isinstance(image, np.ndarray) or size != (height, width) or image.shape[2] != 3:
            image = resize(open_picture(image), *size)
        return patchify(image, vision.patch_size, vision.merge_size)

    def target(self, turns: Sequence[tuple[str, str]]) -> TargetRow:
        """A conversation; the label is on every answer and the <|im_end|> that closes it."""
        tokens: list[int] = []
        label: list[int] = []
        for number, (question, answer) in enumerate(turns):
            asked = (*self.user_tokens(question), *self._to_answer)
            if number:
                asked = (*self._to_question, *asked)
            answered = (*self.user_tokens(answer), *self._end)
            tokens += [*asked, *answered]
            label += [-1] * (len(asked) - 1) + [*answered, -1]
        return TargetRow(np.asarray(tokens, np.int32), np.asarray(label, np.int32))

    def question(self, text: str) -> np.ndarray:
        """Target tokens up to where the answer begins, int32 [n]."""
        return np.asarray([*self.user_tokens(text), *self._to_answer], np.int32)


_NOTHING = SimpleNamespace(text="", images=())


def pad_contexts(
    rows: Sequence[ContextRow], config: ModelConfig, slots: int, patches: int
) -> Context:
    """Rows of a bucket as one Context of numpy arrays, the chorus in the last K slots.

    Args:
      slots: S, chorus included. patches: P; 0 gives a text-only bucket.

    Raises:
      PromptError: a row does not fit.
    """
    chorus, batch = config.num_chorus, len(rows)
    tokens = np.full((batch, slots), config.pad_token_id, np.int32)
    position = np.zeros((batch, slots, 3), np.int32)
    region = np.full((batch, slots), PAD, np.int32)
    pixels = np.zeros((batch, patches, config.vision.patch_values), np.uint8)
    patch_position = np.zeros((batch, patches, 2), np.int32)
    picture = np.zeros((batch, patches), np.int32)
    for i, row in enumerate(rows):
        n, p = len(row.tokens), len(row.picture)
        if n + chorus > slots or p > patches:
            raise PromptError(
                f"a context of {n} tokens + {chorus} chorus tokens and {p} patches does not fit a "
                f"bucket of {slots} slots and {patches} patches"
            )
        tokens[i, :n], position[i, :n], region[i, :n] = row.tokens, row.position, CONTEXT
        if chorus:
            tokens[i, -chorus:] = config.chorus_ids
            position[i, -chorus:] = _text_positions(row.position.max() + 1, chorus)
            region[i, -chorus:] = CHORUS
        pixels[i, :p], patch_position[i, :p], picture[i, :p] = (
            row.pixels,
            row.patch_position,
            row.picture,
        )
    packed = Patches(pixels, patch_position, picture) if patches else None
    return Context(tokens=tokens, position=position, region=region, patches=packed)


def pad_targets(
    rows: Sequence[TargetRow | None], config: ModelConfig, slots: int, answers: int
) -> Target:
    """Target regions as one Target of numpy arrays; None is a row without conversation.

    Args:
      slots: T. answers: A, room for answer tokens in a row.

    Raises:
      PromptError: a conversation does not fit.
    """
    tokens = np.full((len(rows), slots), config.pad_token_id, np.int32)
    valid = np.zeros((len(rows), slots), bool)
    answer_slot = np.zeros((len(rows), answers), np.int32)
    answer = np.full((len(rows), answers), -1, np.int32)
    for i, row in enumerate(rows):
        if row is None:
            continue
        n, places = len(row.tokens), np.flatnonzero(row.label >= 0)
        if n > slots or len(places) > answers:
            raise PromptError(
                f"a conversation of {n} tokens, {len(places)} of them answers, does not fit "
                f"{slots} target slots and {answers} answer slots"
            )
        tokens[i, :n], valid[i, :n] = row.tokens, True
        answer_slot[i, : len(places)], answer[i, : len(places)] = places, row.label[places]
    return Target(tokens=tokens, valid=valid, answer_slot=answer_slot, answer=answer)


def _text_positions(start: int, count: int) -> np.ndarray:
    return np.repeat(np.arange(start, start + count, dtype=np.int32)[:, None], 3, axis=1)


def _stack(parts: list[np.ndarray], empty: tuple[int, ...], dtype) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(empty, dtype)
