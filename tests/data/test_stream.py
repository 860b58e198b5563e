"""The stream of a whole run: order, shards, blocks, weights, resuming, and bad records."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from crem_jax.configs.schema import tree
from crem_jax.configs.schema.data import BatchSpec, BucketSpec, DataConfig
from crem_jax.data.batches.bucket_planning import best_widths, share_rows
from crem_jax.data.batches.iterator import BatchIterator
from crem_jax.data.batches.mixture import CYCLE, Mixture, SampleRef
from crem_jax.data.batches.stream import Stream
from crem_jax.data.inputs.prompt import Prompter
from crem_jax.data.records import Item, Record
from crem_jax.types import CONTEXT, Batch
from tests.support import toy

SIZES = Path(__file__).parents[2] / "benchmarks" / "picture_sizes.csv"


@dataclasses.dataclass(frozen=True)
class Texts:
    """Pairs of texts that name their source and index; some are bad, and some queries are long."""

    name: str
    size: int
    bad: frozenset[int] = frozenset()
    long_every: int = 0

    def __len__(self) -> int:
        return self.size

    def record(self, index: int, rng: np.random.Generator | None) -> Record:
        if index in self.bad and index % 2:
            raise OSError(f"no row {index}")
        query = f"{self.name} {index}"
        if self.long_every and index % self.long_every == 0:
            query += " and so on" * 8
        picture = (b"no picture",) if index in self.bad else ()
        return Record(query, Item(query, picture), (Item(f"{query}!"),), source=self.name)


TEXT = {
    "short": BucketSpec(slots=24, patches=0, rows=40),
    "long": BucketSpec(slots=48, patches=0, rows=8),
    "picture": BucketSpec(slots=48, patches=64, rows=4),
}
TIGHT = {"short": TEXT["short"], "long": dataclasses.replace(TEXT["long"], rows=6)}


def spec(**changes) -> BatchSpec:
    base = dict(buckets=TEXT, candidates=16, records={"a": 16})
    return BatchSpec(**{**base, **changes})


def texts(size: int = 40, name: str = "a", process: int = 0, processes: int = 1, **changes):
    bad = changes.pop("bad", frozenset())
    source = Texts(name, size, frozenset(bad), changes.pop("long_every", 0))
    return Stream({name: source}, spec(**changes), toy.prompter(), 5, process, processes)


def queries(batch: Batch) -> list[str]:
    """The queries' texts, read back from the tokens."""
    rows = [
        context.tokens[i][context.region[i] == CONTEXT]
        for _, context in sorted(batch.contexts.items())
        for i in range(len(context.tokens))
    ]
    decode = toy.tokenizer().decode
    texts = [decode(rows[row]) for row in batch.query_row if row >= 0]
    return [text.split("user\n")[1] for text in texts]


def together(parts: list[Batch]) -> Batch:
    """What the processes' local arrays are as global ones."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def same(a: Batch, b: Batch) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


MIX = dict(records={}, weights={"a": 3, "b": 1, "c": 2}, batch=16, block=4)


def mixture(**changes) -> Mixture:
    sources = {name: Texts(name, 50 + 7 * i) for i, name in enumerate("abc")}
    return Mixture(spec(**{**MIX, **changes}), sources, 9)


def test_k_consecutive_samples_of_the_global_batch_come_from_one_source():
    sources = {name: Texts(name, 50) for name in "abc"}
    for processes in (1, 2, 4):
        shares = [
            Stream(sources, spec(**MIX), toy.prompter(), 5, process, processes)
            for process in range(processes)
        ]
        for step in range(5):
            # Sample g of the global batch is with process g modulo their number.
            parts = zip(*(share.records(step) for share in shares), strict=True)
            names = [record.source for part in parts for record in part]
            assert len(names) == 16
            blocks = [set(names[i : i + 4]) for i in range(0, 16, 4)]
            assert all(len(block) == 1 for block in blocks)


def test_weights_hold_over_a_cycle_and_nearly_in_every_window():
    mix = mixture(block=1)
    counts = Counter(ref.source for step in range(CYCLE // 16) for ref in mix.batch(step))
    for source, weight in enumerate((3, 1, 2)):
        assert abs(counts[source] / CYCLE - weight / 6) < 2e-4
    for first in range(0, 600, 20):
        window = Counter(ref.source for step in range(first, first + 6) for ref in mix.batch(step))
        assert all(abs(window[s] - 16 * w) <= 2 for s, w in enumerate((3, 1, 2)))
    assert len({tuple(p.source for p in mix.batch(step)) for step in range(20)}) > 10


def test_sources_of_different_length_wrap_on_their_own_and_are_shuffled_afresh():
    mix = mixture()
    seen = {0: [], 1: [], 2: []}
    for step in range(60):
        for ref in mix.batch(step):
            assert ref.position == len(seen[ref.source])
            seen[ref.source].append(mix.index(ref))
    for source, size in enumerate((50, 57, 64)):
        epochs = [seen[source][i : i + size] for i in range(0, 2 * size, size)]
        assert [sorted(epoch) for epoch in epochs] == [list(range(size))] * 2
        assert epochs[0] != epochs[1] and epochs[0] != list(range(size))
        moved = np.abs(np.array(epochs[0]) - np.arange(size))
        assert moved.mean() > size / 6  # a shuffle of the whole source, not of a window


def test_a_long_source_is_shuffled_without_a_list(monkeypatch):
    monkeypatch.setattr("crem_jax.data.batches.mixture.LISTED", 999)
    mix = Mixture(spec(), {"a": Texts("a", 1000)}, 4)
    epochs = [[mix.index(SampleRef(0, 1000 * e + i)) for i in range(1000)] for e in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(1000))] * 2
    assert np.mean(np.array(epochs[0]) == np.array(epochs[1])) < 0.05
    assert np.abs(np.array(epochs[0]) - np.arange(1000)).mean() > 1000 / 6


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_read_different_records_and_together_all_of_them_once(processes):
    parts = [texts(size=48, process=p, processes=processes) for p in range(processes)]
    read = [{one.id for step in range(3) for one in part.records(step)} for part in parts]
    assert sum(len(part) for part in read) == 48
    assert set.union(*read) == {f"a {i}" for i in range(48)}
    for step in range(3):
        whole = together([part.batch(step) for part in parts])
        assert sorted(queries(whole)) == sorted(queries(texts(size=48).batch(step)))


def test_the_stream_is_the_same_with_two_workers_and_goes_on_in_the_middle_of_an_epoch():
    stream = texts(
        size=100, long_every=3, carry=16, buckets=TEXT | {"picture": BucketSpec(48, 64, 0)}
    )
    expected, states = [], []
    alone = BatchIterator(stream, 9)
    for batch in alone:
        expected.append(batch)
        states.append(json.loads(json.dumps(alone.get_state())))
    assert states[3]["carried"]
    workers = BatchIterator(stream, 9, workers=2, threads=1)
    workers.set_state(states[3])
    later = [jax.tree.map(np.copy, batch) for batch in workers]
    workers.close()
    assert len(later) == 5
    for batch, wanted in zip(later, expected[4:], strict=True):
        same(batch, wanted)
    assert workers.get_state() == states[-1]
    seen = Counter(query for batch in expected[:4] + later for query in queries(batch))
    seen.update(stream.record(SampleRef(*ref)).id for ref in states[-1]["carried"])
    assert seen.total() == 9 * 16  # an epoch and a half
    assert set(seen.values()) == {1, 2} and len(seen) == 100


def test_what_finds_no_row_comes_in_the_next_batch_and_nothing_is_lost():
    source = texts(size=64, long_every=3, carry=16, buckets=TIGHT)
    batches = BatchIterator(source, 200)
    seen: Counter = Counter()
    late = 0
    for _ in range(8):
        seen.update(queries(next(batches)))
        late += batches.stats()["data_carried"]
    assert late > 0
    seen.update(source.record(SampleRef(*ref)).id for ref in batches.get_state()["carried"])
    assert set(seen.values()) == {2} and len(seen) == 64
    assert batches.get_state()["skipped"] == 0


def test_bad_records_are_replaced_named_and_the_same_again(tmp_path):
    bad = {3, 8, 21, 30}
    source = texts(bad=bad)
    log = tmp_path / "run" / "bad.jsonl"
    batches = BatchIterator(source, 5, max_bad_fraction=0.5, log=log)
    got = [queries(batch) for batch in batches]
    assert all(len(part) == 16 for part in got)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line["index"] for line in lines} == bad
    assert all(line["source"] == "a" and line["step"] < 5 for line in lines)
    reasons = {line["index"]: (line["id"], line["reason"]) for line in lines}
    assert reasons[3] == ("a[3]", "no row 3")
    assert reasons[8][0] == "a 8" and "is not a picture" in reasons[8][1]
    assert batches.stats()["data_skipped"] == len(lines) >= 8  # two epochs
    good = {query for part in got[:3] for query in part}
    assert {f"a {i}" for i in range(40) if i not in bad} <= good
    again = BatchIterator(texts(bad=bad), 5, max_bad_fraction=0.5)
    assert [queries(batch) for batch in again] == got


def test_a_resumed_run_names_what_it_skips_once(tmp_path):
    log = tmp_path / "bad.jsonl"
    batches = BatchIterator(texts(bad={1, 2, 5}), 5, max_bad_fraction=0.5, log=log)
    next(batches)
    state = batches.get_state()
    list(batches)
    whole = log.read_text()
    batches.set_state(state)
    list(batches)
    assert log.read_text() == whole


def test_too_many_bad_records_end_the_run_with_the_last_reason():
    batches = BatchIterator(texts(bad=range(1, 40, 2)), 50, max_bad_fraction=0.1)
    message = (
        r"of \d+ records could not be used, more than data.max_bad_fraction = 0.1; the last is"
    )
    with pytest.raises(ValueError, match=message):
        list(batches)
    with pytest.raises(ValueError, match=r"no data\.buckets entry has room"):
        list(BatchIterator(texts(long_every=1, buckets={"text": BucketSpec(12, 0, 40)}), 9))


def test_only_bytes_and_whole_numbers_cross_to_the_device():
    source = Stream({"toy": toy.Toy()}, toy.SPEC, toy.prompter(), 3)
    batch = next(BatchIterator(source, 1))
    kinds = {str(np.asarray(leaf).dtype) for leaf in jax.tree.leaves(batch)}
    assert kinds == {"uint8", "int32", "uint32", "bool"}
    for context in batch.contexts.values():
        if context.patches is not None:
            assert context.patches.pixels.dtype == np.uint8


@dataclasses.dataclass(frozen=True)
class Blank:
    sizes: list[tuple[int, int, int]]

    def __len__(self) -> int:
        return len(self.sizes)

    def record(self, index: int, rng) -> Record:
        height, width, _ = self.sizes[index]
        image = Image.new("RGB", (width, height), (index % 256, 0, 0))
        return Record(str(index), Item("find it", (image,)), (Item(f"caption {index}"),))


def test_five_shapes_waste_less_than_a_tenth_on_real_picture_sizes():
    base = toy.config()
    vision = dataclasses.replace(base.vision, patch_size=2, min_pixels=4096, max_pixels=20480)
    text = dataclasses.replace(base.text, max_positions=2048)
    prompter = Prompter(base.replace(vision=vision, text=text), toy.tokenizer(), hard_max=True)
    with SIZES.open() as file:
        sizes = [(int(row["height"]), int(row["width"])) for row in csv.DictReader(file)]
    # 256 to 1,280 vision tokens of 4 x 4 pixels
    tokens = [prompter.images.grid(*size) for size in sizes]
    pictures = [
        (*size, rows * columns) for size, (rows, columns) in zip(sizes, tokens, strict=True)
    ]
    assert min(pictures, key=lambda p: p[2])[2] >= 240
    widths = best_widths(pictures, 4)
    shares = share_rows(pictures, widths, 128)
    assert sum(shares) == 128
    buckets = {
        f"p{width}": BucketSpec(width + 24, 4 * width, share)
        for width, share in zip(widths, shares, strict=True)
    }
    buckets["text"] = BucketSpec(24, 0, 128)
    made = BatchSpec(buckets=buckets, candidates=128, records={"blank": 128})
    batches = BatchIterator(Stream({"blank": Blank(pictures)}, made, prompter, 1), 4)
    list(batches)
    stats = batches.stats()
    assert stats["data_waste_patches"] <= 0.12
    assert stats["data_kept"] >= 0.9
    assert stats["data_skipped"] == stats["data_left_out"] == stats["data_carried"] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": {"a": 1}}, "either records or weights"),
        (
            {"records": {}, "weights": {"a": 1}, "batch": 6, "block": 4},
            "data.batch = 6 .*block = 4",
        ),
        ({"records": {}, "weights": {"a": -1}, "batch": 4}, r"data.weights.a = -1"),
        ({"shuffle": True}, "unknown key data.shuffle"),
        (
            {"buckets": {"x": {"slots": 4, "patches": 0, "rows": 1, "wide": 2}}},
            r"unknown key data\.buckets\.x\.wide; known keys: answers",
        ),
        (
            {"buckets": {"x": {"slots": -4, "patches": 0, "rows": 1}}},
            r"data\.buckets\.x\.slots = -4 must be at least 0",
        ),
        ({"keep": 0}, "data.keep = 0"),
    ],
)
def test_a_data_section_that_makes_no_sense_is_refused_by_its_key(changes, message):
    data = {"buckets": {}, "candidates": 4, "records": {"a": 4}, "sources": {}, **changes}
    with pytest.raises(ValueError, match=message):
        tree.build(DataConfig, tree.fill(DataConfig, data), "data")


def test_a_share_of_nothing_is_refused_by_its_key():
    with pytest.raises(ValueError, match=r"data\.records\.b has no source"):
        Mixture(spec(records={"b": 4}), {"a": Texts("a", 4)}, 0)
    with pytest.raises(ValueError, match=r"data\.sources\.a has no records"):
        Mixture(spec(), {"a": Texts("a", 0)}, 0)
