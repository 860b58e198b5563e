"""Batches at inference: every row once, in few slots and few compiled shapes."""

from __future__ import annotations

import collections

import numpy as np
import pytest

from crem_jax.inference.batches import plan_batches, shape_of


def planned(shapes, **options):
    """(numbers, size, shape) of each batch."""
    return [
        (rows, size, tuple(np.max([shapes[i] for i in rows], axis=0).tolist()))
        for rows, size in plan_batches(shapes, **options)
    ]


def slots(batches) -> int:
    return sum(size * sum(shape) for _, size, shape in batches)


def alone(shapes, most: int = 64):
    """Each shape in batches of its own, the last one filled up to a power of two or to `most`."""
    for shape, count in collections.Counter(shapes).items():
        yield from [(None, most, shape)] * (count // most)
        if rest := count % most:
            size = most if count > most else 1 << (rest - 1).bit_length()
            yield None, size, shape


@pytest.fixture(params=["few", "many", "one shape", "texts alone"])
def shapes(request, rng):
    count, patches = {
        "few": (40, [0, 64, 256]),
        "many": (700, [0, 64, 128, 256]),
        "one shape": (130, [64]),
        "texts alone": (90, [0]),
    }[request.param]
    visual = rng.choice(patches, count)
    text = [0] if request.param == "one shape" else rng.integers(4, 90, count)
    return [shape_of(int(v // 4 + t), int(v)) for v, t in np.broadcast(visual, text)]


@pytest.mark.parametrize(("unit", "most"), [(1, 64), (4, 64), (3, 64), (8, 4), (1, 1)])
def test_every_row_once_in_batches_the_devices_can_share(shapes, unit, most):
    batches = planned(shapes, unit=unit, most=most)
    assert sorted(i for rows, *_ in batches for i in rows) == list(range(len(shapes)))
    for rows, size, _ in batches:
        assert len(rows) <= size <= max(most, unit)
        assert size % unit == 0


def test_never_more_slots_or_batches_than_each_shape_alone(shapes):
    batches, apart = planned(shapes), list(alone(shapes))
    assert slots(batches) <= slots(apart)
    assert len(batches) <= len(apart)


def test_stragglers_go_with_the_next_larger_shape():
    assert list(plan_batches([(16, 0)] * 5 + [(24, 0)] * 3)) == [([0, 1, 2, 3, 4, 5, 6, 7], 8)]


def test_a_large_row_stays_apart_from_small_ones():
    assert list(plan_batches([(512, 1024), (16, 0), (16, 0)])) == [([1, 2], 2), ([0], 1)]


def test_full_batches_are_of_one_shape_and_their_rest_fills_the_compiled_one():
    batches = planned([(16, 0)] * 70 + [(24, 0)] * 64)
    assert [(len(rows), size, shape) for rows, size, shape in batches] == [
        (64, 64, (16, 0)),
        (64, 64, (24, 0)),
        (6, 64, (16, 0)),
    ]


def test_nothing():
    assert list(plan_batches([])) == []
