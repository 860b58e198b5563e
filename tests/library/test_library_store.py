"""Libraries without a model: entries and memories in LanceDB and in Milvus Lite."""

from __future__ import annotations

import dataclasses
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pyarrow as pa
import pytest

from crem_jax.library import entry, library
from crem_jax.library.entry import Entry, LibraryError, LibraryInfo, StoreError, halves
from crem_jax.library.memory_codec import decode_memory, encode_memory
from crem_jax.library.stores import lance_tables, milvus
from crem_jax.types import CHORUS, KV, Memory

DIM, CHORUS_TOKENS = 16, 4
INFO = LibraryInfo("f" * 32, "a model", CHORUS_TOKENS, DIM, (4, 2, 1), "float32", 3)


def unit(rng, *shape: int) -> np.ndarray:
    vectors = rng.standard_normal(shape).astype(np.float32)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float16)


def entries(rng, count: int, first: int = 0) -> list[Entry]:
    return [
        Entry(
            id=f"it's/{i}.png",
            vectors=unit(rng, 3, DIM),
            content=f"c{i}",
            uri=f"/photos/{i}.png",
            text=f"number {i} ¿",
            metadata={"kind": "even" if i % 2 == 0 else "odd", "n": i},
            width=i,
            height=7,
            source="folder:/photos",
        )
        for i in range(first, first + count)
    ]


def memory(rng, rows: int, dtype=np.float32, slots: int = CHORUS_TOKENS) -> Memory:
    shape = (2, rows, 2, slots, 8)
    keys, values = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    return Memory(
        kv=KV(keys, values),
        region=np.full((rows, slots), CHORUS, np.int32),
        next_position=rng.integers(9, 99, rows).astype(np.int32),
        chorus=rng.standard_normal((rows, slots, DIM)).astype(np.float32),
    )


def blobs(rng, count: int) -> list[bytes]:
    return encode_memory(memory(rng, count), "float32", INFO.memory_k)


@pytest.fixture(params=["lance", "milvus"])
def place(request, tmp_path):
    """A path and what is said of the library that will be there."""
    if request.param == "lance":
        return tmp_path / "library", INFO
    uri = str(tmp_path / "milvus.db")
    return tmp_path / "library", dataclasses.replace(INFO, vectors=uri)


# memories


@pytest.mark.parametrize("encoding, dtype", [("float32", np.float32), ("bfloat16", "bfloat16")])
def test_a_memory_comes_back_bit_by_bit(rng, encoding, dtype):
    original = memory(rng, 3, np.dtype(dtype))
    for k in (None, 2):
        stored = encode_memory(original, encoding, k)
        got, expected = decode_memory(stored, encoding), original.chorus_only(k)
        for name in ("keys", "values"):
            mine, theirs = getattr(got.kv, name), getattr(expected.kv, name)
            assert mine.dtype == theirs.dtype and mine.tobytes() == theirs.tobytes()
        np.testing.assert_array_equal(got.region, expected.region)
        np.testing.assert_array_equal(got.next_position, expected.next_position)
        assert got.num_chorus == expected.num_chorus


def test_fewer_chorus_tokens_of_a_stored_memory_are_the_memory_of_fewer(rng):
    original = memory(rng, 2)
    some = decode_memory(encode_memory(original, "float32"), k=2)
    fewer = decode_memory(encode_memory(original, "float32", 2))
    np.testing.assert_array_equal(some.kv.keys, fewer.kv.keys)
    np.testing.assert_array_equal(some.next_position, fewer.next_position)


def test_int8_is_within_half_a_step_of_its_scale_and_half_as_large(rng):
    original = memory(rng, 2, slots=16)
    stored = encode_memory(original, "int8")
    got = decode_memory(stored)
    for mine, theirs in ((got.kv.keys, original.kv.keys), (got.kv.values, original.kv.values)):
        step = np.abs(theirs).max(axis=-1, keepdims=True) / 127
        assert (np.abs(mine - theirs) <= step / 2 * 1.001).all()
    numbers = original.kv.keys[:, 0].size * 2
    scales = 4 * numbers // 8
    assert len(stored[0]) < numbers + scales + 500


def test_a_damaged_memory_is_refused(rng):
    (blob,) = encode_memory(memory(rng, 1), "bfloat16")
    flipped = bytearray(blob)
    flipped[-5] ^= 1
    for bad in (bytes(flipped), blob[:-1], b"", b"CREM"):
        with pytest.raises(LibraryError, match="damaged: its checksum is wrong"):
            decode_memory([bad])
    with pytest.raises(LibraryError, match=r"k = 5 is not in 1\.\.4"):
        decode_memory([blob], k=5)


# entries


def test_what_is_put_is_got_replaced_and_deleted(rng, place):
    lib = library.create(*place)
    first, stored = entries(rng, 6), blobs(rng, 6)
    lib.put(first, stored)
    lib.put(first, stored)
    lib = library.open(place[0])
    assert len(lib) == 6 and lib.info == dataclasses.replace(place[1], id=lib.info.id)
    got = lib.get([first[4].id, "none", first[0].id])
    assert got[1] is None
    for mine, theirs in ((got[0], first[4]), (got[2], first[0])):
        assert mine.vectors.tobytes() == theirs.vectors.tobytes()
        for name in ("id", "content", "uri", "text", "width", "height", "source"):
            assert getattr(mine, name) == getattr(theirs, name)
        assert mine.metadata == theirs.metadata
    kept = lib.memories([first[2].id])
    np.testing.assert_array_equal(kept.kv.keys, decode_memory([stored[2]]).kv.keys)
    changed = dataclasses.replace(
        first[1], text="another", content="new", vectors=unit(rng, 3, DIM)
    )
    lib.put([changed], blobs(rng, 1))
    lib.delete([first[0].id, "none"])
    assert len(lib) == 5 and lib.get([first[0].id]) == [None]
    assert lib.get([first[1].id])[0].text == "another"
    with pytest.raises(LibraryError, match="the library has no"):
        lib.memories([first[0].id])
    found = lib.verify()
    assert found["problems"] == [] and found["orphans"] == 0
    measured = dict.fromkeys(place[1].prefixes, 1.0) if place[1].vectors else {}
    assert found["recall"] == measured


@pytest.mark.parametrize("k", [None, 2, 1])
def test_search_equals_sorting_by_cosine(rng, place, k):
    lib = library.create(*place)
    own = entries(rng, 40)
    lib.put(own, blobs(rng, 40))
    query = unit(rng, DIM).astype(np.float32)
    column = place[1].prefixes.index(k or CHORUS_TOKENS)
    scores = np.array([e.vectors[column].astype(np.float32) @ query for e in own])
    for where, chosen in (
        (None, range(40)),
        ("width < 20", range(20)),
        ("width >= 10 and width < 12", range(10, 12)),
        ("width > 1000", ()),
    ):
        order = sorted(chosen, key=lambda i: -scores[i])[:5]
        for exact in (False, True):
            hits = lib.search(query, k, 5, where, exact)
            assert [hit.entry.id for hit in hits] == [own[i].id for i in order]
            np.testing.assert_allclose([h.score for h in hits], scores[order], atol=1e-3)


def test_conditions_reach_into_metadata(rng, place):
    lib = library.create(*place)
    lib.put(entries(rng, 10), blobs(rng, 10))
    where = "json_get_string(metadata, 'kind') = 'even'"
    if place[1].vectors:
        where = 'metadata["kind"] == "even"'
    hits = lib.search(unit(rng, DIM), None, 10, where)
    assert sorted(hit.entry.width for hit in hits) == [0, 2, 4, 6, 8]


def test_unusable_questions_to_a_library_are_refused(rng, place, tmp_path):
    lib = library.create(*place)
    own = entries(rng, 2)
    lib.put(own, blobs(rng, 2))
    query = unit(rng, DIM)
    with pytest.raises(LibraryError, match="k = 3 is not stored in this library; stored are 1, 2,"):
        lib.search(query, 3)
    with pytest.raises(LibraryError, match="condition 'wdth < 5' cannot be used"):
        lib.search(query, where="wdth < 5")
    with pytest.raises(LibraryError, match="given twice"):
        lib.put([own[0], own[0]], blobs(rng, 2))
    with pytest.raises(LibraryError, match="vectors of shape"):
        lib.put([dataclasses.replace(own[0], vectors=unit(rng, 1, DIM))], blobs(rng, 1))
    with pytest.raises(LibraryError, match="keeps memories as 'float32'"):
        lib.put(own)
    with pytest.raises(LibraryError, match="is no library; `crem index` makes one"):
        library.open(tmp_path)
    with pytest.raises(LibraryError, match="made with another model"):
        library.create(place[0], dataclasses.replace(place[1], fingerprint="0" * 32))
    with pytest.raises(LibraryError, match="made with memory float32; this asks for int8"):
        library.create(place[0], dataclasses.replace(place[1], memory="int8"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(LibraryError, match="exists and is no library"):
        library.create(tmp_path / "full", place[1])


@pytest.mark.parametrize(
    "error",
    [RuntimeError("lance error: IO"), ValueError("no field"), pa.ArrowNotImplementedError()],
)
def test_what_lance_raises_is_a_store_error(error):
    with pytest.raises(StoreError, match=r"^lib cannot be used"), lance_tables.lance_errors("lib"):
        raise error
    with pytest.raises(OSError, match="full"), lance_tables.lance_errors("lib"):
        raise OSError("the disk is full")


def test_damaged_tables_are_store_errors_that_name_them(rng, tmp_path):
    lib = library.create(tmp_path / "lib", INFO)
    lib.put(entries(rng, 3), blobs(rng, 3))
    for file in (tmp_path / "lib" / "entries.lance" / "data").iterdir():
        file.write_bytes(b"no data")
    for call in (
        lambda: lib.search(unit(rng, DIM)),
        lambda: list(lib.scan(["id", "content"])),
        lambda: lib.get(["it's/0.png"]),
    ):
        with pytest.raises((StoreError, OSError), match="lance"):
            call()
    for file in (tmp_path / "lib" / "memories.lance" / "_versions").iterdir():
        file.write_bytes(b"no manifest")
    with pytest.raises((StoreError, OSError)):
        library.open(tmp_path / "lib")


def test_a_bug_in_the_library_is_no_error_of_its_tables(rng, tmp_path, monkeypatch):
    lib = library.create(tmp_path / "lib", INFO)
    lib.put(entries(rng, 3), blobs(rng, 3))

    def fail(*_, **__):
        return np.zeros((2, 3)) @ np.zeros((2, 3))

    monkeypatch.setattr(lance_tables, "to_numpy", fail)
    with pytest.raises(ValueError, match="matmul") as met:
        list(lib.scan(["id"], where="width > 0"))
    assert not isinstance(met.value, LibraryError)


def test_verify_names_what_is_wrong_and_compact_drops_orphans(rng, tmp_path):
    lib = library.create(tmp_path / "library", INFO)
    own, stored = entries(rng, 4), blobs(rng, 4)
    lib.put(own, stored)
    memories, ids = lib._memories, [e.id for e in own]
    memories.put([ids[0]], ["other"], [stored[0]])
    memories.put([ids[1]], [own[1].content], [stored[1][:-3]])
    memories.delete([ids[2]])
    memories.put(["orphan"], ["x"], [stored[0]])
    lib._entries.put([dataclasses.replace(own[3], vectors=2 * own[3].vectors)])
    found = lib.verify()
    assert dict(found["problems"]) == {
        ids[0]: "its memory is of another content",
        ids[1]: "a stored memory is damaged: its checksum is wrong",
        ids[2]: "has no memory",
        ids[3]: "its embedding has length 2.000; expected 1",
    }
    assert found["orphans"] == 1
    assert lib.compact() == {"orphans": 1}
    assert lib.verify()["orphans"] == 0


def test_several_writers_lose_nothing(rng, tmp_path):
    library.create(tmp_path / "library", INFO)
    batches = [(entries(rng, 3, 3 * i), blobs(rng, 3)) for i in range(12)]

    def write(mine: list) -> None:
        lib = library.open(tmp_path / "library")
        for own, stored in mine:
            lib.put(own, stored)
        lib.tidy()

    threads = [threading.Thread(target=write, args=(batches[i::3],)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = library.open(tmp_path / "library").verify()
    assert found["entries"] == found["memories"] == 36 and not found["problems"]


def test_memories_are_read_while_others_write_and_compact(rng, tmp_path):
    library.create(tmp_path / "library", INFO)
    writer, reader = (library.open(tmp_path / "library")._memories for _ in range(2))
    stored = dict(zip(map(str, range(20)), blobs(rng, 20), strict=True))
    writer.put(list(stored), list(stored), list(stored.values()))
    over = threading.Event()

    def read(name: str) -> None:
        while not over.is_set():
            assert reader.get([name, "none", "7"]) == [stored[name], None, stored["7"]]

    with ThreadPoolExecutor(4) as pool:
        reads = [pool.submit(read, name) for name in list(stored)[:4]]
        try:
            for i in range(15):
                writer.put([f"more{i}"], [""], [stored["0"]])
                writer.put(["9"], [""], [stored["9"]])
                writer.compact()
        finally:
            over.set()
    for one in reads:
        one.result()


@pytest.mark.parametrize("prefixes", [INFO.prefixes, (4,)])
def test_a_library_that_is_half_made_is_made_whole(rng, tmp_path, prefixes):
    begun = dataclasses.replace(INFO, prefixes=prefixes)
    lib = library.create(tmp_path / "library", begun)
    shutil.rmtree(tmp_path / "library" / "memories.lance")
    (tmp_path / "library" / "memories.lance").mkdir()
    assert not library.is_library(tmp_path / "library")
    lib = library.create(tmp_path / "library", INFO)
    lib.put(entries(rng, 2), blobs(rng, 2))
    assert not lib.verify()["problems"]


def test_several_processes_may_make_a_library_at_once(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: library.create(tmp_path / "library", INFO), range(4)))
    assert len({lib.info for lib in made}) == 1 and all(len(lib) == 0 for lib in made)


def test_libraries_of_one_model_share_a_milvus_and_no_entries(rng, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    info = dataclasses.replace(INFO, vectors="milvus.db")
    one, other = (library.create(tmp_path / name, info) for name in ("one", "other"))
    own = entries(rng, 3)
    one.put(own, blobs(rng, 3))
    other.put(own[:1], blobs(rng, 1))
    other.delete([own[0].id])
    assert len(one) == 3 and len(other) == 0
    assert one.info.vectors == str(tmp_path / "milvus.db")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(library.open(tmp_path / "one")) == 3
    assert len(library.create(tmp_path / "one", one.info)) == 3
    milvus.drop(one.info)
    with pytest.raises(LibraryError, match=f"has no collection crem_f+_{one.info.id}, where"):
        library.open(tmp_path / "one")
    with pytest.raises(LibraryError, match=rf"Milvus at {tmp_path}/milvus\.db: "):
        one.get([own[0].id])
    gone = tmp_path / "none.db"
    with pytest.raises(LibraryError, match=r"none\.db has no collection"):
        milvus.MilvusEntries(dataclasses.replace(one.info, vectors=str(gone)))
    assert not gone.exists()
    for odd in ("http://[odd", "odd"):
        with pytest.raises(StoreError, match="^" + re.escape(f"Milvus at {odd}: ")):
            milvus.create(dataclasses.replace(one.info, vectors=odd))


def test_a_library_may_keep_no_memories(rng, tmp_path):
    lib = library.create(tmp_path / "library", dataclasses.replace(INFO, memory="none"))
    own = entries(rng, 2)
    lib.put(own)
    assert not lib.verify()["problems"]
    with pytest.raises(LibraryError, match="keeps no memories; index again"):
        lib.memories([own[0].id])


def test_what_a_library_says_of_itself_is_checked():
    assert halves(16) == (16, 8, 4, 2, 1) and halves(6) == (6, 3, 1)
    assert LibraryInfo.from_json(INFO.to_json()) == INFO
    for wrong in ({"memory": "int4"}, {"prefixes": (2, 1)}, {"memory_k": 5}, {"prefixes": ()}):
        with pytest.raises(LibraryError):
            dataclasses.replace(INFO, **wrong)
    newer = INFO.to_json().replace('"format": 1', '"format": 2')
    with pytest.raises(LibraryError, match="has format 2; this version of crem_jax reads format 1"):
        LibraryInfo.from_json(newer)
    assert entry.FORMAT == 1 and list(entry.FORMATS) == [1]


def test_bfloat16_memories_serve_a_float32_model(rng):
    original = memory(rng, 1)
    got = decode_memory(encode_memory(original, "bfloat16"), "float32")
    rounded = original.kv.keys.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(got.kv.keys, rounded)
