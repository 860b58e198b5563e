"""Conditions: how much one may ask, and what happens to one that asks more."""

from __future__ import annotations

import multiprocessing
import time

import numpy as np
import pytest

from crem_jax.library import library
from crem_jax.library.conditions import check_condition, read_tokens
from crem_jax.library.device_search import DeviceSearch
from crem_jax.library.entry import Entry, LibraryError, LibraryInfo, StoreError
from crem_jax.library.stores.lance_view import View
from tests.support.conditions import BOMBS, GOOD, condition

INFO = LibraryInfo("f" * 32, "a model", 1, 8, (1,), "none", 1)
QUERY = np.eye(8, dtype=np.float32)[0]


@pytest.fixture(scope="module")
def lib(tmp_path_factory):
    made = library.create(tmp_path_factory.mktemp("conditions") / "library", INFO)
    vectors = QUERY[None].astype(np.float16)
    made.put(
        [Entry(f"{i}.png", vectors, width=i, text="it's", metadata={"n": i}) for i in range(9)]
    )
    return made


def search_raw(place, where: str) -> None:
    """What the library did before it looked at conditions; runs in a process of its own."""
    table = library._lance().connect(place).open_table("entries")
    table.search(QUERY, vector_column_name="vector_1").where(where).limit(1).to_arrow()


@pytest.mark.parametrize("where, complaint", BOMBS)
def test_a_condition_of_too_many_parts_is_refused_with_the_bound_and_the_count(
    lib, where, complaint
):
    for ask in (lambda: lib.search(QUERY, where=where), lambda: next(lib.scan(["id"], where))):
        with pytest.raises(LibraryError, match=complaint):
            ask()


def test_what_is_refused_would_end_the_process(lib, tmp_path):
    place = tmp_path / "library"
    library.create(place, INFO).put([Entry("a", QUERY[None].astype(np.float16))])
    where = "width > 0" + "+1" * 990
    process = multiprocessing.get_context("spawn").Process(target=search_raw, args=(place, where))
    process.start()
    process.join(120)
    assert process.exitcode == -11, "Lance no longer overflows its stack: see library.conditions"
    with pytest.raises(LibraryError, match="has 1983 words and signs; expected at most 1024"):
        library.open(place).search(QUERY, where=where)


@pytest.mark.parametrize("where, found", GOOD)
def test_conditions_of_a_usual_size_are_answered(lib, where, found):
    assert sorted(hit.entry.width for hit in lib.search(QUERY, top=9, where=where)) == found


def test_the_largest_conditions_that_are_allowed_are_answered(lib):
    for where in (
        "width + " + "1 + " * 253 + "0 > 0",
        "(" * 16 + "width > -1" + ")" * 16,
        "width IN (" + ", ".join(map(str, range(509))) + ")",
        " OR ".join(f"width = {i}" for i in range(250)),
        "lower(" * 15 + "text" + ")" * 15 + " = 'it''s'",
        "id || " * 8 + "id != id",
        "text NOT LIKE '%a________b%'",
    ):
        assert len(lib.search(QUERY, top=9, where=where)) == 9, where


def test_a_condition_that_is_not_answered_in_time_is_given_up(tmp_path):
    slow = library.create(tmp_path / "library", INFO)
    vectors = QUERY[None].astype(np.float16)
    for part in range(4):
        slow.put([Entry(f"{part}/{i}", vectors, text="ab" * 50) for i in range(10)])
    where = "regexp_like(text, '(.{1,90}a){90}c')"
    with pytest.raises(LibraryError, match=r"takes more than 0\.01 seconds"):
        slow.search(QUERY, where=where, seconds=0.01)
    assert len(slow.search(QUERY, where="width = 0")) == 5


def test_every_way_to_search_has_the_check_and_the_deadline(tmp_path):
    slow = library.create(tmp_path / "library", INFO)
    vectors = QUERY[None].astype(np.float16)
    for part in range(4):
        slow.put([Entry(f"{part}/{i}", vectors, text="ab" * 50) for i in range(10)])
    entries, late = slow._entries, r"takes more than 0\.01 seconds"
    where = "regexp_like(text, '(.{1,90}a){90}c') AND text <> 'not found'"
    devices = DeviceSearch(entries)
    for search in (
        lambda where: slow.search(QUERY, where=where, exact=True, seconds=0.01),
        lambda where: devices.search(QUERY, "vector_1", 5, where, seconds=0.01),
        lambda where: list(entries.scan(["id"], where, seconds=0.01)),
        lambda where: View(entries._table).chosen("vector_1", where, seconds=0.01),
    ):
        began = time.monotonic()
        with pytest.raises(LibraryError, match=late):
            search(where)
        assert time.monotonic() - began < 30, "it was tried again"
    bomb = "width > 0" + "+1" * 990
    for ask in (
        lambda: slow.search(QUERY, where=bomb, exact=True),
        lambda: list(slow.scan(["id"], bomb)),
    ):
        with pytest.raises(LibraryError, match="1983 words and signs"):
            ask()


def test_a_damaged_table_is_not_blamed_on_the_condition(tmp_path):
    lib = library.create(tmp_path / "library", INFO)
    lib.put([Entry(f"{i}", QUERY[None].astype(np.float16), width=i) for i in range(9)])
    for where in ("1 / (width - 3) = 1", "CAST(id || 'a' AS INT) = 1", "wdth = 3"):
        with pytest.raises(LibraryError, match=r"the condition .* cannot be used") as met:
            lib.search(QUERY, where=where)
        assert not isinstance(met.value, StoreError), where
    for file in (tmp_path / "library" / "entries.lance" / "data").iterdir():
        file.write_bytes(b"no data")
    lib = library.open(tmp_path / "library")
    where = "width = 3"
    for ask in (
        lambda: lib.search(QUERY, where=where),
        lambda: lib.search(QUERY, where=where, exact=True),
        lambda: list(lib.scan(["id"], where)),
    ):
        with pytest.raises(StoreError, match=r"entries\.lance cannot be used"):
            ask()
    with pytest.raises(LibraryError, match="the condition 'wdth = 3' cannot be used") as met:
        lib.search(QUERY, where="wdth = 3")
    assert not isinstance(met.value, StoreError)


def test_quotes_hide_nothing_that_the_database_would_read():
    for where, complaint in (
        ("id = E'\\'' + 1 + 1 --'", "a quote right after a word"),
        ("id = 'a' /* ' */ + 1", "a comment"),
        ("id = $$'$$", r"a '\$'"),
        ("id = 'a", "an open quote"),
        ('id = "a', "an open quote"),
        ("id = `a", "an open quote"),
        ("id = 1; DROP", "a ';'"),
    ):
        with pytest.raises(LibraryError, match=f"the condition has {complaint}"):
            check_condition(where)
    # A backslash before a quote is a letter to SQL, and not to Milvus.
    assert [token.kind for token in read_tokens(r"'a\' = id")] == ["text", "operator", "word"]
    assert [token.kind for token in read_tokens(r"'a\' = id'", milvus=True)] == ["text"]


def test_milvus_expressions_are_counted_as_milvus_reads_them():
    for where in ('metadata["kind"] == "it\'s" and width > 3', " || ".join(["width == 1"] * 20)):
        check_condition(where, milvus=True)
    for where, complaint in (
        ("width + " + "1 + " * 990 + "0 > 0", "1985 words and signs"),
        ("not " * 257 + "true", "257 operators and calls"),
        ("(" * 17 + "true" + ")" * 17, "17 levels of nesting"),
    ):
        with pytest.raises(LibraryError, match=complaint):
            check_condition(where, milvus=True)


def answer_all(place, seed: int, count: int, sent) -> None:
    """Asks a library conditions made at random; runs in a process of its own."""
    lib, rng = library.open(place), np.random.default_rng(seed)
    for number in range(count):
        try:
            lib.search(QUERY, where=condition(rng), seconds=5)
            sent.put((number, ""))
        except LibraryError as error:
            sent.put((number, str(error)))


@pytest.mark.parametrize("count", [150, pytest.param(2000, marks=pytest.mark.slow)])
def test_no_condition_ends_the_process(tmp_path, count):
    place = tmp_path / "library"
    made = library.create(place, INFO)
    made.put([Entry(f"{i}", QUERY[None].astype(np.float16), text="ab" * 9) for i in range(50)])
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=answer_all, args=(place, 7, count, answers))
    process.start()
    got = [answers.get(timeout=120) for _ in range(count)]
    process.join(120)
    assert process.exitcode == 0
    refused = [reason for _, reason in got if "expected at most" in reason]
    assert 0 < len(refused) < count, "the fuzzer makes conditions on one side of the bounds only"
    assert any(not reason for _, reason in got)
