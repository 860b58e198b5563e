"""Batching at inference: groups rows of similar size into batches of few static shapes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from crem_jax.config import ModelConfig
from crem_jax.data.inputs.padding import ContextRow, pad_contexts
from crem_jax.types import Context

MAX_ROWS = 64
"""Largest batch size; smaller batches are padded to a power of two."""


Shape = tuple[int, int]
"""Padded numbers of tokens (without the chorus) and of patches of a row."""


def shape_of(tokens: int, patches: int) -> Shape:
    """The padded shape of a row with these numbers of tokens, without the chorus, and patches."""
    return step_up(tokens), step_up(patches)


def plan_batches(
    shapes: Sequence[Shape], unit: int = 1, most: int = MAX_ROWS
) -> Iterator[tuple[list[int], int]]:
    """Groups rows into batches: yields (indices of the rows, batch size to pad to).

    Full batches hold rows of one shape. Remaining rows are merged with those of the next larger
    shapes where that takes less computation than padded batches of their own.

    Args:
      shapes: padded shape of each row.
      unit: batch sizes are multiples of it, the number of devices that share a batch.
      most: largest batch size.
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
        if shape in compiled:  # compiling another shape costs more than padding
            return most
        return min(-(-(1 << (count - 1).bit_length()) // unit) * unit, most)

    yield from _join(left, size, most)


def _join(
    groups: Sequence[tuple[Shape, list[int]]], size: Callable[[Shape, int], int], most: int
) -> Iterator[tuple[list[int], int]]:
    """Merges neighbouring groups into batches of at most `most` rows, minimising padded slots."""
    best = [(0, 0, 0)]  # (slots, first group of the last batch, its size), for the first n groups
    for end in range(1, len(groups) + 1):
        ways, shape, count = [], (0, 0), 0
        for first in reversed(range(end)):
            count += len(groups[first][1])
            if count > most:
                break
            shape = _elementwise_max(shape, groups[first][0])
            rows = size(shape, count)
            ways.append((best[first][0] + rows * sum(shape), first, rows))
        best.append(min(ways))
    batches, end = [], len(groups)
    while end:
        _, first, rows = best[end]
        batches.append(([i for _, members in groups[first:end] for i in members], rows))
        end = first
    yield from reversed(batches)


def _elementwise_max(a: Shape, b: Shape) -> Shape:
    return max(a[0], b[0]), max(a[1], b[1])


def fill_batch(rows: Sequence[ContextRow], size: int, config: ModelConfig) -> Context:
    """Pads rows to their largest shape and to `size` rows, repeating the first row."""
    shapes = (shape_of(len(row.tokens), len(row.picture)) for row in rows)
    tokens, patches = functools.reduce(_elementwise_max, shapes)
    padded = [*rows, *[rows[0]] * (size - len(rows))]
    return pad_contexts(padded, config, tokens + config.num_chorus, patches)


def context_batches(
    rows: Sequence[ContextRow], config: ModelConfig, unit: int = 1
) -> Iterator[tuple[list[int], Context]]:
    """Yields (indices of rows, padded context) until all rows are covered.

    A context begins with the given rows; any further rows are padding. `unit` is as for
    `plan_batches`.
    """
    shapes = [shape_of(len(row.tokens), len(row.picture)) for row in rows]
    for chosen, size in plan_batches(shapes, unit):
        yield chosen, fill_batch([rows[i] for i in chosen], size, config)


def pad_questions(
    questions: Sequence[np.ndarray], rows: int, pad_token_id: int, width: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Pads token ids on the right, and to `rows` rows by repeating the last question.

    Args:
      width: T; None is as long as the longest question needs.

    Returns:
      Token ids int32 [rows, T], and bool [rows, T], False on padding.
    """
    width = step_up(max(map(len, questions))) if width is None else width
    tokens = np.full((rows, width), pad_token_id, np.int32)
    valid = np.zeros((rows, width), bool)
    for i in range(rows):
        question = questions[min(i, len(questions) - 1)]
        tokens[i, : len(question)], valid[i, : len(question)] = question, True
    return tokens, valid


def step_up(count: int) -> int:
    """Rounds a size up to one of few: four steps between powers of two, at most 25 % padding."""
    if count == 0:
        return 0
    step = max(8, 1 << max((count - 1).bit_length() - 3, 0))
    return -(-count // step) * step
