"""`crem doctor` names every record that cannot be used and no other, and nothing stops it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crem_jax.configs.schema.data import BatchSpec, BucketSpec
from crem_jax.data.batches.stream import Skip, Stream
from crem_jax.data.inputs.prompt import Prompter
from crem_jax.data.sources.command_line import parse_source
from crem_jax.data.sources.registry import make_source
from crem_jax.data.tools.doctor import FAULTS, visual_tokens
from tests.support import mutants, toy
from tests.support.cli_runner import crem
from tests.support.toy import prompter

NEVER_RAISED = {"aspect", "tokens", "negative", "duplicate"}
"""Faults of records that can be read all the same."""


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: list) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def sick(tmp_path) -> Path:
    """A JSONL of twelve records, of which 0, 9 and 10 are sound."""
    Image.new("RGB", (30, 20), "teal").save(tmp_path / "good.png")
    Image.new("RGB", (31, 20), "red").save(tmp_path / "other.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:60])
    Image.new("RGB", (3000, 3)).save(tmp_path / "long.png")
    (tmp_path / "bomb.png").write_bytes(mutants.bomb(b"", np.random.default_rng(0)))
    (tmp_path / "twin.png").write_bytes((tmp_path / "good.png").read_bytes())
    return write(
        tmp_path / "pairs.jsonl",
        [
            {"id": "sound", "image": "good.png", "text": "a"},
            {"image": "nowhere.png", "text": "a"},
            {"image": "cut.png", "text": "a"},
            {"image": "bomb.png", "text": "a"},
            {"image": "good.png", "text": " "},
            {"image": "good.png", "txt": "a"},
            {"image": "long.png", "text": "a"},
            {"image": "other.png", "text": "word " * 200},
            {"image": "other.png", "text": "b", "negatives": ["c", "b"]},
            {"image": "other.png", "text": "b"},
            {"image": "good.png", "text": "b"},
            {"image": "twin.png", "text": "a"},
        ],
    )


def test_every_fault_is_named_and_the_index_leaves_it_out(sick, tmp_path, capsys):
    out = tmp_path / "checked"
    done = crem(capsys, "doctor", sick, "--out", out, "--max_tokens", 100, "--workers", 2)
    assert done.code == 1 and "3 of 12 records are good" in done.out
    found = {entry["record"]: entry for entry in lines(out / "quarantine.jsonl")}
    kinds = "missing,damaged,too large,empty,record,aspect,tokens,negative"
    assert [found[i]["kind"] for i in range(1, 9)] == kinds.split(",")
    assert found[11]["kind"] == "duplicate" and f"same as {sick}:1" in found[11]["reason"]
    assert set(found) == {*range(1, 9), 11}
    assert all(entry["where"] == f"{sick}:{i + 1}" for i, entry in found.items())
    assert "nowhere.png: does not exist" in found[1]["reason"]
    assert "'txt'" in found[5]["reason"] and "3000x3, 1000 times" in found[6]["reason"]
    source = make_source("jsonl", {"path": sick, "index": out / "index.json"})
    assert [source.record(i).positives[0].text for i in range(len(source))] == ["a", "b", "b"]
    report = json.loads((out / "report.json").read_text())
    assert report["faults"] == {found[i]["kind"]: 1 for i in (5, 4, 1, 2, 3, 6, 7, 8, 11)}
    assert Image.open(out / "histograms.png").size[0] > 600


def test_faults_may_be_kept_and_a_sound_source_gives_code_0(sick, tmp_path, capsys):
    out = tmp_path / "checked"
    keep = [part for fault in FAULTS for part in ("--keep", fault)]
    done = crem(capsys, "doctor", sick, "--out", out, *keep, "--json", "--workers", 1)
    assert done.json["good"] == 12 and not lines(out / "quarantine.jsonl")
    assert {entry["kind"] for entry in lines(out / "warnings.jsonl")} > {"missing", "duplicate"}
    refused = crem(capsys, "doctor", sick, "--keep", "aspects")
    assert refused.code == 2 and "--keep 'aspects' is no fault; faults: record" in refused.err


def test_rows_a_format_leaves_out_and_placeholders_without_pictures_are_told(tmp_path, capsys):
    row = dict(qry="<|image_1|>\nq", qry_image_path="", pos_text="t", pos_image_path="")
    path = write(tmp_path / "WebQA.jsonl", [row, {**row, "qry": "<|image_1|>"}])
    done = crem(capsys, "doctor", path, "--out", tmp_path / "out", "--json", "--workers", 1)
    assert done.json["left_out"] == {"WebQA: the query is empty": 1}
    assert (done.json["records"], done.json["good"]) == (1, 1)
    assert done.json["faults"] == {"placeholder": 1}
    (warning,) = lines(tmp_path / "out" / "warnings.jsonl")
    assert warning["reason"] == "the query has 1 placeholders and 0 pictures"


def test_visual_tokens_are_those_of_qwen2_vl():
    assert [visual_tokens(*size) for size in ((56, 56), (280, 140), (1, 1))] == [4, 50, 4]
    assert 1200 < visual_tokens(4000, 3000) <= 1280


# 1,000 mutants


def mutated_sources(root: Path, rng: np.random.Generator, count: int) -> list[tuple[str, Path]]:
    """JSONL files of three formats, `count` rows in all; each row or its picture is damaged."""

    def own(image: str, i: int) -> dict:
        turns = [{"question": "what?", "answer": str(i)}]
        return {
            "id": str(i),
            "image": image,
            "text": ["a", str(i)],
            "negatives": ["n"],
            "turns": turns,
        }

    def talk(image: str, i: int) -> dict:
        said = [{"from": "human", "value": f"<image>\n{i}"}, {"from": "gpt", "value": "yes"}]
        return {"id": str(i), "image": image, "conversations": said}

    def pair(image: str, i: int) -> dict:
        empty = dict(pos_image_path="", neg_text=["n", "m"], neg_image_path=["", ""])
        return dict(qry=f"<|image_1|>\n{i}", qry_image_path=image, pos_text="t", **empty)

    files = []
    makers = {"jsonl": own, "sharegpt": talk, "mmeb": pair}
    for number, (kind, make) in enumerate(makers.items()):
        folder = root / kind
        folder.mkdir()
        with open(folder / "rows.jsonl", "wb") as file:
            for i in range(count // 3 + (number < count % 3)):
                image = folder / f"{i}.img"
                if rng.random() < 0.5:
                    mutants.place_damaged_picture(image, rng)
                    line = json.dumps(make(image.name, i)).encode()
                else:
                    image.write_bytes(mutants.picture(rng))
                    line = mutants.mutated_line(make(image.name, i), rng)
                file.write(line + b"\n")
        files.append((kind, folder / "rows.jsonl"))
    return files


def skipped_in_training(kind: str, source, rows: Prompter, steps: int) -> list[Skip]:
    """What so many batches of eight records skip."""
    buckets = {
        "text": BucketSpec(512, 0, 32, 512, 400),
        "picture": BucketSpec(512, 64, 32, 512, 400),
    }
    spec = BatchSpec(buckets, candidates=40, records={kind: 8})
    stream = Stream({kind: source}, spec, rows, seed=0)
    return [skip for step in range(steps) for skip in stream.make(step)[1].skipped]


def test_1000_mutants_are_named_and_stop_neither_the_doctor_nor_training(tmp_path, capsys, rng):
    text = dataclasses.replace(toy.config().text, max_positions=1 << 20)
    rows, seen = prompter(text=text), 0
    for kind, path in mutated_sources(tmp_path, rng, 1000):
        name = f"mmeb:{path.parent},subset=rows" if kind == "mmeb" else f"{kind}:{path}"
        out = tmp_path / f"{kind}-checked"
        done = crem(capsys, "doctor", name, "--out", out, "--json", "--max_tokens", 300)
        assert done.code in (0, 1), done.err
        report = json.loads((out / "report.json").read_text())
        faults = lines(out / "quarantine.jsonl")
        assert not {"crash", "slow"} & set(report["faults"])
        named = {entry["record"] for entry in faults if entry["kind"] not in NEVER_RAISED}
        source = make_source(*parse_source(name))
        refused = set()
        for index in range(len(source)):
            try:
                record = source.record(index, np.random.default_rng(index))
                for item in (record.query, *record.positives, *record.negatives):
                    rows.context(item)
                    item.content_hash()
                rows.target(record.turns)
            except ValueError as error:
                refused.add(index)
                assert str(error)
        assert refused == named
        assert len(named) > len(source) / 4
        skipped = skipped_in_training(kind, source, rows, steps=len(source) // 8)
        indices = {skip.index for skip in skipped if skip.index >= 0}  # below 0: a negative
        assert indices and indices <= {fault["record"] for fault in faults}
        assert all(skip.reason and skip.id for skip in skipped)
        seen += len(source) + sum(source.left_out.values())
    assert seen == 1000


# how sources are written


@pytest.mark.parametrize(
    ("text", "kind", "arguments"),
    [
        ("emoji", "emoji", {}),
        ("emoji:split=all,size=32", "emoji", {"split": "all", "size": 32}),
        ("jsonl:a.jsonl,image_root=b c", "jsonl", {"path": "a.jsonl", "image_root": "b c"}),
        (
            "mmeb:M,subset=A,subset=B,cap.A=5,seed=1",
            "mmeb",
            {"path": "M", "subset": ["A", "B"], "cap": {"A": 5}, "seed": 1},
        ),
        (
            'tfds:d,features.query_image=image,features.question="What, and where?"',
            "tfds",
            {"path": "d", "features": {"query_image": "image", "question": "What, and where?"}},
        ),
        ("folder:path=p,name_as_text=true", "folder", {"path": "p", "name_as_text": True}),
    ],
)
def test_a_source_is_written_as_kind_path_and_arguments(text, kind, arguments):
    assert parse_source(text) == (kind, arguments)


def test_what_is_at_a_path_decides_the_kind(tmp_path):
    (tmp_path / "photos").mkdir()
    pairs = write(tmp_path / "pairs.jsonl", [{"query": "q"}])
    talk = write(tmp_path / "talk.jsonl", [{"conversations": []}])
    (tmp_path / "mmeb").mkdir()
    flat = write(tmp_path / "mmeb" / "VOC2007.jsonl", [{"qry": ""}])
    (tmp_path / "data" / "crem" / "1.0.0").mkdir(parents=True)
    (tmp_path / "data" / "crem" / "1.0.0" / "dataset_info.json").touch()
    (tmp_path / "list.json").touch()
    kinds = {
        tmp_path / "photos": "folder",
        pairs: "jsonl",
        talk: "sharegpt",
        tmp_path / "mmeb": "mmeb",
        tmp_path / "data": "tfds",
        tmp_path / "list.json": "sharegpt",
    }
    for path, kind in kinds.items():
        assert parse_source(str(path)) == (kind, {"path": str(path)})
    assert parse_source(str(flat))[1] == {"path": str(flat.parent), "subset": "VOC2007"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("nowhere.jsonl", "nowhere.jsonl does not exist"),
        ("josnl:a.jsonl", "'josnl' is no kind of source and no such file exists; kinds: emoji"),
        ("jsonl:a.jsonl,b", "'b' is no KEY=VALUE"),
        ("mmeb:M,cap=1,cap.A=2", "'cap' is a value and a mapping at once"),
        (__file__, "is no source; expected a folder, or a .jsonl, .json or .parquet file"),
    ],
)
def test_what_is_no_source_says_so(text, complaint):
    with pytest.raises((ValueError, OSError), match=complaint):
        parse_source(text)
