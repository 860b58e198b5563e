"""Nearest neighbours: sign bits first, then exactly; and exact search split over devices."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from crem_jax.library.ann import index as ann
from crem_jax.library.ann.index import Neighbours
from crem_jax.library.ann.rotation import Rotation
from crem_jax.library.device_search import DeviceSearch, DeviceVectors
from crem_jax.library.entry import Entry, LibraryError, LibraryInfo
from crem_jax.library.stores import lance

DIM = 192
CENTRES = np.random.default_rng(0).standard_normal((20, DIM))


def clustered(rng, count: int) -> np.ndarray:
    vectors = CENTRES[rng.integers(0, 20, count)] + 0.7 * rng.standard_normal((count, DIM)) + 1.0
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


class Table:
    """A table of vectors by key, as `Neighbours` reads it."""

    def __init__(self, vectors: np.ndarray):
        self.rows = dict(enumerate(vectors))
        self.version, self.scans = 1, []

    def update(self, near: Neighbours) -> None:
        near.update(self.version, np.array(sorted(self.rows), np.int64), self.vectors)

    def vectors(self, keys):
        self.scans.append(None if keys is None else len(keys))
        keys = np.array(sorted(self.rows) if keys is None else keys)
        for part in np.array_split(keys, 3):
            if len(part):
                yield part, np.stack([self.rows[int(key)] for key in part])

    def exact(self, query: np.ndarray, top: int) -> list[int]:
        keys = np.array(sorted(self.rows))
        scores = np.stack([self.rows[int(k)] for k in keys]).astype(np.float32) @ query
        return keys[np.argsort(-scores, kind="stable")[:top]].tolist()

    def recall(self, near: Neighbours, queries: np.ndarray, top: int = 10) -> float:
        pairs = ((near.current.search(q, top)[0], self.exact(q, top)) for q in queries)
        return sum(len(set(a) & set(b)) for a, b in pairs) / (top * len(queries))


@pytest.fixture
def queries(rng):
    return clustered(rng, 20).astype(np.float32)


@pytest.fixture
def table(rng):
    return Table(clustered(rng, 3000))


def test_rotation_keeps_lengths_and_angles(rng):
    for dim in (48, 1536, 7, 1):
        vectors = rng.standard_normal((5, dim)).astype(np.float32)
        turned = Rotation(dim)(vectors)
        np.testing.assert_allclose(turned @ turned.T, vectors @ vectors.T, rtol=1e-4, atol=1e-3)
        np.testing.assert_array_equal(Rotation(dim)(vectors), turned)
    spread = np.abs(Rotation(1536)(np.eye(1, 1536, dtype=np.float32)))
    assert spread.max() < 0.3  # what was in one dimension is in all


def test_candidates_are_compared_exactly(table, queries, tmp_path):
    near = Neighbours(tmp_path, DIM)
    table.update(near)
    assert table.recall(near, queries) > 0.98
    keys, scores = near.current.search(queries[0], 10)
    expected = [table.rows[int(key)].astype(np.float32) @ queries[0] for key in keys]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    assert (np.diff(scores) <= 0).all()
    assert near.current.measure(10, 32) > 0.98


def test_too_few_candidates_are_noticed_and_more_are_taken(table, tmp_path, monkeypatch):
    monkeypatch.setattr(ann, "CANDIDATES", (10, 20, 400))
    near = Neighbours(tmp_path, DIM)
    table.update(near)
    state = json.loads((tmp_path / "stamp.json").read_text())
    assert state["candidates"] == 400 and state["recall"] >= 0.985


def test_changes_are_followed_without_building_anew(table, queries, tmp_path, rng):
    near = Neighbours(tmp_path, DIM)
    table.update(near)
    for key in range(0, 100):
        del table.rows[key]
    table.rows |= {10_000 + i: vector for i, vector in enumerate(clustered(rng, 200))}
    table.version = 2
    reopened = Neighbours(tmp_path, DIM)
    assert reopened.current.version == 1
    table.update(reopened)
    assert table.scans == [None, 200] and reopened.current.version == 2
    assert table.recall(reopened, queries) > 0.98
    found = {int(k) for q in queries for k in reopened.current.search(q, 50)[0]}
    assert not found & set(range(100)) and found & set(range(10_000, 10_200))
    assert reopened.current.measure(10, 32) > 0.98
    table.version = 3
    table.update(reopened)  # compacted: nothing to do
    table.update(reopened)
    assert table.scans == [None, 200]


def test_much_change_builds_anew(table, queries, tmp_path):
    near = Neighbours(tmp_path, DIM)
    table.update(near)
    for key in range(1000):
        del table.rows[key]
    table.version = 2
    table.update(near)
    assert table.scans == [None, None] and table.recall(near, queries) > 0.98


@pytest.mark.parametrize("harm", ["stamp.json", "signs.u8", "vectors.f16", "mean.npy"])
def test_a_damaged_index_is_built_anew(table, queries, tmp_path, harm):
    table.update(Neighbours(tmp_path, DIM))
    (tmp_path / harm).write_bytes(b"[]")
    near = Neighbours(tmp_path, DIM)
    assert near.current.version == -1
    table.update(near)
    assert table.recall(near, queries) > 0.98


def test_what_an_interrupted_append_left_is_cut_off(table, queries, tmp_path, rng):
    table.update(Neighbours(tmp_path, DIM))
    for name in ("keys.i64", "signs.u8", "vectors.f16"):
        with open(tmp_path / name, "ab") as file:
            file.write(b"x" * 7)
    table.rows |= {10_000 + i: vector for i, vector in enumerate(clustered(rng, 50))}
    table.version = 2
    near = Neighbours(tmp_path, DIM)
    table.update(near)
    assert table.recall(near, queries) > 0.98 and table.scans == [None, 50]


def test_only_chosen_keys_are_found(table, queries, tmp_path):
    near = Neighbours(tmp_path, DIM)
    table.update(near)
    now, query = near.current, queries[0]
    keys, _ = now.search(query, 10, now.rows(np.arange(500, 1000)))
    scores = {k: table.rows[k].astype(np.float32) @ query for k in range(500, 1000)}
    assert keys.tolist() == sorted(scores, key=lambda k: -scores[k])[:10]
    assert now.search(query, 10, now.rows(np.array([77])))[0].tolist() == [77]
    assert len(now.search(query, 10, np.zeros(0, np.int64))[0]) == 0


def test_a_large_library_searches_by_signs_and_agrees_with_exact_search(rng, tmp_path):
    info = LibraryInfo("f" * 32, "m", 1, DIM, (1,), "none", 1)
    db = lance.connect(tmp_path / "db")
    lance.create(db, info)
    exact = lance.LanceEntries(db, info, tmp_path / "ann")
    signs = lance.LanceEntries(db, info, tmp_path / "ann", exact_up_to=10)
    vectors = clustered(rng, 2000)

    def entries(first: int, last: int) -> list[Entry]:
        return [Entry(str(i), vectors[i][None], width=i) for i in range(first, last)]

    exact.put(entries(0, 1500))
    agree = 0
    for change in (
        lambda: None,
        lambda: exact.put(entries(1500, 2000)),
        lambda: exact.put([Entry("7", vectors[8][None])]),
        lambda: exact.delete([str(i) for i in range(20, 40)]),
        lambda: signs.compact(),
    ):
        change()
        for query in vectors[[0, 7, 30, 1900]].astype(np.float32):
            for where in (None, "width >= 900"):
                a, b = (s.search(query, None, 10, where) for s in (exact, signs))
                agree += len({h.entry.id for h in a} & {h.entry.id for h in b})
                np.testing.assert_allclose(a[0].score, b[0].score, atol=2e-3)
    assert agree / (5 * 4 * 2 * 10) > 0.98
    measured = signs.recall(10, 32)
    assert measured["recall"][1] > 0.98 and measured["queries"] == 32
    assert exact.recall(10, 32) == {"search": "exact", "recall": {}}


def test_searches_go_on_while_the_library_changes(rng, tmp_path):
    info = LibraryInfo("f" * 32, "m", 2, DIM, (2, 1), "none", 2)
    db = lance.connect(tmp_path / "db")
    lance.create(db, info)
    vectors = clustered(rng, 1500)
    # Always there, in a corner of their own: a search for one finds all of them, and it first.
    anchors = clustered(rng, 8) * 0.05 - vectors.mean(axis=0)
    anchors = (anchors / np.linalg.norm(anchors, axis=1, keepdims=True)).astype(np.float16)
    kept = [Entry(f"kept/{i}", np.stack([v, v]), width=i) for i, v in enumerate(anchors)]
    names = {entry.id for entry in kept}

    def some(first: int, last: int) -> list[Entry]:
        return [Entry(str(i), np.stack([vectors[i]] * 2)) for i in range(first, last)]

    writer = lance.LanceEntries(lance.connect(tmp_path / "db"), info, tmp_path / "ann", 10)
    writer.put([*some(0, 600), *kept])
    searched = lance.LanceEntries(db, info, tmp_path / "ann", exact_up_to=10)
    over = threading.Event()

    def search(seed: int) -> int:
        own, count = np.random.default_rng(seed), 0
        while not over.is_set():
            anchor, k = own.integers(len(kept)), int(own.integers(1, 3))
            where = "id LIKE 'kept/%'" if own.random() < 0.3 else None
            hits = searched.search(anchors[anchor].astype(np.float32), k, 8, where)
            assert {hit.entry.id for hit in hits} == names
            assert hits[0].entry.id == f"kept/{anchor}" and hits[0].score > 0.99
            assert searched.get([hits[0].entry.id, "none"])[0].width == anchor
            count += 1
        return count

    with ThreadPoolExecutor(4) as pool:
        searches = [pool.submit(search, seed) for seed in range(4)]
        try:
            for round_ in range(12):
                first = 600 + 75 * round_
                writer.put(some(first, first + 75))  # appended to the index
                writer.search(anchors[0].astype(np.float32), None, 1)
                gone = range(first - 600, first - 400) if round_ % 3 == 2 else range(round_)
                writer.delete([str(i) for i in gone])  # so much of it that it is built anew
                (writer.compact if round_ % 2 else writer.tidy)()
        finally:
            over.set()
    assert all(search.result() > 3 for search in searches)


def test_exact_search_on_devices_finds_what_the_table_finds_after_every_change(rng, tmp_path):
    info = LibraryInfo("f" * 32, "m", 1, DIM, (1,), "none", 1)
    db = lance.connect(tmp_path / "db")
    lance.create(db, info)
    entries = lance.LanceEntries(db, info, tmp_path / "ann")
    devices = DeviceSearch(entries)
    vectors = clustered(rng, 300)
    query = vectors[7].astype(np.float32)
    assert devices.search(query, "vector_1", 5, None) == []
    for change in (
        lambda: entries.put([Entry(str(i), vectors[i][None], width=i) for i in range(200)]),
        lambda: entries.put([Entry("7", vectors[8][None]), Entry("new", vectors[250][None])]),
        lambda: entries.delete([str(i) for i in range(20, 40)]),
    ):
        change()
        for where in (None, "width >= 90"):
            got = devices.search(query, "vector_1", 5, where)
            expected = entries.search(query, None, 5, where, exact=True)
            assert [hit.entry.id for hit in got] == [hit.entry.id for hit in expected]
            np.testing.assert_allclose(
                [hit.score for hit in got], [hit.score for hit in expected], atol=1e-3
            )
    assert len(devices.search(query, "vector_1", 5, "width = 90")) == 1
    with pytest.raises(LibraryError, match="the condition 'nonsense ===' cannot be used"):
        devices.search(query, "vector_1", 5, "nonsense ===")


def test_devices_find_what_numpy_finds(rng):
    vectors, queries = clustered(rng, 203), clustered(rng, 6).astype(np.float32)
    mesh = jax.make_mesh((jax.device_count(),), ("rows",))
    on_devices = DeviceVectors(vectors, mesh, "float32")
    rows, scores = on_devices.search(queries, 7)
    expected = queries @ vectors.astype(np.float32).T
    np.testing.assert_array_equal(rows, np.argsort(-expected, axis=1, kind="stable")[:, :7])
    np.testing.assert_allclose(scores, np.sort(expected, axis=1)[:, ::-1][:, :7], atol=1e-5)
    odd = np.arange(203) % 2 == 1
    rows, _ = on_devices.search(queries, 7, only=odd)
    some = np.where(odd, expected, -np.inf)
    np.testing.assert_array_equal(rows, np.argsort(-some, axis=1, kind="stable")[:, :7])
    rows, _ = on_devices.search(queries, 7)
    near, _ = on_devices.search(queries, 7, recall=0.9)
    assert np.mean([len(set(a) & set(b)) / 7 for a, b in zip(near, rows, strict=True)]) > 0.8
    for wrong in ({"top": 0}, {"top": 204}, {"top": 3, "recall": 0.0}):
        with pytest.raises(ValueError, match="is not"):
            on_devices.search(queries, **wrong)
