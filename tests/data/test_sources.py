"""Every format becomes the same records; what is wrong in a file is named."""

from __future__ import annotations

import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from crem_jax.data.images.folders import pictures_in
from crem_jax.data.records import Item, Record
from crem_jax.data.sources.formats.mmeb import VLM2VEC_V2_CAPS
from crem_jax.data.sources.registry import make_source
from crem_jax.data.sources.selected import write_index

PICTURE = "cat.png"


@pytest.fixture
def root(tmp_path) -> Path:
    Image.new("RGB", (20, 16), "teal").save(tmp_path / PICTURE)
    return tmp_path


def jsonl(root: Path, *rows, name: str = "pairs.jsonl") -> Path:
    path = root / name
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def content(item: Item) -> tuple[str, tuple[str, ...]]:
    return item.text, tuple(Path(image).name for image in item.images)


def refuses(source, index: int, *words: str) -> None:
    with pytest.raises(ValueError) as caught:
        source.record(index)
    for word in words:
        assert word in str(caught.value)


# own data


def test_a_jsonl_line_may_hold_pairs_negatives_several_positives_and_a_conversation(root):
    turns = [["what?", "a cat"], {"question": "where?", "answer": "here"}]
    path = jsonl(
        root,
        {"id": "one", "image": PICTURE, "text": "a cat"},
        {"query": "a cat", "positives": [{"image": PICTURE}, "cat"], "negatives": "a dog"},
        {"query": {"text": "red", "images": [PICTURE, PICTURE]}, "turns": turns},
        {"image": PICTURE, "positives": ["x"], "negatives": [{"text": "y", "image": PICTURE}]},
    )
    records = [make_source("jsonl", {"path": path}).record(i) for i in range(4)]
    assert [content(r.query) for r in records] == [
        ("", (PICTURE,)),
        ("a cat", ()),
        ("red", (PICTURE, PICTURE)),
        ("", (PICTURE,)),
    ]
    assert [[content(p) for p in r.positives] for r in records] == [
        [("a cat", ())],
        [("", (PICTURE,)), ("cat", ())],
        [],
        [("x", ())],
    ]
    assert [content(n) for n in records[1].negatives] == [("a dog", ())]
    assert [content(n) for n in records[3].negatives] == [("y", (PICTURE,))]
    assert records[2].turns == (("what?", "a cat"), ("where?", "here"))
    assert records[0].id == "one" and records[1].id == f"{path}:2"
    assert all(Path(image).is_file() for r in records for image in r.query.images)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"image": 3, "text": "a"}', "image is 3 (int); expected a text"),
        ('{"image": "a.png"}', "has nothing to learn: neither positives (or text) nor turns"),
        ('{"text": "a"}', "has neither 'query' nor 'image'"),
        ('{"query": " ", "positives": "a"}', "query is empty; expected text or a picture"),
        ('{"query": "q", "positves": "a"}', "unknown key 'positves'; known: 'id', 'query'"),
        ('{"query": "q", "image": "a", "text": "t"}', "has both 'image' and 'query'"),
        ('{"query": {"txt": "q"}}', "query has the unknown key 'txt'"),
        ('{"query": "q", "positives": [[]]}', "positives[0] is a list; expected a text or"),
        ('{"query": "q", "negatives": ["n"], "turns": [["q", "a"]]}', "negatives but no positives"),
        ('{"query": "q", "turns": [["q"]]}', "turns[0] is a list; expected an object"),
        ('{"query": "q", "turns": [["q", " "]]}', "turns[0].answer is empty"),
        ('{"query": "q", "positives": "\\ud800"}', "is not valid Unicode"),
        ('{"query": "q", "positives": NaN}', "has NaN, which is not JSON"),
        ("[1, 2]", "is a list; expected an object"),
        ("[" * 100_000, "is nested too deeply"),
        ('{"query"', "cannot be read"),
        ("1" * 5000, "cannot be read"),
    ],
)
def test_what_is_wrong_in_a_line_is_named_with_its_file_and_line(tmp_path, line, complaint):
    path = tmp_path / "pairs.jsonl"
    path.write_text(f'{{"query": "q", "positives": "a"}}\n\n{line}\n')
    source = make_source("jsonl", {"path": path})
    assert len(source) == 2
    refuses(source, 1, f"{path}:3", complaint)


def test_line_ends_a_bom_and_invalid_utf8_spoil_no_other_line(tmp_path):
    path = tmp_path / "pairs.jsonl"
    good = b'{"query": "q", "positives": "a"}'
    path.write_bytes(b"\xef\xbb\xbf" + good + b"\r\n\r\n \n" + b'{"a": "\xff"}\n' + good)
    source = make_source("jsonl", {"path": path})
    assert len(source) == 3
    assert source.record(0).query.text == source.record(2).query.text == "q"
    refuses(source, 1, "pairs.jsonl:4: cannot be read: 'utf-8' codec")


def test_any_positive_may_come_first_in_training_and_none_is_lost(root):
    path = jsonl(root, {"image": PICTURE, "text": ["a", "b", "c"]})
    source = make_source("jsonl", {"path": path})
    seen = [source.record(0, np.random.default_rng(i)).positives for i in range(20)]
    assert {positives[0].text for positives in seen} == {"a", "b", "c"}
    assert all(sorted(p.text for p in positives) == ["a", "b", "c"] for positives in seen)
    assert source.record(0).positives[0].text == "a"


def test_a_folder_of_pictures_has_its_texts_beside_them(root):
    for name in ("sub/red_dog-2.jpg", "sub/.hidden.jpg", "sub/odd.jpg", "sub/bad.jpg"):
        (root / "sub").mkdir(exist_ok=True)
        Image.new("RGB", (20, 16), "red").save(root / name)
    (root / "cat.txt").write_text(" a cat\n")
    (root / "sub/odd.json").write_text('{"text": ["odd", "queer"], "turns": [["how?", "odd"]]}')
    (root / "sub/bad.json").write_text('{"query": "q", "text": "x"}')
    source = make_source("folder", {"path": root})
    assert len(source) == 4
    cat, odd = source.record(0), source.record(2)
    assert (content(cat.query), cat.positives[0].text, cat.id) == (
        ("", (PICTURE,)),
        "a cat",
        "cat.png",
    )
    assert content(odd.query) == ("", ("odd.jpg",)) and odd.turns == (("how?", "odd"),)
    assert [p.text for p in odd.positives] == ["odd", "queer"]
    refuses(source, 1, str(root / "sub/bad.json"), "has a query of its own")
    refuses(source, 3, "red_dog-2.jpg: has neither a .json nor a .txt beside it")
    os.symlink(root / "sub", root / "again")
    os.symlink(root, root / "sub" / "up")
    elsewhere = root.with_name(f"{root.name}-elsewhere") / "deep"
    elsewhere.mkdir(parents=True)
    Image.new("RGB", (20, 16)).save(elsewhere / "far.png")
    os.symlink(elsewhere.parent, root / "linked")
    paths = [path.relative_to(root).as_posix() for path in pictures_in(root)]
    assert paths == ["cat.png", "linked/deep/far.png", *sorted(p for p in paths if "sub/" in p)]
    (root / "linked").unlink()
    named = make_source("folder", {"path": root, "name_as_text": True})
    assert named.record(3).positives[0].text == "red dog 2"


# MMEB

I = "<|image_1|>\n"
MMEB_ROWS = [
    (f"{I}Find it.\n", "images/S/Train/a.jpg", "a cat", "", ["a dog", "a cow"], ["", ""]),
    (f"{I}Who?\n", "", f"{I}Represent.\n", "images/S/Train/b.jpg", "", "images/S/Train/a.jpg"),
    (I, "", "a target", "", "", ""),
    ("a query", "", " ", None, "", ""),
    (f"{I}It.\n", "images/S/Train/a.jpg", "x", "", ["n", ""], ["images/S/Train/b.jpg", ""]),
    (f"{I}It.\n", "images/S/Train/a.jpg", "x", "", ["n", "m"], ["images/S/Train/b.jpg"]),
]
COLUMNS = ("qry", "qry_image_path", "pos_text", "pos_image_path", "neg_text", "neg_image_path")


def mmeb_root(root: Path, layout: str) -> Path:
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in MMEB_ROWS]
    if layout == "hub parquet":
        (root / "S").mkdir()
        for row in rows:  # list-valued negatives, as in the hard-negative variants
            row |= {k: v if isinstance(v, list) else [v] for k, v in row.items() if k[:3] == "neg"}
        for number in range(2):
            table = pa.Table.from_pylist(rows[number * 3 : number * 3 + 3])
            file = root / "S" / f"original-0000{number}-of-00002.parquet"
            pq.write_table(table, file, row_group_size=2)
        pictures = root / "images" / "S" / "Train"
    else:
        jsonl(root, *rows, name="S.jsonl")
        pictures = root / "S" / "Train"
    pictures.mkdir(parents=True)
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (20, 16), "red").save(pictures / name)
    return root


@pytest.mark.parametrize("layout", ["hub parquet", "flat jsonl"])
def test_mmeb_rows_of_both_layouts_become_records(tmp_path, layout):
    source = make_source("mmeb", {"path": mmeb_root(tmp_path, layout), "subset": "S"})
    source = pickle.loads(pickle.dumps(source))
    assert source.left_out == {"S: the query is empty": 1, "S: the target is empty": 1}
    assert len(source) == 4
    one, orphan, mixed = (source.record(i) for i in range(3))
    assert content(one.query) == ("Find it.", ("a.jpg",)) and one.source == "S"
    assert [content(n) for n in one.negatives] == [("a dog", ()), ("a cow", ())]
    assert content(orphan.query) == ("Who?", ())
    assert content(orphan.positives[0]) == ("Represent.", ("b.jpg",))
    assert [content(n) for n in orphan.negatives] == [("", ("a.jpg",))]
    assert [content(n) for n in mixed.negatives] == [("n", ("b.jpg",))]
    assert [r.id for r in (one, orphan, mixed)] == [f"S/original/{i}" for i in (0, 1, 4)]
    assert source.problems(0) == []
    assert source.problems(1) == ["the query has 1 placeholders and 0 pictures"]
    for record in (one, orphan):
        for item in (record.query, *record.positives):
            assert all(Path(image).is_file() for image in item.images)
    refuses(source, 3, "has 2 neg_text and 1 neg_image_path; expected as many")


def test_mmeb_caps_choose_by_a_seeded_shuffle_not_the_first_rows(tmp_path):
    row = dict(qry="q", qry_image_path="", pos_text="t", pos_image_path="")
    for name in ("VOC2007", "MSCOCO"):
        jsonl(tmp_path, *[row] * 50, name=f"{name}.jsonl")

    def ids(**arguments) -> list[str]:
        source = make_source("mmeb", {"path": tmp_path, **arguments})
        return [source.record(i).id for i in range(len(source))]

    assert len(ids()) == 100
    chosen = ids(cap={"VOC2007": 10})
    assert len(chosen) == 60 and chosen == ids(cap={"VOC2007": 10})
    few = [int(i.split("/")[2]) for i in chosen if i.startswith("VOC")]
    assert few == sorted(few) and few != list(range(10))
    assert chosen != ids(cap={"VOC2007": 10}, seed=1)
    assert len(ids(cap=3)) == 6 and len(ids(cap="vlm2vec-v2")) == 100
    assert VLM2VEC_V2_CAPS["VisDial"] == 130_000 and len(VLM2VEC_V2_CAPS) == 20


def test_mmeb_says_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        make_source("mmeb", {"path": tmp_path / "nowhere"})
    with pytest.raises(ValueError, match=r"has no subsets: neither SUBSET\.parquet nor"):
        make_source("mmeb", {"path": tmp_path})
    root = mmeb_root(tmp_path, "hub parquet")
    with pytest.raises(FileNotFoundError, match=r"has no subset 'T' with split 'original'.*: S"):
        make_source("mmeb", {"path": root, "subset": "T"})
    with pytest.raises(ValueError, match="split 'train' is not one of original, diverse_instr"):
        make_source("mmeb", {"path": root, "split": "train"})
    with pytest.raises(ValueError, match="cap names the subset 'T'; known: S"):
        make_source("mmeb", {"path": root, "cap": {"T": 1}})
    file = next((root / "S").glob("*.parquet"))
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match=re.escape(f"{file}: cannot be read")):
        make_source("mmeb", {"path": root})


# ShareGPT-4V


def say(*values: str, **rest) -> dict:
    roles = ("human", "gpt")
    talk = [{"from": roles[i % 2], "value": value} for i, value in enumerate(values)]
    return {"conversations": talk, **rest}


CONVERSATIONS = [
    say("<image>\nWhat?", 'A "cat" [here].', id="x", image=PICTURE),
    say("What?\n<image>", "A cat.", "Where <image> is it?", "Here.", "And?", image=PICTURE),
    say("Write a poem.", "Roses.", "Another.", "Violets."),
    {
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "user", "value": "One."},
            {"from": "human", "value": "<image>Two.<image>"},
            {"from": "assistant", "value": "Yes."},
        ],
        "images": [PICTURE, PICTURE],
    },
]


def records_of(root: Path, suffix: str) -> list[Record]:
    path = root / f"talk{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(CONVERSATIONS, indent=1), encoding="utf-8")
    else:
        jsonl(root, *CONVERSATIONS, name=path.name)
    source = pickle.loads(pickle.dumps(make_source("sharegpt", {"path": path})))
    return [source.record(i) for i in range(len(source))]


def test_conversations_keep_every_answer_and_their_pictures_come_first(root):
    first, multi, text_only, system = records_of(root, ".json")
    assert content(first.query) == ("", (PICTURE,))
    assert first.turns == (("What?", 'A "cat" [here].'),) and "(x)" in first.id
    assert multi.turns == (("What?", "A cat."), ("Where \n is it?", "Here."))
    assert content(text_only.query) == ("Write a poem.", ())
    assert text_only.turns == (("", "Roses."), ("Another.", "Violets."))
    assert content(system.query) == ("Be brief.", (PICTURE, PICTURE))
    assert system.turns == (("One.\nTwo.", "Yes."),)
    as_lines = records_of(root, ".jsonl")
    assert [r.turns for r in as_lines] == [r.turns for r in (first, multi, text_only, system)]


def test_placeholders_that_do_not_fit_the_pictures_are_a_problem(root):
    path = root / "talk.json"
    path.write_text(json.dumps(CONVERSATIONS))
    source = make_source("sharegpt", {"path": path})
    assert source.problems(1) == ["it has 2 placeholders and 1 pictures"]
    assert [source.problems(i) for i in (0, 2, 3)] == [[], [], []]


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ({}, "conversations is a null; expected a list of messages"),
        ({"conversations": [3]}, "conversations[0] is 3 (int); expected an object"),
        ({"conversations": [{"from": "bot", "value": "x"}]}, "[0].from is 'bot' (str); expected"),
        ({"conversations": [{"from": "gpt", "value": 1}]}, "conversations[0].value is 1 (int)"),
        (say("What?"), "has no answer of the assistant"),
        (say("", "Yes."), "has neither a picture nor a question"),
        (say("<image> What?", "Yes."), "speaks of an <image> and has none"),
    ],
)
def test_conversations_that_make_no_sense_are_named(tmp_path, value, complaint):
    (tmp_path / "talk.json").write_text(json.dumps([say("a", "b"), value]))
    source = make_source("sharegpt", {"path": tmp_path / "talk.json"})
    refuses(source, 1, f"{tmp_path / 'talk.json'}[1]", complaint)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('[{"a": 1}', "ends inside record 0"),
        ('{"a": []}', "byte 0 begins something else"),
        ('["x"]', "byte 1 begins a text"),
        ('[{"a": 1}] {"b": 2}', "byte 11 begins something else"),
        ("", "is empty"),
        ("[1, 2]", "there are no records in it"),
    ],
)
def test_a_file_that_is_no_json_list_is_refused(tmp_path, text, complaint):
    (tmp_path / "talk.json").write_text(text)
    with pytest.raises(ValueError, match=complaint):
        make_source("sharegpt", {"path": tmp_path / "talk.json"})


# choosing


def test_a_half_of_every_record_may_be_left_out():
    whole = make_source("scenes", {}).record(3)
    pairs = make_source("scenes", {"only": "retrieval"}).record(3)
    told = make_source("scenes", {"only": "turns", "limit": 9})
    assert len(told) == 9 and whole.turns and whole.negatives
    assert pairs.positives[0].text == whole.positives[0].text and not pairs.turns
    record = told.record(3)
    assert record.turns and not record.positives and not record.negatives
    half = make_source("emoji", {"only": "turns"})
    assert hasattr(pickle.loads(pickle.dumps(half)), "clustered_order")
    assert not hasattr(told, "clustered_order")
    with pytest.raises(ValueError, match="only 'half' is not one of retrieval, turns"):
        make_source("scenes", {"only": "half"})


def test_an_index_and_a_limit_choose_records_of_any_source(root):
    path = jsonl(root, *({"query": f"q{i}", "positives": "a"} for i in range(20)))
    good = np.arange(20) % 4 != 0
    write_index(root / "index.json", good)
    arguments = {"path": path, "index": root / "index.json"}
    source = make_source("jsonl", arguments)
    assert [source.record(i).query.text for i in range(3)] == ["q1", "q2", "q3"]
    assert len(source) == 15
    few = make_source("jsonl", {**arguments, "limit": 5})
    texts = [few.record(i).query.text for i in range(len(few))]
    assert len(texts) == 5 and all(int(text[1:]) % 4 for text in texts)
    jsonl(root, *({"query": "q", "positives": "a"} for i in range(19)))
    with pytest.raises(ValueError, match=r"data\.sources\.mine: index .* is for 20 records and"):
        make_source("jsonl", arguments, "data.sources.mine")
    (root / "index.json").write_text("{}")
    with pytest.raises(ValueError, match="is none that `crem doctor` wrote"):
        make_source("jsonl", arguments, "data.sources.mine")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"kind": "jsonl"}, "data.sources.a: a source of kind 'jsonl' needs 'path'"),
        ({"kind": "jsonl", "file": "x"}, "takes no 'file'; it takes path, image_root, bare, index"),
        ({"kind": "json"}, "data.sources.a.kind 'json' is not one of emoji, folder, jsonl, mmeb"),
        ({"kind": "emoji", "limit": 0}, "data.sources.a.limit = 0 must be at least 1"),
        ({"kind": "emoji", "split": "x"}, "data.sources.a: unknown emoji split 'x'"),
    ],
)
def test_unknown_and_missing_arguments_of_sources_are_named(arguments, complaint):
    with pytest.raises(ValueError, match=re.escape(complaint)):
        make_source(arguments.pop("kind"), arguments, "data.sources.a")
