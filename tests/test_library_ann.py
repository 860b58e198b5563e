"""Nearest neighbours: sign bits first, then exactly; and exact search split over devices."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from crem_jax.library import ann, lance
from crem_jax.library.ann import Neighbours
from crem_jax.library.device_search import DeviceVectors
from crem_jax.library.entry import About, Entry
from crem_jax.library.rotation import Rotation

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
        found = [len(set(near.search(q, top)[0]) & set(self.exact(q, top))) for q in queries]
        return sum(found) / (top * len(queries))


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
    keys, scores = near.search(queries[0], 10)
    expected = [table.rows[int(key)].astype(np.float32) @ queries[0] for key in keys]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    assert (np.diff(scores) <= 0).all()
    measured = near.measure(10, 32)
    assert measured["recall"] > 0.98 and measured["queries"] == 32


def test_too_few_candidates_are_noticed_and_more_are_taken(table, tmp_path, monkeypatch):
    monkeypatch.setattr(ann, "CANDIDATES", (10, 20, 400))
    near = Neighbours(tmp_path, DIM)
    table.update(near)
    stamp = json.loads((tmp_path / "stamp.json").read_text())
    assert stamp["candidates"] == 400 and stamp["recall"] >= 0.985


def test_changes_are_followed_without_building_anew(table, queries, tmp_path, rng):
    near = Neighbours(tmp_path, DIM)
    table.update(near)
    for key in range(0, 100):
        del table.rows[key]
    table.rows |= {10_000 + i: vector for i, vector in enumerate(clustered(rng, 200))}
    table.version = 2
    reopened = Neighbours(tmp_path, DIM)
    assert reopened.version == 1
    table.update(reopened)
    assert table.scans == [None, 200] and reopened.version == 2
    assert table.recall(reopened, queries) > 0.98
    found = {int(k) for q in queries for k in reopened.search(q, 50)[0]}
    assert not found & set(range(100)) and found & set(range(10_000, 10_200))
    assert reopened.measure(10, 32)["recall"] > 0.98
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
    assert near.version == -1
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
    keys, _ = near.search(queries[0], 10, near.rows(np.arange(500, 1000)))
    scores = {k: table.rows[k].astype(np.float32) @ queries[0] for k in range(500, 1000)}
    assert keys.tolist() == sorted(scores, key=lambda k: -scores[k])[:10]
    assert near.search(queries[0], 10, near.rows(np.array([77])))[0].tolist() == [77]
    assert len(near.search(queries[0], 10, np.zeros(0, np.int64))[0]) == 0


def test_a_large_library_searches_by_signs_and_agrees_with_exact_search(rng, tmp_path):
    about = About("f" * 32, "m", 1, DIM, (1,), "none", 1)
    db = lance.connect(tmp_path / "db")
    lance.create(db, about)
    exact = lance.LanceEntries(db, about, tmp_path / "ann")
    signs = lance.LanceEntries(db, about, tmp_path / "ann", exact_up_to=10)
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
    assert signs.recall(None, 10, 32)["recall"] > 0.98


def test_devices_find_what_numpy_finds(rng):
    vectors, queries = clustered(rng, 203), clustered(rng, 6).astype(np.float32)
    mesh = jax.make_mesh((jax.device_count(),), ("rows",))
    on_devices = DeviceVectors(vectors, mesh, "float32")
    rows, scores = on_devices.search(queries, 7)
    expected = queries @ vectors.astype(np.float32).T
    np.testing.assert_array_equal(rows, np.argsort(-expected, axis=1, kind="stable")[:, :7])
    np.testing.assert_allclose(scores, np.sort(expected, axis=1)[:, ::-1][:, :7], atol=1e-5)
    near, _ = on_devices.search(queries, 7, recall=0.9)
    assert np.mean([len(set(a) & set(b)) / 7 for a, b in zip(near, rows, strict=True)]) > 0.8
    for wrong in ({"top": 0}, {"top": 204}, {"top": 3, "recall": 0.0}):
        with pytest.raises(ValueError, match="is not"):
            on_devices.search(queries, **wrong)
