"""`crem eval mmeb` from files to files: interrupted, resumed, repeated, shared; and bad data."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import crem_jax
from crem_jax.data.records import Item
from crem_jax.evaluate.embedding_cache import ContentKeys, EmbeddingCache
from crem_jax.evaluate.encoding import LocatedItem, encode_missing
from crem_jax.evaluate.mmeb.cases import read_cases
from crem_jax.evaluate.mmeb.datasets import DATASETS, chosen
from crem_jax.evaluate.mmeb.emoji_data import write
from crem_jax.evaluate.mmeb.scoring import rank
from tests.support.cli_runner import crem

SOME = ("HatefulMemes", "EDIS")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """All 36 data sets, four queries each."""
    return write(
        tmp_path_factory.mktemp("mmeb"), queries=4, candidates=6, sizes=[(16, 16), (32, 16)]
    )


@pytest.fixture(scope="module")
def model(tiny_model_dir) -> crem_jax.Model:
    return crem_jax.load(tiny_model_dir)


def start(compiled: Path, *argv, devices: int = 1) -> subprocess.Popen:
    """`crem` in a process of its own."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    command = [sys.executable, "-m", "crem_jax", *map(str, argv)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def test_all_36_killed_and_resumed_leave_every_file(
    capsys, tiny_model_dir, root, compiled, tmp_path
):
    argv = ["eval", "mmeb", tiny_model_dir, "--data", root, "--out", tmp_path]
    process = start(compiled, *argv)
    cache = tmp_path / "embeddings"
    while len(list(cache.glob("*/*.arrow"))) < 2:
        assert process.poll() is None, process.stderr.read()[-3000:]
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "scores.json").exists()

    resumed = crem(capsys, *argv, "--json")
    assert resumed.code == 0, resumed.err
    found = resumed.json["embeddings found in the cache"]
    assert 0 < found < resumed.json["items"]
    assert resumed.json["embeddings made"] == resumed.json["items"] - found
    assert resumed.json["datasets_evaluated"] == 36
    for dataset in DATASETS:
        first = json.loads((tmp_path / "v1" / f"{dataset.name}_score.json").read_text())
        second = json.loads((tmp_path / "v2" / "image" / f"{dataset.name}_score.json").read_text())
        assert first["acc"] == second["hit@1"] == first["num_correct"] / first["num_pred"]
        assert second["num_data"] == 4 and second["recall@10"] == 1.0
        lines = (tmp_path / "v2" / "image" / f"{dataset.name}_pred.jsonl").read_text().splitlines()
        assert len(lines) == 4
        right = [line["prediction"][0] == line["label"] for line in map(json.loads, lines)]
        assert sum(right) == first["num_correct"]
    board = json.loads((tmp_path / "leaderboard.json").read_text())
    assert list(board["metrics"]["image"]) == [d.name for d in DATASETS]
    assert board["metadata"]["embedding_dimension"] == 32
    page = (tmp_path / "report.html").read_text()
    assert "CREM-2B (published)" in page and "data:image/png;base64," in page
    assert 'src="http' not in page and "<link" not in page
    assert "| CREM-2B (published) | 66.7 |" in (tmp_path / "report.md").read_text()
    assert Image.open(tmp_path / "mmeb.png").height > 500

    again = crem(capsys, *argv, "--json")
    assert again.json["embeddings made"] == 0 and again.json["datasets"] == resumed.json["datasets"]
    assert len(list(cache.glob("*/*.arrow"))) == 1  # tidied


def test_the_cache_has_what_encode_gives(capsys, tiny_model_dir, model, root, tmp_path):
    argv = ["eval", "mmeb", tiny_model_dir, "--data", root, "--cache", tmp_path]
    out = tmp_path / "out"
    some = ["--datasets", ",".join(SOME), "--k", 2, "--out", out]
    got = crem(capsys, *argv, *some, "--json")
    (part,) = tmp_path.glob("*/*.arrow")
    assert part.parent.name == f"{model.fingerprint}-k2-float32-v1"
    cache = EmbeddingCache(tmp_path, part.parent.name.removesuffix("-v1"), 32)
    items = [item for dataset in chosen(SOME) for item in read_cases(dataset, root).items]
    keys = ContentKeys().of(items)
    assert len(cache) == len(set(keys)) == got.json["items"]
    np.testing.assert_allclose(cache.get(keys), model.encode(items, k=2), atol=1e-5)
    assert got.json["k"] == 2 and "2 of MMEB's 36 data sets" in got.json["warnings"][0]

    argv += ["--datasets", "EDIS", "--k", 2, "--dim", 8]
    before = (out / "scores.json").read_bytes()
    refused = crem(capsys, *argv, "--out", out)
    assert refused.code == 2 and "scores.json has scores of dim 32, not 8" in refused.err
    assert (out / "scores.json").read_bytes() == before
    shorter = crem(capsys, *argv, "--out", tmp_path / "short", "--json").json
    assert shorter["embeddings made"] == 0 and shorter["dim"] == 8
    case = read_cases(*chosen(["EDIS"]), root)
    own = rank(model.encode(case.items, k=2, dim=8), case.queries, case.candidates, case.places)
    assert shorter["datasets"]["EDIS"]["precision@1"] == np.mean(own.rank == 0)
    said = crem(capsys, *argv, "--limit", 3, "--out", tmp_path / "few")
    assert re.search(r"P@1 % +┃ chance", said.out) and "EDIS" in said.out
    assert "(1 of 36 data sets, first 3 rows)" in " ".join(said.out.split())
    assert "only the first 3 rows of each data set" in said.err


def test_data_sets_measured_one_after_another_come_together(capsys, tiny_model_dir, root, tmp_path):
    argv = ["eval", "mmeb", tiny_model_dir, "--data", root, "--cache", tmp_path, "--json"]
    whole = crem(capsys, *argv, "--datasets", ",".join(SOME), "--out", tmp_path / "whole").json
    for name in reversed(SOME):
        one = crem(capsys, *argv, "--datasets", name, "--out", tmp_path / "parts").json
    assert one["datasets"] == whole["datasets"] and one["means"] == whole["means"]
    boards = [
        json.loads((tmp_path / out / "leaderboard.json").read_text())["metrics"]
        for out in ("whole", "parts")
    ]
    assert boards[0] == boards[1]


def test_keys_follow_content_not_names(tmp_path):
    for name, colour in (("a", "red"), ("b", "red"), ("c", "blue")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{name}.png")
    a, b, c = (str(tmp_path / f"{name}.png") for name in "abc")
    items = [Item("x", (a,)), Item("x", (b,)), Item("x", (c,)), Item("y", (a,)), Item("x")]
    keys = ContentKeys().of(items)
    assert keys[0] == keys[1] and len(set(keys)) == 4


def test_a_cache_is_shared_by_processes_and_a_damaged_part_is_named(tmp_path, rng):
    one, other = (EmbeddingCache(tmp_path, "m", 3) for _ in range(2))
    vectors = rng.standard_normal((4, 3)).astype(np.float32)
    keys = [bytes([i]) * 16 for i in range(4)]
    one.put(keys[:2], vectors[:2])
    other.put(keys[2:], vectors[2:])
    one.refresh()
    assert len(one) == 4 and keys[3] not in EmbeddingCache(tmp_path, "n", 3)
    one.tidy()
    np.testing.assert_array_equal(EmbeddingCache(tmp_path, "m", 3).get(keys[::-1]), vectors[::-1])
    with pytest.raises(ValueError, match="has vectors of 3 numbers; expected 4"):
        EmbeddingCache(tmp_path, "m", 4)
    (part,) = one.directory.iterdir()
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"\.arrow is damaged: .*; delete it"):
        EmbeddingCache(tmp_path, "m", 3)


def test_what_cannot_be_used_is_named(capsys, tiny_model_dir, root, tmp_path):
    argv = ["eval", "mmeb", tiny_model_dir, "--out", tmp_path / "out", "--data"]
    got = crem(capsys, *argv, root, "--datasets", "GQ")
    assert got.code == 2 and "MMEB has no data set 'GQ'; did you mean 'GQA'?" in got.err
    got = crem(capsys, *argv, root, "--datasets", "")
    assert got.code == 2 and "--datasets names nothing" in got.err
    got = crem(capsys, *argv, root, "--datasets", "GQA", "--k", 9)
    assert got.code == 2 and "k = 9 is not in 1..4" in got.err
    got = crem(capsys, *argv, tmp_path / "none", "--datasets", "GQA")
    assert got.code == 2 and f"{tmp_path / 'none'}" in got.err
    row = {"qry_text": "q", "qry_img_path": "no.png", "tgt_text": ["a", "b"]}
    (tmp_path / "GQA.jsonl").write_text(json.dumps(row))
    got = crem(capsys, *argv, tmp_path)
    assert got.code == 2 and "has no subset 'ImageNet-1K'" in got.err
    got = crem(capsys, *argv, tmp_path, "--datasets", "GQA")
    assert got.code == 2 and "no.png: No such file or directory; pictures are looked" in got.err
    (tmp_path / "no.png").write_bytes(b"\x89PNG broken")
    got = crem(capsys, *argv, tmp_path, "--datasets", "GQA")
    assert got.code == 2 and "GQA.jsonl:1: " in got.err and "no.png: is not a picture" in got.err
    assert got.err.count("\n") == 1
    row |= {"qry_text": "why " * 5000, "qry_img_path": "", "tgt_text": ["a", "b"]}
    (tmp_path / "GQA.jsonl").write_text(json.dumps(row))
    got = crem(capsys, *argv, tmp_path, "--datasets", "GQA")
    assert got.code == 2 and "GQA.jsonl:1: the prompt needs" in got.err
    (tmp_path / "GQA.jsonl").unlink()
    pq.write_table(pa.table({"qry_text": pa.array([], pa.string())}), tmp_path / "GQA.parquet")
    got = crem(capsys, *argv, tmp_path, "--datasets", "GQA")
    assert got.code == 2 and "GQA.parquet has no rows" in got.err


def test_an_embedding_that_is_not_finite_is_named_and_not_kept(model, tmp_path):
    class Broken:
        config, prompter, row_multiple = model.config, model.runner.prompter, 1

        def chorus_states(self, context):
            return np.full((len(context.tokens), 4, 32), np.nan, np.float32)

    cache = EmbeddingCache(tmp_path, "m", 32)
    with pytest.raises(ValueError, match="row 7: the embedding is not finite"):
        encode_missing(Broken(), {b"k" * 16: LocatedItem(Item("a"), "row 7")}, cache)
    assert len(cache) == 0


def test_shares_are_apart_and_leave_nothing_out(model, tmp_path):
    work = {bytes([7 * i]) * 16: LocatedItem(Item(f"item {i}"), str(i)) for i in range(9)}
    caches = [EmbeddingCache(tmp_path / str(i), "m", 32) for i in range(2)]
    made = [encode_missing(model.runner, work, caches[i], share=(i, 2)) for i in range(2)]
    assert made == [len(cache) for cache in caches] and sum(made) == 9 and min(made) > 0
    assert all((key in caches[0]) != (key in caches[1]) for key in work)


@pytest.mark.slow
def test_two_processes_of_two_devices_score_like_one(
    capsys, tiny_model_dir, root, compiled, tmp_path
):
    argv = ["eval", "mmeb", tiny_model_dir, "--data", root, "--datasets", ",".join(SOME), "--out"]
    alone = crem(capsys, *argv, tmp_path / "one", "--json").json
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = [f"--distributed=127.0.0.1:{port},2,{i}" for i in range(2)]
    processes = [start(compiled, *argv, tmp_path / "two", word, devices=2) for word in told]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]
    both = json.loads((tmp_path / "two" / "scores.json").read_text())
    assert both["datasets"] == alone["datasets"]


@pytest.mark.slow
def test_the_benchmark_compares_scores_first_and_ends_with_its_figures_as_json():
    benchmark = Path(__file__).parents[2] / "benchmarks" / "evaluate.py"
    environment = os.environ | {"PYTHONPATH": str(benchmark.parents[1]), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(benchmark), "--quick", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["items encoded, ours"] < figures["items encoded, straightforward"]
