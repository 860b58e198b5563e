"""Static shapes at inference: rows of like size go together, in few compiled shapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from crem_jax.config import ModelConfig
from crem_jax.data.rows import ContextRow, pad_contexts
from crem_jax.types import Context

MAX_ROWS = 64
"""Largest batch that is compiled; smaller ones are padded to a power of two."""


def context_batches(
    rows: Sequence[ContextRow], config: ModelConfig
) -> Iterator[tuple[list[int], Context]]:
    """Padded contexts of all rows, each with the numbers of the rows it begins with.

    What follows those in a batch only fills it up.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for i, row in enumerate(rows):
        shape = (step_up(len(row.tokens)), step_up(len(row.picture)))
        groups.setdefault(shape, []).append(i)
    for (tokens, patches), members in sorted(groups.items()):
        for first in range(0, len(members), MAX_ROWS):
            chosen = members[first : first + MAX_ROWS]
            long = len(members) > MAX_ROWS  # one shape more is dearer than a half-empty batch
            size = MAX_ROWS if long else 1 << (len(chosen) - 1).bit_length()
            padded = [rows[i] for i in chosen] + [rows[chosen[0]]] * (size - len(chosen))
            yield chosen, pad_contexts(padded, config, tokens + config.num_chorus, patches)


def pad_questions(
    questions: Sequence[np.ndarray], rows: int, pad_token_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Token rows padded on the right: int32 [rows, T] and bool [rows, T], the last one repeated."""
    width = step_up(max(len(question) for question in questions))
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
