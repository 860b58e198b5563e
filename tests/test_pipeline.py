"""Batches are a pure function of (seed, step, process), and hold what their records say."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter

import jax
import numpy as np
import pytest
import toy

from crem_jax.data.batcher import Batcher, BucketSpec
from crem_jax.data.pipeline import Stream
from crem_jax.data.records import Item, Record
from crem_jax.types import CHORUS, CONTEXT, Batch


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
    iterator = source.iterate(6)
    for step in range(3):
        assert_equal(next(iterator), source.batch(step))
    state = iterator.get_state()
    other = stream().iterate(6)
    other.set_state(state)
    rest = list(other)
    assert len(rest) == 3
    assert_equal(rest[0], source.batch(3))


@pytest.mark.parametrize("processes", [2, 4])
def test_the_processes_shares_make_the_batch_of_one_process(processes):
    whole = stream()
    shares = [stream(process=p, processes=processes) for p in range(processes)]
    for step in (0, 7):
        ids = [record.id for share in shares for record in share.records(step)]
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
    return Batcher(spec, toy.prompter())(records)


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
        (record("talks", Item("red"), turns=(("What?", "red"),)), "2 answers"),
    ],
    ids=lambda value: value.id if isinstance(value, Record) else "",
)
def test_a_record_that_fits_nowhere_is_named_with_its_size(one, size):
    message = f"record '{one.id}' of '': no data.buckets entry has room; it needs .*{size}"
    with pytest.raises(ValueError, match=message):
        batch_of([one])


def test_a_full_bucket_refuses_a_query_but_leaves_out_a_negative():
    many = [record(str(i), Item(f"query {i}")) for i in range(25)]
    with pytest.raises(ValueError, match="record '24'"):
        batch_of(many)
    few = record("a", Item("red"), "blue", negatives=tuple(Item(f"no {i}") for i in range(40)))
    batch = batch_of([few], candidates=40)
    assert (batch.candidate_row >= 0).sum() == 23
    assert batch.query_row[0] >= 0


@pytest.mark.parametrize("part", ["query", "positives", "negatives"])
def test_an_unusable_picture_names_its_record(part):
    broken = Item(images=(b"no picture",))
    items = {"query": broken} if part == "query" else {part: (broken,)}
    with pytest.raises(ValueError, match="record 'bad' of 'mine'"):
        batch_of([Record(**{"id": "bad", "query": Item("red"), "source": "mine", **items})])
