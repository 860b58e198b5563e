"""Static shapes at inference: rows of like size go together, in few compiled shapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from crem_jax.config import ModelConfig
from crem_jax.data.rows import ContextRow, pad_contexts
from crem_jax.types import Context

MAX_ROWS = 64
"""Largest batch that is compiled; smaller ones are padded to a power of two."""


Shape = tuple[int, int]
"""Tokens and patches that a row is padded to."""


def shape_of(tokens: int, patches: int) -> Shape:
    """The shape of a row of so many tokens, chorus not counted, and patches."""
    return step_up(tokens), step_up(patches)


def plan_batches(
    shapes: Sequence[Shape], unit: int = 1, most: int = MAX_ROWS
) -> Iterator[tuple[list[int], int]]:
    """Rows of equal shape in batches: the numbers of the rows, and the size to fill them up to.

    Args:
      unit: sizes are multiples of it: the devices that share a batch. most: rows in a batch.
    """
    groups: dict[Shape, list[int]] = {}
    for i, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(i)
    most = max(most // unit, 1) * unit
    for _, members in sorted(groups.items()):
        for first in range(0, len(members), most):
            chosen = members[first : first + most]
            long = len(members) > most  # one shape more is dearer than a half-empty batch
            size = most if long else 1 << (len(chosen) - 1).bit_length()
            yield chosen, -(-size // unit) * unit


def fill_batch(rows: Sequence[ContextRow], size: int, config: ModelConfig) -> Context:
    """Rows of one shape as a padded context of `size` rows, the first one repeated."""
    tokens, patches = shape_of(len(rows[0].tokens), len(rows[0].picture))
    padded = [*rows, *[rows[0]] * (size - len(rows))]
    return pad_contexts(padded, config, tokens + config.num_chorus, patches)


def context_batches(
    rows: Sequence[ContextRow], config: ModelConfig, unit: int = 1
) -> Iterator[tuple[list[int], Context]]:
    """Padded contexts of all rows, each with the numbers of the rows it begins with.

    What follows those in a batch only fills it up; `unit` is as for `plan_batches`.
    """
    shapes = [shape_of(len(row.tokens), len(row.picture)) for row in rows]
    for chosen, size in plan_batches(shapes, unit):
        yield chosen, fill_batch([rows[i] for i in chosen], size, config)


def pad_questions(
    questions: Sequence[np.ndarray], rows: int, pad_token_id: int, width: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Token rows padded on the right: int32 [rows, T] and bool [rows, T], the last one repeated.

    Args:
      width: T; None is what the longest needs.
    """
    width = step_up(max(map(len, questions))) if width is None else width
    tokens = np.full((rows, width), pad_token_id, np.int32)
    valid = np.zeros((rows, width), bool)
    for i in range(rows):
        question = questions[min(i, len(questions) - 1)]
        tokens[i, : len(question)], valid[i, : len(question)] = question, True
    return tokens, valid


def step_up(count: int) -> int:
    """Sizes in steps of a quarter of their power of two: few shapes, at most 25 % padding."""
    if count == 0:
        return 0
    step = max(8, 1 << max((count - 1).bit_length() - 3, 0))
    return -(-count // step) * step
