"""`crem prepare` writes what the source says, the same bytes whatever happens to it meanwhile."""

from __future__ import annotations

import io
import json
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from crem_jax.data.emoji.emoji import DATA_DIR, load_emoji
from crem_jax.data.images.encoded import file_bytes
from crem_jax.data.records import Item, RecordError
from crem_jax.data.sources.formats.feature_map import FeatureMap
from crem_jax.data.sources.registry import make_source
from tests.support.cli_runner import crem


def synthetic(root: Path, records: int, pictures: int = 50) -> Path:
    """A JSONL of pairs, hard negatives and conversations over small JPEGs; some cannot be used."""
    rng = np.random.default_rng(0)
    (root / "pictures").mkdir(parents=True)
    for i in range(pictures):
        pixels = rng.integers(0, 256, (24 + i, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "pictures" / f"{i}.jpg")
    with open(root / "pairs.jsonl", "w") as file:
        for i in range(records):
            row = {
                "image": f"pictures/{i % pictures}.jpg",
                "text": [f"caption {i}", f"other caption {i}"],
                "negatives": [{"image": f"pictures/{(i + 1) % pictures}.jpg", "text": "no"}],
                "turns": [["what?", f"number {i}"]],
                "metadata": {"number": i, "name": "Größe"},
            }
            if i % 100 == 7:
                row["image"] = "pictures/none.jpg"
            file.write(json.dumps(row) + "\n")
    return root / "pairs.jsonl"


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*"))}


def test_prepared_records_are_the_records_and_know_their_hashes(tmp_path, capsys):
    path = synthetic(tmp_path, 120)
    out = tmp_path / "out"
    done = crem(capsys, "prepare", path, out, "--shard_records", 50, "--workers", 2, "--json")
    assert (done.json["records"], done.json["skipped"], done.json["shards"]) == (118, 2, 3)
    skipped = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert [entry["record"] for entry in skipped] == [7, 107]
    assert skipped[0]["where"] == f"{path}:8" and "none.jpg: does not exist" in skipped[0]["reason"]
    original, prepared = make_source("jsonl", {"path": path}), make_source("tfds", {"path": out})
    prepared = pickle.loads(pickle.dumps(prepared))
    assert len(prepared) == 118
    for index in (0, 60, 117):
        got = prepared.read(index)
        want = original.read(index + (index > 6) + (index > 105))
        assert (got.id, got.source, got.turns) == (want.id, want.source, want.turns)
        assert got.metadata == want.metadata and want.metadata["name"] == "Größe"
        assert len(got.positives) == 2 and len(got.negatives) == 1
        pairs = zip(
            (got.query, *got.positives, *got.negatives),
            (want.query, *want.positives, *want.negatives),
            strict=True,
        )
        for mine, theirs in pairs:
            files = tuple(Path(image).read_bytes() for image in theirs.images)
            assert (mine.text, mine.images) == (theirs.text, files)
            assert mine.known_hash == Item(theirs.text, files).content_hash()


def test_plain_tfds_reads_a_prepared_data_set_without_tensorflow(tmp_path, capsys):
    path, out = synthetic(tmp_path, 10, pictures=3), tmp_path / "out"
    assert crem(capsys, "prepare", path, out, "--workers", 1).code == 0
    code = (
        "import sys, tensorflow_datasets as tfds\n"
        f"data = tfds.builder_from_directory({str(out)!r}).as_data_source('train')\n"
        "assert data[0]['texts'][:2] == [b'', b'caption 0'], data[0]['texts']\n"
        "assert [p[:2] for p in data[0]['pictures']] == [b'\\xff\\xd8'] * 2\n"
        "sys.exit(10 * ('tensorflow' in sys.modules) + len(data))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9


def test_a_damaged_shard_costs_its_own_records_alone(tmp_path, capsys):
    path, out = synthetic(tmp_path, 10, pictures=3), tmp_path / "out"
    options = ["--shard_records", 4, "--workers", 1]
    assert crem(capsys, "prepare", path, out, *options).code == 0
    shard = out / "crem-train.array_record-00001-of-00003"
    shard.write_bytes(shard.read_bytes()[:-50_000])
    source = make_source("tfds", {"path": out})
    for index in range(9):
        if 4 <= index < 7:
            with pytest.raises(RecordError, match=rf"{out} train\[{index}\]: cannot be read"):
                source.record(index)
        else:
            assert source.record(index).positives
    shard.unlink()
    with pytest.raises(FileNotFoundError, match="00001-of-00003 does not exist"):
        make_source("tfds", {"path": out})


def interrupt(command: list[str], notes: Path, shards: int) -> bool:
    """Runs a command and kills it once so many shards are whole; False if it ended first."""
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            if len(list(notes.glob("shard-*.json"))) >= shards:
                process.send_signal(signal.SIGKILL)
                process.wait()
                return True
            time.sleep(0.002)
        return False
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("records", "shard", "kills"),
    [
        pytest.param(400, 20, 1, id="400"),
        pytest.param(20_000, 500, 3, marks=pytest.mark.slow, id="20000"),
    ],
)
def test_killed_and_run_again_it_gives_the_same_bytes(tmp_path, capsys, rng, records, shard, kills):
    path = synthetic(tmp_path, records)

    def arguments(out: str, workers: int) -> list[str]:
        options = ["--shard_records", str(shard), "--workers", str(workers)]
        return ["prepare", str(path), str(tmp_path / out), *options]

    assert crem(capsys, *arguments("whole", 2)).code == 0
    points = sorted(rng.choice(np.arange(1, records // shard - 3), kills, replace=False))
    command = [sys.executable, "-m", "crem_jax", *arguments("torn", 1)]
    killed = [interrupt(command, tmp_path / "torn.partial", int(point)) for point in points]
    assert all(killed) and not (tmp_path / "torn").exists()
    assert crem(capsys, *arguments("torn", 2)).code == 0
    whole, torn = contents(tmp_path / "whole"), contents(tmp_path / "torn")
    assert whole == torn and len(whole) == records // shard + 4
    assert not list(tmp_path.glob("*.partial"))
    assert crem(capsys, *arguments("torn", 2)).code == 0 and contents(tmp_path / "torn") == whole


def test_other_work_is_not_mixed_in(tmp_path, capsys):
    path, out = synthetic(tmp_path, 10, pictures=2), tmp_path / "out"
    partial = tmp_path / "out.partial"
    partial.mkdir()
    plan = {"records": 10, "source": "x"}
    (partial / "plan.json").write_text(json.dumps(plan))
    refused = crem(capsys, "prepare", path, out)
    assert refused.code == 2 and f"{partial} holds unfinished work with another" in refused.err
    (partial / "plan.json").unlink()
    assert crem(capsys, "prepare", path, out, "--max_bad", 0, "--workers", 1).code == 2
    assert not out.exists()
    assert crem(capsys, "prepare", path, out, "--max_bad", 0.2, "--workers", 1).code == 0
    refused = crem(capsys, "prepare", path, out, "--split", "test")
    assert refused.code == 2 and f"{out} holds a data set prepared otherwise" in refused.err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    refused = crem(capsys, "prepare", path, tmp_path / "full")
    assert refused.code == 2 and "exists already; expected a new or empty directory" in refused.err
    path.touch()
    refused = crem(capsys, "prepare", path, out)
    assert refused.code == 2 and f"have changed since {out} was prepared" in refused.err
    (tmp_path / "new.partial").mkdir()
    values = {**json.loads((out / "prepared.json").read_text())["plan"], "stamp": [1, 2]}
    (tmp_path / "new.partial" / "plan.json").write_text(json.dumps(values))
    refused = crem(capsys, "prepare", path, tmp_path / "new")
    assert refused.code == 2 and "unfinished work of other source files" in refused.err


def test_large_pictures_are_made_smaller_and_others_kept_as_they_are(tmp_path):
    photo = tmp_path / "a.jpg"
    Image.new("RGB", (200, 100), "red").save(photo)
    assert file_bytes(photo, 20_000) == file_bytes(photo) == photo.read_bytes()
    small = Image.open(io.BytesIO(file_bytes(photo.read_bytes(), 5000)))
    assert (small.format, small.size) == ("JPEG", (100, 50))
    drawn = Image.open(io.BytesIO(file_bytes(np.zeros((10, 20, 3), np.uint8))))
    assert (drawn.format, drawn.size) == ("PNG", (20, 10))


# tfds with a feature map


class Captions(tfds.core.GeneratorBasedBuilder):
    """Three examples with the features of tfds' `coco_captions`, and a label."""

    name = "captions"
    VERSION = tfds.core.Version("1.0.0")
    code_path = None

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "image/filename": tfds.features.Text(),
                    "captions": tfds.features.Sequence(
                        {"id": np.int64, "text": tfds.features.Text()}
                    ),
                    "label": tfds.features.ClassLabel(names=["cat", "dog"]),
                    "boxes": tfds.features.Sequence(tfds.features.BBoxFeature()),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(3):
            out = io.BytesIO()
            Image.new("RGB", (20 + i, 16)).save(out, "JPEG")
            out.seek(0)
            yield (
                i,
                {
                    "image": out,
                    "image/filename": f"{i}.jpg",
                    "captions": [{"id": j, "text": f"a {i}{j}"} for j in range(2 + i)],
                    "label": i % 2,
                    "boxes": [],
                },
            )


@pytest.fixture(scope="module")
def captions(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("tfds")
    builder = Captions(data_dir=str(root), file_format="array_record")
    builder.download_and_prepare(download_dir=str(root / "unused"))
    return root


def test_coco_captions_and_any_other_feature_map_make_records(captions):
    source = make_source("tfds", {"path": captions, "features": "coco_captions"})
    source = pickle.loads(pickle.dumps(source))
    record = source.record(1)
    assert (record.id, record.source, len(source)) == ("1.jpg", "captions", 3)
    assert Image.open(io.BytesIO(record.query.images[0])).size == (21, 16)
    assert [item.text for item in record.positives] == ["a 10", "a 11", "a 12"]
    assert record.turns == (("Describe the picture.", "a 10"),)
    features = dict(
        query_text="find the {label}",
        positive_image="image",
        question="which {label}?",
        answer="{captions/text} of {label}",
    )
    other = make_source("tfds", {"path": captions, "split": "train[1:]", "features": features})
    record = other.record(0)
    assert (len(other), record.query.text) == (2, "find the dog")
    assert len(record.positives) == 1 and record.positives[0].images
    assert record.turns == (("which dog?", "a 10 of dog"),)


def test_questions_keep_their_own_answers(monkeypatch, captions):
    features = dict(query_image="image", question="{captions/id}", answer="{captions/text}")
    source = make_source("tfds", {"path": captions, "features": features})
    assert source.record(1).turns == (("0", "a 10"), ("1", "a 11"), ("2", "a 12"))
    values = FeatureMap._values

    def one_blank(self, example, name, where):
        return ["" if text == "a 11" else text for text in values(self, example, name, where)]

    monkeypatch.setattr(FeatureMap, "_values", one_blank)
    assert source.record(1).turns == (("0", "a 10"), ("2", "a 12"))

    def one_less(self, example, name, where):
        return values(self, example, name, where)[: 2 if name == "captions/id" else 3]

    monkeypatch.setattr(FeatureMap, "_values", one_less)
    with pytest.raises(RecordError, match="has 2 questions and 3 answers"):
        source.record(1)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({}, "needs `features`, which say what of a record is in which of its features: boxes"),
        ({"features": "cocos"}, "features 'cocos' is not one of coco_captions, nor a map"),
        ({"features": {"query": "image"}}, "features.query is unknown; known: id, query_text"),
        ({"features": {"answer": "{label}"}}, "has neither 'query_text' nor 'query_image'"),
        ({"features": {"query_image": "picture"}}, "there is no feature 'picture'; there are "),
        ({"features": {"query_text": "{captions/txt}"}}, "there is no feature 'captions/txt'"),
        ({"features": "coco_captions", "split": "test"}, "has no split 'test'; it has train"),
        ({"features": {"query_text": "{"}}, "features: '{': "),
    ],
)
def test_a_feature_map_that_does_not_fit_is_named(captions, arguments, complaint):
    with pytest.raises(ValueError) as caught:
        make_source("tfds", {"path": captions, **arguments})
    assert complaint in str(caught.value)


def test_the_packaged_emoji_are_read_by_a_feature_map():
    features = {"query_image": "image", "positive_text": "{name}", "id": "{emoji}"}
    source = make_source("tfds", {"path": DATA_DIR, "split": "heldout", "features": features})
    names = {source.record(i).positives[0].text for i in range(len(source))}
    assert names == {emoji.name for emoji in load_emoji("heldout")}
