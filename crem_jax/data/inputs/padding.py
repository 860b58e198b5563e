"""Rows of tokens and patches, and how they are padded to batches of static shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from crem_jax.config import ModelConfig
from crem_jax.errors import CremError
from crem_jax.types import CHORUS, CONTEXT, PAD, Context, Patches, Target


class PromptError(CremError):
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


def pad_contexts(
    rows: Sequence[ContextRow], config: ModelConfig, slots: int, patches: int
) -> Context:
    """Rows of a bucket as one Context of numpy arrays, the chorus in the last K slots.

    Args:
      slots: S, chorus included. patches: P; 0 gives a text-only bucket.

    Raises:
      ValueError: a row does not fit.
    """
    batch = len(rows)
    packed = Patches(
        pixels=np.zeros((batch, patches, config.vision.patch_values), np.uint8),
        position=np.zeros((batch, patches, 2), np.int32),
        picture=np.zeros((batch, patches), np.int32),
    )
    context = Context(
        tokens=np.full((batch, slots), config.pad_token_id, np.int32),
        position=np.zeros((batch, slots, 3), np.int32),
        region=np.full((batch, slots), PAD, np.int32),
        patches=packed if patches else None,
    )
    for i, row in enumerate(rows):
        write_context(context, i, row, config)
    return context


def write_context(context: Context, i: int, row: ContextRow, config: ModelConfig) -> None:
    """Writes a row into row `i` of a Context of numpy arrays that holds padding there.

    Raises:
      ValueError: it does not fit.
    """
    chorus, n, p = config.num_chorus, len(row.tokens), len(row.picture)
    slots = context.tokens.shape[1]
    patches = 0 if context.patches is None else context.patches.picture.shape[1]
    if n + chorus > slots or p > patches:
        raise ValueError(
            f"a context of {n} tokens + {chorus} chorus tokens and {p} patches does not fit a "
            f"bucket of {slots} slots and {patches} patches"
        )
    context.tokens[i, :n], context.position[i, :n] = row.tokens, row.position
    context.region[i, :n] = CONTEXT
    if chorus:
        context.tokens[i, -chorus:] = config.chorus_ids
        context.position[i, -chorus:] = text_positions(row.position.max() + 1, chorus)
        context.region[i, -chorus:] = CHORUS
    if context.patches is not None:
        context.patches.pixels[i, :p] = row.pixels
        context.patches.position[i, :p] = row.patch_position
        context.patches.picture[i, :p] = row.picture


def pad_targets(
    rows: Sequence[TargetRow | None], config: ModelConfig, slots: int, answers: int
) -> Target:
    """Target regions as one Target of numpy arrays; None is a row without conversation.

    Args:
      slots: T. answers: A, room for answer tokens in a row.

    Raises:
      ValueError: a conversation does not fit.
    """
    target = Target(
        tokens=np.full((len(rows), slots), config.pad_token_id, np.int32),
        valid=np.zeros((len(rows), slots), bool),
        answer_slot=np.zeros((len(rows), answers), np.int32),
        answer=np.full((len(rows), answers), -1, np.int32),
    )
    for i, row in enumerate(rows):
        if row is not None:
            write_target(target, i, row)
    return target


def write_target(target: Target, i: int, row: TargetRow) -> None:
    """Writes a conversation into row `i` of a Target of numpy arrays that holds padding there.

    Raises:
      ValueError: it does not fit.
    """
    n, places = len(row.tokens), np.flatnonzero(row.label >= 0)
    slots, answers = target.tokens.shape[1], target.answer.shape[1]
    if n > slots or len(places) > answers:
        raise ValueError(
            f"a conversation of {n} tokens, {len(places)} of them answers, does not fit "
            f"{slots} target slots and {answers} answer slots"
        )
    target.tokens[i, :n], target.valid[i, :n] = row.tokens, True
    target.answer_slot[i, : len(places)], target.answer[i, : len(places)] = (
        places,
        row.label[places],
    )


def text_positions(start: int, count: int) -> np.ndarray:
    """M-RoPE positions of `count` text tokens, int32 [count, 3]."""
    return np.repeat(np.arange(start, start + count, dtype=np.int32)[:, None], 3, axis=1)


def split_hashes(hashes: Sequence[int]) -> np.ndarray:
    """64-bit content hashes as uint32 [n, 2] (low, high)."""
    values = np.asarray(hashes, np.uint64)
    return np.stack([values & np.uint64(0xFFFFFFFF), values >> np.uint64(32)], -1).astype(np.uint32)
