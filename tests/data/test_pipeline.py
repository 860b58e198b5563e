"""Batches are a pure function of (seed, step, process), and hold what their records say."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter

import jax
import numpy as np
import pytest

from crem_jax.configs.schema.data import BucketSpec
from crem_jax.data.batches.bucketing import Batcher
from crem_jax.data.batches.iterator import BatchIterator
from crem_jax.data.batches.packing import BatchPacker
from crem_jax.data.batches.stream import Stream
from crem_jax.data.records import Item, Record
from crem_jax.types import CHORUS, CONTEXT, Batch
from tests.support import toy


def stream(seed: int = 3, process: int = 0, processes: int = 1, size: int = 40, **changes):
    spec = dataclasses.replace(toy.SPEC, **changes)
    return Stream({"toy": toy.Toy(size)}, spec, toy.prompter(), seed, process, processes)


def assert_equal(a: Batch, b: Batch) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def rows_of(batch: Batch) -> list[tuple]:
    """What every row holds, by row number: context tokens, pixels and labelled answers."""
    rows = []
    for name, context in sorted(batch.contexts.items()):
        for i, tokens in enumerate(context.tokens):
            row = tuple(tokens[context.region[i] == CONTEXT].tolist())
            pixels = b""
            if context.patches is not None:
                pixels = context.patches.pixels[i][context.patches.picture[i] > 0].tobytes()
            answer = ()
            if name in batch.targets:
                answer = tuple(batch.targets[name].answer[i])
            rows.append((row, pixels, answer))
    return rows


def meaning(batch: Batch) -> tuple[Counter, Counter]:
    """The queries with what they look for, and the candidates, whatever rows they are in."""
    rows = rows_of(batch)
    queries = Counter(
        (rows[row], wanted.tobytes())
        for row, wanted in zip(batch.query_row, batch.positive_hash, strict=True)
        if row >= 0
    )
    candidates = Counter(
        (rows[row][:2], wanted.tobytes())
        for row, wanted in zip(batch.candidate_row, batch.candidate_hash, strict=True)
        if row >= 0
    )
    return queries, candidates


def together(parts: list[Batch]) -> Batch:
    """What the processes' local arrays are as global ones."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def test_a_batch_is_a_pure_function_of_seed_and_step():
    first, again = stream(), stream()
    for step in (5, 0, 5):
        assert_equal(first.batch(step), again.batch(step))
    ids = [record.id for record in first.records(0)]
    assert ids != [record.id for record in first.records(1)]
    assert ids != [record.id for record in stream(seed=4).records(0)]


def test_the_iterator_gives_the_batches_of_steps_0_1_2_and_resumes_anywhere():
    source = stream()
    iterator = BatchIterator(source, 6)
    for step in range(3):
        assert_equal(next(iterator), source.batch(step))
    state = iterator.get_state()
    other = BatchIterator(stream(), 6)
    other.set_state(state)
    rest = list(other)
    assert len(rest) == 3
    assert_equal(rest[0], source.batch(3))


@pytest.mark.parametrize("processes", [2, 4])
def test_the_processes_shares_make_the_batch_of_one_process(processes):
    whole = stream()
    shares = [stream(process=p, processes=processes) for p in range(processes)]
    for step in (0, 7):
        parts = zip(*(share.records(step) for share in shares), strict=True)
        ids = [record.id for part in parts for record in part]
        assert ids == [record.id for record in whole.records(step)]
        assert len(set(ids)) == 8
        got, expected = together([share.batch(step) for share in shares]), whole.batch(step)
        assert [leaf.shape for leaf in jax.tree.leaves(got)] == [
            leaf.shape for leaf in jax.tree.leaves(expected)
        ]
        assert meaning(got) == meaning(expected)
        assert meaning(got)[0].total() == 8
        assert meaning(got)[1].total() == 16


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("data.records.toy = 9", {"records": {"toy": 9}}),
        ("data.candidates = 25", {"candidates": 25}),
        ("data.buckets.text.rows = 7", {"buckets": {"text": BucketSpec(20, 0, 7)}}),
    ],
)
def test_what_does_not_divide_among_processes_is_refused_by_its_key(key, changes):
    with pytest.raises(ValueError, match=f"{re.escape(key)} is no multiple of 2 processes"):
        stream(processes=2, **changes)


@pytest.mark.parametrize("size", [40, 37], ids=["whole batches", "an epoch ends inside a batch"])
def test_every_record_comes_once_an_epoch(size):
    source = stream(size=size)
    ids = [record.id for step in range(30) for record in source.records(step)]
    epochs = [ids[i : i + size] for i in range(0, 3 * size, size)]
    for epoch in epochs:
        assert len(set(epoch)) == size
    assert epochs[0] != epochs[1]


class InPairs(toy.Toy):
    def clustered_order(self, rng: np.random.Generator) -> np.ndarray:
        pairs = rng.permutation(len(self) // 2)
        return np.stack([2 * pairs, 2 * pairs + 1], axis=1).reshape(-1)


def test_a_clustered_order_is_kept_and_covers_every_record_once_an_epoch():
    source = Stream({"toy": InPairs()}, toy.SPEC, toy.prompter(), seed=3)
    numbers = [int(r.id.split("-")[1]) for step in range(10) for r in source.records(step)]
    for epoch in (numbers[:40], numbers[40:]):
        assert sorted(epoch) == list(range(40))
        pairs = np.reshape(epoch, (20, 2))
        assert (pairs[:, 0] + 1 == pairs[:, 1]).all()
    assert numbers[:40] != numbers[40:]


def test_a_record_seen_again_is_drawn_afresh():
    source = stream(size=8)
    records = [r for step in (0, 1) for r in source.records(step) if r.id == "toy-3"]
    assert len(records) == 2
    assert (records[0].query.images[0] != records[1].query.images[0]).any()


def record(name: str, query: Item, *positives: str, **rest) -> Record:
    return Record(id=name, query=query, positives=tuple(map(Item, positives)), **rest)


def batch_of(records: list[Record], **changes) -> Batch:
    spec = dataclasses.replace(toy.SPEC, **{"records": {"toy": len(records)}, **changes})
    batcher = Batcher(spec, toy.prompter())
    packer, samples = BatchPacker(batcher), [batcher.sample(one) for one in records]
    assert packer.add(samples) == [True] * len(records)
    assert packer.add_negatives(samples) == []
    return packer.batch


def used(batch: Batch) -> int:
    return sum(np.count_nonzero((c.region == CONTEXT).sum(1) > 1) for c in batch.contexts.values())


def picture(value: int) -> Item:
    return Item(images=(np.full((16, 16, 3), value, np.uint8),))


def test_the_same_item_is_encoded_once():
    same = [
        record("a", Item("red"), "blue"),
        record("b", Item("green"), "blue", negatives=(Item("red"),)),
    ]
    batch = batch_of(same)
    assert used(batch) == 3
    candidates = batch.candidate_row[batch.candidate_row >= 0]
    assert len(candidates) == 2
    assert batch.query_row[0] in candidates


def test_a_query_with_a_conversation_is_compressed_once_for_both_losses():
    batch = batch_of([record("a", picture(9), "red", turns=(("What?", "red"),))])
    assert used(batch) == 2
    row = int(batch.query_row[0])
    assert (batch.targets["picture"].answer[row] >= 0).sum() > 1


def test_two_conversations_about_one_item_keep_their_own_rows():
    turns = [(("What?", "red"),), (("Which?", "blue"),)]
    batch = batch_of([record(str(i), picture(9), "red", turns=t) for i, t in enumerate(turns)])
    assert batch.query_row[0] != batch.query_row[1]
    answers = batch.targets["picture"].answer[batch.query_row]
    assert (answers[0] != answers[1]).any()


def test_rows_that_only_fill_a_bucket_are_referenced_by_nothing():
    batch = stream().batch(0)
    referenced = {*batch.query_row.tolist(), *batch.candidate_row.tolist()} - {-1}
    empty, start = set(), 0
    for name, context in sorted(batch.contexts.items()):
        rows = np.flatnonzero((context.region == CONTEXT).sum(axis=1) == 1)
        empty |= {start + int(row) for row in rows}
        if name in batch.targets:
            assert not batch.targets[name].valid[rows].any()
            assert (batch.targets[name].answer[rows] == -1).all()
        start += len(context.tokens)
    assert len(empty) == 8
    assert not empty & referenced
    assert len(referenced) == 24


def test_labels_fall_on_answers_only():
    source = stream()
    batch, tokens = source.batch(2), toy.prompter().user_tokens
    end = toy.config().eos_token_id
    for i, one in enumerate(source.records(2)):
        row = int(batch.query_row[i])
        target = jax.tree.map(lambda x, row=row: x[row], batch.targets["picture"])
        expected = [t for _, answer in one.turns for t in (*tokens(answer), end)]
        assert target.answer[target.answer >= 0].tolist() == expected
        slots = target.answer_slot[: len(expected)]
        assert target.tokens[slots + 1].tolist() == expected


def test_the_chorus_closes_every_row():
    for context in stream().batch(0).contexts.values():
        assert (context.region[:, -4:] == CHORUS).all()
        assert (context.region[:, :-4] != CHORUS).all()
        assert (context.tokens[:, -4:] == toy.config().chorus_ids).all()


def test_the_smallest_bucket_with_room_is_taken():
    buckets = {
        "big": BucketSpec(40, 0, 4),
        "small": BucketSpec(12, 0, 1),
        "picture": toy.SPEC.buckets["picture"],
    }
    batch = batch_of([record("a", Item("red"), "blue")], buckets=buckets, candidates=4)
    offset = {"big": 0, "picture": 4, "small": 12}
    assert batch.query_row[0] == offset["small"]
    assert batch.candidate_row[0] == offset["big"]


@pytest.mark.parametrize(
    ("one", "size"),
    [
        (
            record("large", Item(images=(np.zeros((64, 64, 3), np.uint8),))),
            r"\d+ slots, 64 patches",
        ),
        (record("long", Item(" cat" * 60)), "67 slots, 0 patches, no conversation"),
        (
            record("chatty", picture(1), turns=(("What?", " cat" * 30),)),
            r"4 patches, \d+ target slots, 31 answers",
        ),
    ],
    ids=lambda value: value.id if isinstance(value, Record) else "",
)
def test_a_record_that_fits_nowhere_is_refused_with_its_size(one, size):
    message = f"no data.buckets entry has room for its query; it needs .*{size}"
    with pytest.raises(ValueError, match=message):
        batch_of([one])


def test_a_full_bucket_has_no_room_for_a_query_and_leaves_out_a_negative():
    batcher = Batcher(toy.SPEC, toy.prompter())
    many = [batcher.sample(record(str(i), Item(f"query {10 + i}"))) for i in range(33)]
    assert BatchPacker(batcher).add(many) == [True] * 32 + [None]
    few = record("a", Item("red"), "blue", negatives=tuple(Item(f"no {i}") for i in range(40)))
    batch = batch_of([few], candidates=40)
    assert (batch.candidate_row >= 0).sum() == 23
    assert batch.query_row[0] >= 0


def test_a_sample_without_a_row_for_its_positive_gives_its_query_s_row_back():
    buckets = {"text": BucketSpec(20, 0, 3), "picture": toy.SPEC.buckets["picture"]}
    batcher = Batcher(dataclasses.replace(toy.SPEC, buckets=buckets), toy.prompter())
    packer = BatchPacker(batcher)
    pairs = [record(str(i), Item(f"query {i}"), f"answer {i}") for i in range(6)]
    usage = packer.add([batcher.sample(pair) for pair in pairs])
    assert usage == [True] * 5 + [None]  # 3 rows for texts, 7 of the 8 for pictures
    assert sum(packer.usage.used.values()) == 10


def test_a_picture_shrinks_to_its_bucket_rather_than_take_a_much_larger_one():
    buckets = {
        "text": toy.SPEC.buckets["text"],
        "small": BucketSpec(slots=40, patches=4 * 10, rows=1),
        "large": BucketSpec(slots=140, patches=4 * 64, rows=2),
    }
    tall = record("a", Item(images=(np.zeros((64, 48, 3), np.uint8),)))  # 4 x 3 tokens
    spec = dataclasses.replace(toy.SPEC, buckets=buckets, keep=0.75)
    batcher = Batcher(spec, toy.prompter())
    packer = BatchPacker(batcher)
    assert packer.add([batcher.sample(tall)]) == [True]
    assert packer.usage.used == {"large": 0, "small": 1, "text": 0}
    shown = packer.batch.contexts["small"].patches
    assert (shown.picture > 0).sum() == 4 * 9
    assert packer.usage.counts["visual"] == 9 and packer.usage.counts["native"] == 12


def test_a_text_with_a_conversation_takes_a_row_for_pictures_when_only_those_have_room_for_it():
    batch = batch_of([record("talks", Item("red"), turns=(("What?", "red"),))])
    assert (batch.targets["picture"].answer[0] >= 0).sum() == 2
    assert not batch.contexts["picture"].patches.picture.any()


@pytest.mark.parametrize("part", ["query", "positives"])
def test_an_unusable_picture_makes_its_record_unusable(part):
    broken = Item(images=(b"no picture",))
    items = {"query": broken} if part == "query" else {part: (broken,)}
    with pytest.raises(ValueError, match="is not a picture"):
        batch_of([Record(**{"id": "bad", "query": Item("red"), "source": "mine", **items})])


def test_an_unusable_negative_is_named_and_left_out():
    bad = record("bad", Item("red"), "blue", negatives=(Item(images=(b"no picture",)), Item("no")))
    batcher = Batcher(toy.SPEC, toy.prompter())
    packer, sample = BatchPacker(batcher), batcher.sample(bad)
    assert packer.add([sample]) == [True]
    ((named, error),) = packer.add_negatives([sample])
    assert named is sample and "is not a picture" in str(error)
    assert (packer.batch.candidate_row >= 0).sum() == 2
