"""Indexing pictures with a small model, finding them, and asking them when the files are gone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import crem_jax
from crem_jax import library
from crem_jax.data.emoji.emoji import load_emoji
from crem_jax.data.images.decode import open_picture
from crem_jax.library.index_source import IndexSource
from crem_jax.library.indexing import index, library_info
from crem_jax.library.memory_codec import encode_memory
from crem_jax.model.fingerprint import fingerprint
from crem_jax.model.pooling import pool
from tests.support.cli_runner import crem

QUESTION = "What is this?"


@pytest.fixture(scope="module")
def model(tiny_model_dir) -> crem_jax.Model:
    return crem_jax.load(tiny_model_dir)


def draw(path: Path, seed: int, size: tuple[int, int] = (30, 24)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def photos(tmp_path) -> Path:
    """Four pictures, two of them with texts, and a damaged one."""
    folder = tmp_path / "photos"
    for i, name in enumerate(("a.png", "b.png", "zoo/c.png", "zoo/d.png")):
        draw(folder / name, i)
    (folder / "a.txt").write_text("the first")
    (folder / "b.json").write_text(json.dumps({"text": "two", "metadata": {"kind": "b"}}))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    return folder


def make(model, source, place, memory: str = "float32", **options):
    lib = library.create(place, library_info(model, "tiny", memory))
    return lib, index(model, lib, IndexSource(str(source)), **options)


def ids(lib) -> list[str]:
    return sorted(name for batch in lib.scan(["id"]) for name in batch["id"])


NAMES = ["a.png", "b.png", "zoo/c.png", "zoo/d.png"]


def test_one_pass_gives_the_embeddings_and_the_memories(model, photos, tmp_path):
    lib, done = make(model, photos, tmp_path / "lib")
    assert ids(lib) == NAMES and done.encoded == 4
    ((where, reason),) = done.skipped
    assert where.endswith("broken.jpg") and "is not a picture" in reason
    states = model.compress([photos / name for name in NAMES]).chorus
    entries = lib.get(NAMES)
    for row, k in enumerate(lib.info.prefixes):
        mine = np.stack([entry.vectors[row] for entry in entries])
        np.testing.assert_allclose(mine, pool(states, k), atol=5e-4)
    assert [entry.text for entry in entries] == ["the first", "two", "", ""]
    assert entries[1].metadata == {"kind": "b"}
    assert (entries[2].width, entries[2].height) == (24, 30)
    assert entries[0].uri == str(photos / "a.png")
    assert open_picture(entries[0].thumbnail).size == (24, 30)
    assert not lib.verify()["problems"]


def test_answers_from_stored_memories_are_those_of_fresh_ones(model, photos, tmp_path):
    lib, _ = make(model, photos, tmp_path / "lib")
    asked = [{"image": photos / name, "text": QUESTION} for name in NAMES]
    fresh = model.generate(asked, compressed=True, k=2, max_new_tokens=6)
    memory = model.compress([photos / name for name in NAMES]).chorus_only(2)
    for name in NAMES:
        (photos / name).unlink()
    assert lib.ask(model, NAMES, QUESTION, 2, max_new_tokens=6) == fresh
    stored = lib.memories(NAMES, k=2)
    for mine, theirs in zip(jax.tree.leaves(stored.kv), jax.tree.leaves(memory.kv), strict=True):
        assert mine.tobytes() == theirs.tobytes()
    memory = lib.memories(NAMES[:2])
    with pytest.raises(ValueError, match="1 questions about 2 memories"):
        model.ask(memory, [QUESTION])
    with pytest.raises(ValueError, match="the question is empty"):
        model.ask(memory, [QUESTION, " "])
    with pytest.raises(ValueError, match="reach position"):
        model.ask(memory, ["long " * 200] * 2)


def test_a_compressed_memory_is_in_the_order_of_the_items(model, photos):
    draw(photos / "wide.png", 9, (20, 60))
    paths = [photos / name for name in ("wide.png", "a.png")]
    whole = model.compress(paths)
    for row, path in enumerate(paths):
        (alone,) = encode_memory(model.compress([path]), "bfloat16")
        assert encode_memory(whole, "bfloat16")[row] == alone


def test_only_what_changed_is_encoded_again(model, photos, tmp_path):
    lib, _ = make(model, photos, tmp_path / "lib")
    before = lib.get(NAMES)
    draw(photos / "a.png", 77)
    draw(photos / "new.png", 5)
    (photos / "zoo/c.png").unlink()
    (photos / "b.json").write_text(json.dumps({"text": "another text"}))
    done = index(model, lib, IndexSource(str(photos)))
    assert (done.encoded, done.unchanged, done.deleted) == (3, 1, 0)
    assert ids(lib) == sorted([*NAMES, "new.png"])
    done = index(model, lib, IndexSource(str(photos)), delete=True)
    assert (done.encoded, done.unchanged, done.deleted) == (0, 4, 1)
    after = lib.get(NAMES)
    assert after[2] is None and after[1].text == "another text"
    assert not np.array_equal(after[0].vectors, before[0].vectors)
    assert np.array_equal(after[3].vectors, before[3].vectors)
    found = lib.verify()
    assert found["entries"] == found["memories"] == 4 and not found["problems"]


def test_a_picture_that_was_damaged_later_stays_in_the_library(model, photos, tmp_path):
    lib, _ = make(model, photos, tmp_path / "lib")
    (photos / "a.png").write_bytes(b"harm")
    done = index(model, lib, IndexSource(str(photos)), delete=True)
    assert done.deleted == 0 and len(done.skipped) == 2 and ids(lib) == NAMES


def test_two_sources_share_a_library_without_mixing_ids(model, photos, tmp_path):
    lib, _ = make(model, photos, tmp_path / "lib")
    draw(tmp_path / "other" / "a.png", 50)
    with pytest.raises(
        ValueError, match=r"has 'a.png' from folder:.*give the ids of .* a --prefix"
    ):
        index(model, lib, IndexSource(str(tmp_path / "other")))
    index(model, lib, IndexSource(str(tmp_path / "other"), "other/"))
    index(model, lib, IndexSource(str(photos)), delete=True)
    assert ids(lib) == sorted([*NAMES, "other/a.png"])


def test_shards_share_the_work(model, photos, tmp_path):
    lib, first = make(model, photos, tmp_path / "lib", shard=(0, 2))
    assert 0 < first.encoded < 4
    second = index(model, lib, IndexSource(str(photos)), shard=(1, 2))
    assert first.encoded + second.encoded == 4 and ids(lib) == NAMES
    with pytest.raises(ValueError, match="delete in a run of its own"):
        index(model, lib, IndexSource(str(photos)), shard=(1, 2), delete=True)


def test_jsonl_ids_texts_and_metadata_are_kept(model, photos, tmp_path):
    lines = [
        {"id": "one", "image": "a.png", "metadata": {"price": 5}},
        {"id": "two", "query": {"text": "only words"}},
        {"id": "two", "image": "b.png"},
        {"id": "gone", "image": "none.png"},
    ]
    file = photos / "shop.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    lib, done = make(model, file, tmp_path / "lib")
    assert ids(lib) == ["one", "two"] and lib.get(["two"])[0].text == "only words"
    reasons = [reason for _, reason in done.skipped]
    assert "'two' was given before" in reasons[0] and "none.png" in reasons[1]
    plain = photos / "plain.jsonl"
    plain.write_text(json.dumps({"image": "a.png"}))
    for path in (plain, os.path.relpath(plain)):
        index(model, lib, IndexSource(str(path)))
    assert ids(lib) == ["one", "plain.jsonl:1", "two"]
    hits = lib.find(model, "words", where="json_get_int(metadata, 'price') > 4")
    assert [hit.entry.id for hit in hits] == ["one"]


def test_a_name_that_is_not_utf8_is_named_and_left_out(model, photos, tmp_path):
    draw(photos / "caf\udce9.png", 9)
    lib, done = make(model, photos, tmp_path / "lib")
    assert ids(lib) == NAMES and (tmp_path / "lib").exists()
    assert any(r"caf\udce9.png: the name is not UTF-8" in reason for _, reason in done.skipped)


def test_another_models_questions_are_refused(model, photos, tmp_path):
    lib, _ = make(model, photos, tmp_path / "lib")
    params = jax.tree.map(lambda x: x * 1.01, model.params)
    other = crem_jax.Model(model.config, params, model.tokenizer)
    for use in (
        lambda: lib.find(other, "words"),
        lambda: lib.ask(other, ["a.png"], QUESTION),
        lambda: index(other, lib, IndexSource(str(photos))),
    ):
        with pytest.raises(library.LibraryError, match="made with another model: tiny"):
            use()
    half = jax.tree.map(lambda x: x.astype("bfloat16"), model.params)
    same = fingerprint(model.config.replace(dtype="bfloat16", remat="full"), half)
    assert same == model.fingerprint
    assert fingerprint(model.config.replace(system_prompt="x"), half) != model.fingerprint


def test_models_that_differ_in_chorus_tokens_alone_differ(model, monkeypatch):
    monkeypatch.setattr("crem_jax.model.fingerprint._SAMPLE", 1)  # as if they were large
    table = np.array(model.params["backbone"]["embedding"])
    names = set()
    for row in (None, *model.config.chorus_ids):
        changed = table.copy()
        if row is not None:
            changed[row, -1] += 1
        backbone = {**model.params["backbone"], "embedding": changed}
        names.add(fingerprint(model.config, {**model.params, "backbone": backbone}))
    assert len(names) == 1 + model.config.num_chorus


def test_the_verbs_index_find_tell_and_look_after_a_library(
    capsys, tiny_model_dir, model, photos, tmp_path
):
    place, grid = tmp_path / "lib", tmp_path / "grid.png"
    argv = ("index", tiny_model_dir, photos, "--library", place, "--memory", "float32")
    got = crem(capsys, *argv, "--json")
    assert got.json["encoded"] == 4 and got.json["entries"] == 4
    assert "skipped" in got.err and "broken.jpg" in got.err
    assert crem(capsys, *argv, "--json").json["unchanged"] == 4
    states = model.compress([photos / name for name in NAMES]).chorus
    scores = pool(states, 2) @ model.encode(["a cat"], 2)[0]
    for name in NAMES:
        (photos / name).unlink()
    find = ("find", tiny_model_dir, "a cat", "--in", place, "--out", grid, "--k", 2)
    got = crem(capsys, *find, "--top", 1, "--ask", QUESTION, "--json").json
    (hit,) = got["results"]
    assert hit["id"] == NAMES[np.argmax(scores)]
    (answer,) = library.open(place).ask(model, [hit["id"]], QUESTION, 2)
    assert hit["answer"] == answer
    assert Image.open(grid).width > 300
    got = crem(capsys, *find, "--where", "id LIKE 'zoo/%'", "--json").json
    assert sorted(hit["id"] for hit in got["results"]) == ["zoo/c.png", "zoo/d.png"]
    assert "zoo/c.png" in crem(capsys, *find).out
    exact = crem(capsys, *find, "--where", "id LIKE 'zoo/%'", "--exact", "--json").json
    assert exact["results"] == got["results"]
    refused = crem(capsys, *find, "--dim", 8)
    assert refused.code == 2 and f"--dim 8 needs a folder; {place} is a library" in refused.err
    tell = ("tell", tiny_model_dir, QUESTION, "--in", place, "--id", hit["id"], "--k", 2)
    assert crem(capsys, *tell, "--json").json["answer"] == answer
    assert crem(capsys, *tell).out == f"{answer}\n"
    found = crem(capsys, "library", "verify", place, "--json").json
    assert found["entries"] == 4 and found["problems"] == [] and found["recall"] == {}
    said = crem(capsys, "library", "verify", place).out
    assert "4 entries, 4 memories, 0 problems" in said
    assert "search: exact, nothing to measure" in said
    stats = crem(capsys, "library", "stats", place, "--json").json
    assert stats["memories"]["memories"] == 4 and stats["fingerprint"] == model.fingerprint
    assert crem(capsys, "library", "compact", place, "--json").json == {"orphans": 0}
    library.open(place)._memories.delete(["a.png"])
    assert crem(capsys, "library", "verify", place).code == 1


@pytest.mark.parametrize(
    "argv, reason",
    [
        (("tell", "M", "--in", "L"), "needs --id X; `crem find` shows ids"),
        (("tell", "M", "q", "--id", "x"), "--id 'x' needs --in LIBRARY"),
        (("tell", "M", "a.png", "q", "--in", "L", "--id", "x"), "IMAGE 'a.png' is not used"),
        (("tell", "M", "q", "--in", "nowhere", "--id", "x"), "nowhere is no library"),
        (("library", "stats", "nowhere"), "nowhere is no library; `crem index` makes one"),
        (("find", "M", "w", "--in", "nowhere", "--ask", "q"), "--ask needs a library"),
        (("find", "M", "w", "--in", "nowhere", "--exact"), "--exact needs a library"),
        (("index", "M", "s", "--library", "l", "--shard", "2/2"), "'2/2' is not I/N"),
        (("index", "M", "s", "--library", "l", "--ks", "4,x"), "'4,x' is not a list of whole"),
    ],
)
def test_wrong_usage_of_libraries_is_one_line(capsys, argv, reason):
    got = crem(capsys, *argv)
    assert got.code == 2 and got.out == "" and got.err.count("\n") == 1 and reason in got.err


def indexing(compiled: Path, place: Path, *argv: object) -> subprocess.Popen:
    """`crem index` in a process of its own; what is compiled is shared."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(compiled)}
    env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    command = [sys.executable, "-m", "crem_jax", "index", "--library", place, *argv]
    return subprocess.Popen(
        list(map(str, command)),
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(child: subprocess.Popen) -> str:
    out, _ = child.communicate(timeout=600)
    assert child.returncode == 0, out
    return out


def kill_while_indexing(start, place: Path, moments: list[int], rng, half_changed: int = 0) -> None:
    """Starts `crem index` and kills it after so many more versions of the table of memories, once
    for each of the moments; then lets it end. After a kill so many items at most may have their new
    memory already and their old embeddings still."""
    versions = place / "memories.lance" / "_versions"

    def count() -> int:
        return len(os.listdir(versions)) if versions.exists() else 0

    for moment in moments:
        before, child = count(), start()
        while child.poll() is None and count() < before + moment:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        child.send_signal(signal.SIGKILL)
        out, _ = child.communicate()
        assert child.returncode == -signal.SIGKILL, f"it ended before it was killed: {out}"
        problems = library.open(place).verify()["problems"]
        assert {reason for _, reason in problems} <= {"its memory is of another content"}
        assert len(problems) <= half_changed
    end(start())


def test_killed_runs_lose_and_double_nothing(tiny_model_dir, compiled, tmp_path, rng):
    for i in range(40):
        draw(tmp_path / "photos" / f"{i}.png", i)
    place = tmp_path / "lib"

    def start():
        return indexing(compiled, place, tiny_model_dir, tmp_path / "photos", "--batch", 2)

    kill_while_indexing(start, place, [4, 3], rng)
    lib = library.open(place)
    found = lib.verify()
    assert ids(lib) == sorted(f"{i}.png" for i in range(40))
    assert found["entries"] == found["memories"] == 40 and found["problems"] == []


@pytest.mark.slow
def test_all_emoji_survive_twenty_kills(tiny_model_dir, compiled, tmp_path, rng):
    emoji, lines, place = load_emoji("all"), tmp_path / "emoji.jsonl", tmp_path / "lib"
    for one in emoji:
        Image.fromarray(one.pixels).save(tmp_path / f"{one.codepoints}.png")

    def start():
        return indexing(compiled, place, tiny_model_dir, lines, "--batch", 64)

    for text, half_changed in (("first", 0), ("second", 64)):  # the second time, all have changed
        queries = {
            one.codepoints: {"image": f"{one.codepoints}.png", "text": text} for one in emoji
        }
        records = [{"id": name, "query": query} for name, query in queries.items()]
        lines.write_text("\n".join(map(json.dumps, records)))
        moments = rng.integers(1, 4, 10).tolist()
        kill_while_indexing(start, place, moments, rng, half_changed)
        lib = library.open(place)
        found = lib.verify()
        assert found["entries"] == found["memories"] == len(emoji) and found["problems"] == []
        texts = np.concatenate([batch["text"] for batch in lib.scan(["text"])])
        assert ids(lib) == sorted(queries) and set(texts) == {text}


@pytest.mark.slow
def test_two_processes_index_like_one(model, tiny_model_dir, compiled, photos, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = tmp_path / "lib"

    def start(*sources: Path) -> list[subprocess.Popen]:
        told = (f"--distributed=127.0.0.1:{port},2,{i}" for i in range(2))
        argv = (compiled, place, tiny_model_dir, "--memory", "float32", "--json")
        return [indexing(*argv, word, source) for word, source in zip(told, sources, strict=True)]

    for child in start(photos, photos):
        said = json.loads(end(child).splitlines()[-1])
        assert said["entries"] == 4 and said["encoded"] < 4
    lib, alone = library.open(place), make(model, photos, tmp_path / "alone")[0]
    assert ids(lib) == NAMES and lib.verify()["problems"] == []
    for mine, theirs in zip(lib.get(NAMES), alone.get(NAMES), strict=True):
        assert mine.content == theirs.content
        np.testing.assert_allclose(mine.vectors, theirs.vectors, atol=1e-3)
    # A process that fails ends the others, which would wait for it.
    failing, waiting = start(tmp_path / "none", photos)
    for child in (failing, waiting):
        out, _ = child.communicate(timeout=300)
        assert child.returncode != 0, out
