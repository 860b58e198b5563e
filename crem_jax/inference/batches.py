"""Static shapes at inference: rows of like size go together, in few compiled shapes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from crem_jax.config import ModelConfig
from crem_jax.data.inputs.padding import ContextRow, pad_contexts
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
    """Rows in batches of like shape: the numbers of the rows, and the size to fill them up to.

    Full batches are of one shape. The rows that are left over go with those of the next larger
    shapes where that is less to compute than batches of their own, filled up.

    Args:
      unit: sizes are multiples of it: the devices that share a batch. most: rows in a batch.
    """
    most = max(most // unit, 1) * unit
    groups: dict[Shape, list[int]] = {}
    for i, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(i)
    compiled, left = set(), []
    for shape, members in sorted(groups.items(), key=lambda group: group[0][::-1]):
        whole = len(members) // most * most
        for first in range(0, whole, most):
            compiled.add(shape)
            yield members[first : first + most], most
        if members[whole:]:
            left.append((shape, members[whole:]))

    def size(shape: Shape, count: int) -> int:
        if shape in compiled:  # one shape more is dearer than a half-empty batch
            return most
        return min(-(-(1 << (count - 1).bit_length()) // unit) * unit, most)

    yield from _join(left, size, most)


def _join(
    groups: Sequence[tuple[Shape, list[int]]], size: Callable[[Shape, int], int], most: int
) -> Iterator[tuple[list[int], int]]:
    """Neighbouring groups in batches of at most `most` rows with the fewest slots in all."""
    best = [(0, 0, 0)]  # (slots, first group of the last batch, its size), for the first n groups
    for end in range(1, len(groups) + 1):
        ways, shape, count = [], (0, 0), 0
        for first in reversed(range(end)):
            count += len(groups[first][1])
            if count > most:
                break
            shape = _around(shape, groups[first][0])
            rows = size(shape, count)
            ways.append((best[first][0] + rows * sum(shape), first, rows))
        best.append(min(ways))
    batches, end = [], len(groups)
    while end:
        _, first, rows = best[end]
        batches.append(([i for _, members in groups[first:end] for i in members], rows))
        end = first
    yield from reversed(batches)


def _around(a: Shape, b: Shape) -> Shape:
    return max(a[0], b[0]), max(a[1], b[1])


def fill_batch(rows: Sequence[ContextRow], size: int, config: ModelConfig) -> Context:
    """Rows as a padded context of `size` rows and their largest shape, the first one repeated."""
    shapes = (shape_of(len(row.tokens), len(row.picture)) for row in rows)
    tokens, patches = functools.reduce(_around, shapes)
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
